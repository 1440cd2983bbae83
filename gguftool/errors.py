"""Errors that users can see, and their messages.

An error has the file, the place in it, the byte offset, and a sentence that says what was found, what was expected and
how to fix it.  Text from a file (a tensor name, a key) must not reach a terminal unescaped: quote it with `printable`
when you build a message.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

# Cc control, Cf format (bidi marks, zero-width), Cs lone surrogate, Co private use, Zl/Zp line separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MAX_SHOWN = 200
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+", re.ASCII)
_MAX_COMPARED = 10_000  # names that a typo is compared with: a tenth of a second
# A URL's user and password, and its query, which may be a signature.
_LOGIN = re.compile(r"(?<=://)[^/\s'\"@]*@")
_QUERY = re.compile(r"(https?://[^\s'\"?#]*)[?#][^\s'\"]*", re.IGNORECASE)


class GGUFToolError(Exception):
    """Base of every error that a user can see; prints as ``<source> (<where>, offset N): <message>``.

    If several `problems` were collected, `message` counts them, and they follow it after a colon.
    """

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        where: str | None = None,
        offset: int | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problems: tuple[str, ...] = tuple(problems)
        self.source = source
        self.where = where
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.headline}: {_tame('; '.join(self.problems))}" if self.problems else self.headline

    @property
    def headline(self) -> str:
        """The error without its list of problems."""
        place = ", ".join(
            part
            for part in (self.where and _tame(self.where), None if self.offset is None else f"offset {self.offset:,}")
            if part
        )
        prefix = printable(without_secrets(self.source), limit=4096) if self.source is not None else ""
        if place:
            prefix = f"{prefix} ({place})" if prefix else place
        message = _tame(self.message)
        return f"{prefix}: {message}" if prefix else message


class FormatError(GGUFToolError):
    """The bytes are not valid GGUF: the file's fault."""


class LimitError(FormatError):
    """The file holds more than gguftool reads: a limit of this program, not damage."""


class SourceError(GGUFToolError):
    """An input cannot be read (missing, no permission, changed while it was read): the world's fault."""


class PlanError(GGUFToolError):
    """These inputs cannot make that output: the request's fault."""


class ExecuteError(GGUFToolError):
    """The output cannot be written (no space, exists already, short write): this machine's fault."""


def without_secrets(text: str) -> str:
    """Return `text` without the logins and queries of the URLs in it."""
    return _QUERY.sub(r"\1", _LOGIN.sub("", text)) if "://" in text else text


def printable(text: str, limit: int = _MAX_SHOWN) -> str:
    """Escape everything that a terminal could act on (C0, C1, ESC, bidi marks, lone surrogates).

    Text of more than `limit` characters is cut, and its length is added.
    """
    cut = text[:limit]
    if not (cut.isascii() and cut.isprintable()):
        cut = "".join(_escape(c) if unicodedata.category(c) in _UNPRINTABLE else c for c in cut)
    return cut if len(text) <= limit else f"{cut}... ({len(text):,} characters)"


def _tame(text: str) -> str:
    """`text` of any length, safe for a terminal: for messages built from a library's own words."""
    return printable(text, limit=len(text))


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as surrogateescape keeps it
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def shell_word(word: str) -> str:
    """Quote `word` for a POSIX shell; never with single quotes, so that messages can put them around a command."""
    if _PLAIN_WORD.fullmatch(word):
        return word
    if word.isprintable() and "!" not in word:
        return '"' + re.sub(r'(["$`\\\\])', r"\\\1", word) + '"'
    if word.isprintable():
        return re.sub(r"([^A-Za-z0-9_@%+=:,./-])", r"\\\1", word)
    escaped = word.encode("utf-8", "surrogateescape")
    plain = "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\x{b:02x}" for b in escaped)
    return f"$'{plain}'"


def command_line(*words: str) -> str:
    """A gguftool command in quotes, ready to paste: ``'gguftool merge "a b.gguf" -o NEW.gguf'``."""
    return f"'{' '.join(('gguftool', *map(shell_word, words)))}'"


def listed(items: list[str] | tuple[str, ...], limit: int = 20) -> str:
    """Join printable forms of `items` with commas; items past `limit` are only counted."""
    shown = ", ".join(printable(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"


def joined_problems(problems: list[str] | tuple[str, ...], limit: int = 20) -> str:
    """Join whole sentences with semicolons; those past `limit` are only counted."""
    shown = "; ".join(problems[:limit])
    return shown if len(problems) <= limit else f"{shown}; and {len(problems) - limit:,} more"


def did_you_mean(wanted: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar of `names`, or an empty text."""
    if len(wanted) > _MAX_SHOWN:
        return ""
    known = [name for name in dict.fromkeys(names) if len(name) <= _MAX_SHOWN][:_MAX_COMPARED]
    near = [name for name in known if name.lower() == wanted.lower() or (wanted and name.endswith(f".{wanted}"))][:3]
    if not near:
        from difflib import get_close_matches  # noqa: PLC0415 - only for typos

        near = get_close_matches(wanted, known, n=1) or _beginning_with(wanted, known)
    quoted = " or ".join(f"'{printable(name)}'" for name in near)
    return f"; did you mean {quoted}?" if near else ""


def _beginning_with(start: str, names: Iterable[str]) -> list[str]:
    """The first few of `names` that begin with `start`, if that is more than a letter."""
    return [name for name in names if len(start) > 1 and name.lower().startswith(start.lower())][:3]


class Notes:
    """Problems and remarks, collected so that all are reported at once: reason -> names that it applies to."""

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {}
        self.remarks: dict[str, list[str]] = {}

    def problem(self, reason: str, name: str) -> None:
        """Add a reason why the request is impossible, and a name that it applies to."""
        self.problems.setdefault(reason, []).append(name)

    def remark(self, reason: str, name: str) -> None:
        """Add a message for the user, and a name that it applies to."""
        self.remarks.setdefault(reason, []).append(name)


def grouped(reasons: Mapping[str, list[str]], limit: int = 8) -> tuple[str, ...]:
    """One line for each reason, with at most `limit` of the names that it applies to."""
    return tuple(f"{reason}: {listed(names, limit)}" for reason, names in reasons.items())
