"""Lint: rules with codes, what they look at, and `check`, which runs them. rules.py says which module has which code."""
