"""The page of `report --html`: template, colours, strips."""
