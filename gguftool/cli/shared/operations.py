"""Operations of alter, from options and scripts, and the inputs that they refer to by label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import typer

from gguftool.errors import listed
from gguftool.format.file_names import normal_label
from gguftool.storage.sources.source import Source
from gguftool.surgery.alter.files import read_text
from gguftool.surgery.alter.script import MAX_SCRIPT, parse_script

T = TypeVar("T")


def operations(
    given: Mapping[str, Sequence[str] | None], scripts: Sequence[str]
) -> tuple[list[tuple[str, str]], list[Source]]:
    """Pair each operation's word with its value, options before scripts; also return the scripts.

    Raises `typer.BadParameter` if there is no operation.
    """
    words = [(word, value) for word, values in given.items() for value in values or ()]
    read = [read_text(name, MAX_SCRIPT) for name in scripts]
    words += [pair for text, source in read for pair in parse_script(text, source.name)]
    if not any(word != "engine" for word, _ in words):
        raise typer.BadParameter("nothing to change: give an operation such as --drop :mtp, or --script FILE")
    return words, [source for _, source in read]


def by_label(labelled: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Map labels to inputs; raise `typer.BadParameter` if two inputs have the same label."""
    found: dict[str, T] = {}
    twice: list[str] = []
    for label, each in labelled:
        if found.setdefault(normal_label(label), each) is not each:
            twice.append(label)
    if twice:
        raise typer.BadParameter(f"several inputs are labelled {listed(twice, 4)}; give each its own label")
    return found
