"""The registry of renderers: which function renders which report in which format.

A module of `render/` registers its functions with `renders`; `render` and `parts_of` look them up by the report's type
and import only the module that has them. To add a format to a report, decorate one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Protocol, TypeVar, runtime_checkable

from gguftool.render.format import Format

# Module that defines a report -> module of `render/` that renders it.
_MODULES = {
    "gguftool.analysis.diff.models": "diff.text",
    "gguftool.analysis.dump": "models.dump",
    "gguftool.analysis.imatrix": "cooking.imatrix",
    "gguftool.analysis.info": "models.info",
    "gguftool.analysis.lint.check": "findings.text",
    "gguftool.analysis.recipe": "cooking.recipe",
    "gguftool.analysis.report": "models.report",
    "gguftool.cooking.measuring.run": "cooking.measure",
    "gguftool.cooking.mix": "cooking.mix",
    "gguftool.storage.plan": "plan",
    "gguftool.surgery.quantize.preview": "cooking.quantize",
}
# Formats of a report that have their own module.
_OF_BOTH = {
    ("gguftool.analysis.diff.models", Format.CSV): "diff.csv",
    ("gguftool.cooking.exploration", Format.HTML): "page_of_plan.page",
}
_OF_FORMATS = {Format.JSON: "json_text", Format.HTML: "page.page", Format.SARIF: "findings.sarif"}
_RENDERERS: dict[tuple[type, Format], Callable[..., Any]] = {}

F = TypeVar("F", bound=Callable[..., Any])


@runtime_checkable
class Part(Protocol):
    """A part of a report that looks different on a terminal and in a pipe: a table, a heat strip."""

    def as_text(self) -> str:
        """Render plain text with a final newline."""

    def as_rich(self, width: int, /) -> Any:
        """Render plain text in lines of at most `width` columns, or an object for a rich console that wide."""


def renders(kind: type, format: Format) -> Callable[[F], F]:
    """Register a function that renders reports of type `kind` in `format`.

    It takes the report and the options of `render`. For `Format.TEXT` it returns the whole text, or parts in order,
    each a `Part` or text with a final newline; for other formats it returns the whole text.
    """

    def register(function: F) -> F:
        _RENDERERS[kind, format] = function
        return function

    return register


def render(report: object, format: Format, **options: Any) -> str:
    """Render `report`; `options` go to its renderer. Raises `TypeError` if the report has no such format."""
    if format is Format.TEXT:
        return joined(parts_of(report, **options))
    text: str = _renderer(report, format)(report, **options)
    return text


def joined(parts: Iterable[str | Part]) -> str:
    """Join parts of a report to plain text, with a blank line between them."""
    return "\n".join(part if isinstance(part, str) else part.as_text() for part in parts)


def parts_of(report: object, **options: Any) -> tuple[str | Part, ...]:
    """Render `report` as text, in the parts that a terminal shows one by one."""
    found: str | Iterable[str | Part] = _renderer(report, Format.TEXT)(report, **options)
    return (found,) if isinstance(found, str) else tuple(found)


def _renderer(report: object, format: Format) -> Callable[..., Any]:
    kind = type(report)
    own = _OF_BOTH.get((kind.__module__, format))
    module = own or _OF_FORMATS.get(format) or _MODULES.get(kind.__module__)
    if module is not None:
        import_module(f"gguftool.render.{module}")
    for base in kind.__mro__:
        if (base, format) in _RENDERERS:
            return _RENDERERS[base, format]
    raise TypeError(f"no {format.value} of {kind.__name__}")
