"""From a recipe to a file: find its inputs, check them against what was published, write its model card."""
