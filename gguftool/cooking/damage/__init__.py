"""How much damage each type does to each tensor: what is known of it, and what follows."""
