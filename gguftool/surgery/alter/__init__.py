"""Alter: change which tensors there are, and of what parts they are made."""
