"""From models to report dataclasses, without side effects other than reading."""
