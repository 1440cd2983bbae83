"""Render report dataclasses as text, JSON, csv and markdown; human units live here."""
