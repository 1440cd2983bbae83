"""Bytes to meaning and back, without I/O: header grammar, ggml types, file types, shard names."""
