"""Bytes in, bytes out; knows no GGUF: sources, extents, plans, copying, the executor."""
