"""A diff of two models: as text and markdown, and as csv."""
