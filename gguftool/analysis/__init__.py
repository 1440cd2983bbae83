"""Models to report dataclasses; pure but for reading."""
