"""Names of files on a page: without local folders, and without the secrets in addresses."""

from __future__ import annotations

from collections.abc import Iterable

from gguftool.cooking.exploration import Exploration
from gguftool.errors import printable


def shown_source(text: str) -> str:
    """Name a file or address without folders, user, password and query; keep ``hf://`` paths as they are."""
    scheme, mark, rest = text.partition("://")
    if mark and scheme.lower() == "hf":
        return text
    bare = rest.split("?")[0].split("#")[0] if mark else text
    return bare.replace("\\", "/").rstrip("/").rpartition("/")[2] or "model"


class Names:
    """Replaces every known source in a text by its name."""

    def __init__(self, sources: Iterable[str]) -> None:
        forms = {form for text in sources for form in (text, printable(text, 1000), printable(text))}
        self._sources = sorted((form for form in forms if shown_source(form) != form), key=len, reverse=True)

    def clean(self, text: str) -> str:
        """Replace the sources in `text` with names."""
        for source in self._sources:
            text = text.replace(source, shown_source(source))
        return text


def names_of(plan: Exploration, models: Iterable[str]) -> Names:
    """Collect all sources that texts of a plan can name; `models` as they were given."""
    offered = plan.offered
    files = [] if offered.model is None else [source.name for source in offered.model.sources]
    quants = [quant.name for quant in offered.quants]
    others = [one.name for one in plan.mix.inputs] + [name for name, _ in plan.options.compare]
    own = [] if offered.model is None else [offered.model.name]
    return Names([*models, *files, *quants, *others, *own])
