"""Pages, such as the one of `report --html`: frame, colours, bars, heat maps, tables; and heat strips as text."""
