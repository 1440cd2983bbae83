"""The command that repeats a run of `plan`: for its page, which adds other targets, locks and floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguftool.cooking.exploration import Exploration
from gguftool.render.format import Format
from gguftool.render.page_of_plan.names import shown_source
from gguftool.render.page_of_plan.page import Command
from gguftool.render.registry import render

_FILES = frozenset({"measure", "curve", "sensitivity", "imatrix", "compare", "start"})
_LABELLED = frozenset({"bench"})  # DEVICE=FILE


def page_again(found: Exploration, models: Sequence[str], given: Mapping[str, object]) -> bytes:
    """Render the page of a plan, with the command that was `given` these options, by parameter."""
    imatrix = given["imatrix"]
    command = Command(
        models=tuple(models), options=option_words(given), imatrix=None if imatrix is None else str(imatrix)
    )
    return render(found, Format.HTML, command=command).encode("utf-8")


def option_words(options: Mapping[str, object]) -> tuple[str, ...]:
    """List the given options, by parameter; files only by name, because a page shows no local folder."""
    words: list[str] = []
    for name, value in options.items():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else (value,):
            if one is not None:
                words += [f"--{name.replace('_', '-')}", _said(name, str(one))]
    return tuple(words)


def _said(name: str, text: str) -> str:
    if name in _FILES:
        return shown_source(text)
    if name in _LABELLED:
        device, _, file = text.partition("=")
        return f"{device}={shown_source(file)}"
    return text
