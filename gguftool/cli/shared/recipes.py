"""Read the recipe that --recipe names."""

from __future__ import annotations

from gguftool.format.recipe import MAX_TEXT, Recipe, parse_any
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Source


def read_recipe(name: str) -> tuple[Recipe, Source]:
    """Read a recipe; return it with the file it was read from."""
    source = open_source(name)
    return parse_any(source.read_at(0, min(source.size, MAX_TEXT + 1)), name), source
