"""Parse and serialize, without I/O: header grammar, ggml types, file types, shard names."""
