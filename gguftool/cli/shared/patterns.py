"""Checks of regular expressions on the command line."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from gguftool.errors import printable
from gguftool.format.pattern import BadPatternError, compile_pattern


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise a usage error for an invalid regular expression, or one that could run forever."""
    for pattern in patterns:
        try:
            compile_pattern(pattern)
        except BadPatternError as error:
            raise typer.BadParameter(f"'{printable(pattern)}' {error}") from None
