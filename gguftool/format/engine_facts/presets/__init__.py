"""The mixes that llama-quantize makes under a name such as Q4_K_M: which type each tensor gets."""
