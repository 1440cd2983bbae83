"""Choosing one option for each tensor within budgets."""
