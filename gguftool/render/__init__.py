"""Report dataclasses to text, JSON, csv and markdown; human units live here."""
