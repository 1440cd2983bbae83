"""Diff: what two models differ in, from metadata down to the values of tensors."""
