"""How much damage each type does to each tensor: the evidence, and the model built on it."""
