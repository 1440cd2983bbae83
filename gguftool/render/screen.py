"""Text on a screen of limited width: measure it, cut it, break its lines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from enum import Enum

from gguftool.record import record

ELLIPSIS = "..."  # ASCII: every terminal's encoding has it
_UNIT = re.compile(r"(?<=[0-9]) (?=(?:[KMGTP]iB|[KMBT]|bpw)\b)")  # a number keeps its unit
_HELD = "\xa0"


class Cut(Enum):
    """How to shorten a cell that is too wide: cut its end, its middle or its start, or wrap its words."""

    END = "end"
    MIDDLE = "middle"
    START = "start"
    WRAP = "wrap"


@record
class Verbatim:
    """Text to copy, such as a command or a recipe: the terminal wraps it, so a copy is still whole."""

    text: str

    def as_text(self) -> str:
        """The text."""
        return self.text

    def as_rich(self, _width: int, /) -> str:
        """The text."""
        return self.text


@record
class Commands:
    """Commands to copy, each with a comment on what it does."""

    commands: tuple[tuple[str, str], ...]

    def as_text(self) -> str:
        """Write commands and comments side by side."""
        width = max(len(command) for command, _ in self.commands)
        return "".join(f"{command:{width}}  # {what}\n" for command, what in self.commands)

    def as_rich(self, width: int, /) -> str:
        """Write them side by side or, if that is too wide, each command below its comment."""
        text = self.as_text()
        if all(width_of(line) <= width for line in text.splitlines()):
            return text
        lines = [
            line for command, what in self.commands for line in (*wrapped(f"# {what}", width, later="# "), command)
        ]
        return "\n".join(lines) + "\n"


def width_of(text: str) -> int:
    """Count the columns that `text` takes: two for a wide East Asian character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def padded(text: str, width: int, *, right: bool) -> str:
    """Pad `text` with spaces to `width` columns, on its left if `right`."""
    room = " " * (width - width_of(text))
    return room + text if right else text + room


def cropped(text: str, width: int, cut: Cut = Cut.END) -> str:
    """Cut `text` to at most `width` columns, with an ellipsis where something is left out."""
    if width_of(text) <= width:
        return text
    room = width - len(ELLIPSIS)
    if room < 2:
        return _head(text, width)
    if cut is Cut.START:
        return ELLIPSIS + _tail(text, room)
    if cut is Cut.MIDDLE:
        return _head(text, room - room // 2) + ELLIPSIS + _tail(text, room // 2)
    return _head(text, room) + ELLIPSIS


def _head(text: str, width: int) -> str:
    while width_of(text[:width]) > width:
        text = text[: min(len(text), width) - 1]
    return text[:width]


def _tail(text: str, width: int) -> str:
    return _head(text[::-1], width)[::-1]


def wrapped(text: str, width: int, *, later: str = "", whole_words: bool = False) -> list[str]:
    """Break a line of text into lines of at most `width` columns, at spaces, but never between number and unit.

    `later` precedes all lines but the first. A word longer than a line is broken, unless `whole_words` is set.
    """
    if width_of(text) <= width:
        return [text]
    import textwrap  # only here: output into a pipe is not wrapped

    held = _UNIT.sub(_HELD, text) if _HELD not in text else text
    # Only half as many wide characters fit.
    chars = width if text.isascii() else max(len(later) + 1, width * len(text) // width_of(text))
    lines = textwrap.wrap(
        held, chars, subsequent_indent=later, break_on_hyphens=False, break_long_words=not whole_words
    )
    return [part.replace(_HELD, " ") for line in lines for part in ([line] if whole_words else _pieces(line, width))]


def _pieces(line: str, width: int) -> Iterator[str]:
    """Split `line` into pieces of at most `width` columns: wide characters may be spread unevenly."""
    while width_of(line) > width:
        piece = _head(line, width)
        yield piece
        line = line[len(piece) :]
    yield line


def fitted(text: str, width: int) -> str:
    """Break lines of text at `width` columns; broken lines continue below, indented by two more.

    Words stay whole: the terminal wraps a path that is longer than a line, so that it can be copied.
    """
    lines = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        lines += wrapped(line, width, later=" " * min(indent + 2, width // 2), whole_words=True)
    return "\n".join(lines) + "\n" if lines else ""
