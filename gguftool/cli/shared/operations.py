"""Operations of alter, from options and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from gguftool.storage.sources.source import Source
from gguftool.surgery.alter.files import read_text
from gguftool.surgery.alter.script import MAX_SCRIPT, parse_script


def operations(
    given: Mapping[str, Sequence[str] | None], scripts: Sequence[str]
) -> tuple[list[tuple[str, str]], list[Source]]:
    """Pairs of an operation's word and its value, of options and then of scripts; the second item is the scripts.

    Raises `typer.BadParameter` if there are none.
    """
    words = [(word, value) for word, values in given.items() for value in values or ()]
    read = [read_text(name, MAX_SCRIPT) for name in scripts]
    words += [pair for text, source in read for pair in parse_script(text, source.name)]
    if not any(word != "engine" for word, _ in words):
        raise typer.BadParameter("nothing to change: give an operation such as --drop :mtp, or --script FILE")
    return words, [source for _, source in read]
