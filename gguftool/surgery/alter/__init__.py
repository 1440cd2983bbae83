"""Alter: change which tensors a model has, and which parts they are made of."""
