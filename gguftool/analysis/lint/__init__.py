"""Lint rules with codes, and `check`, which runs them. The table in rules.py maps codes to modules."""
