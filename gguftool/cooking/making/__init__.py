"""From a recipe to a file: what it is made of, whether that is what was published, and what to say of it."""
