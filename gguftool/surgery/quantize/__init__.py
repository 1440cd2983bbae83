"""Quantize: target types, back ends, and the source that computes."""
