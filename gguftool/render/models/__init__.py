"""Reports on a model: what it is, what it contains, how its bytes are distributed."""
