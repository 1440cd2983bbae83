"""Lint: rules with codes, what they look at, and `check`, which runs them."""
