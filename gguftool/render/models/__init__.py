"""Reports on a model: what it is, what is inside, how its bytes are distributed."""
