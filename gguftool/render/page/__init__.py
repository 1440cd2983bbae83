"""Pages, such as that of `report --html`: frame, colours, bars, heat maps, tables; and the heat strips of text."""
