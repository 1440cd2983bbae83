"""Rules about heads: the metadata, the vocabulary and the tensors that engines ask for."""
