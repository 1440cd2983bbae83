"""Turn models into report dataclasses, with no side effects other than reading."""
