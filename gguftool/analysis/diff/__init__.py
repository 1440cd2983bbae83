"""Diff: how two models differ, from metadata down to the values of tensors."""
