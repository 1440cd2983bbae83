"""Regular expressions of recipes: the extended ones of bash, searched unanchored in tensor names.

Most of them is the same in Python's `re`; the rest is translated: POSIX classes (``[[:digit:]]``), ``.`` that matches
any character, ``$`` that matches only at the very end.

Patterns come from strangers and `re` backtracks.  So lengths are bounded, and a pattern is refused if it repeats a
group that can match in several ways, which takes twice the time with each character (``(a*)*``, ``(a|aa)+``), or if it
has more than `MAX_REPEATS` parts of free length (``.*``, ``.?``).  The others take at worst a small power of the length
of the name, and engines refuse names of 64 bytes and more.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache

MAX_PATTERN = 4096  # characters; a rule that lists every layer of a large model has a few hundred
MAX_REPEATS = 6  # of free length in one pattern: the sixth power of a name's length still takes little time

_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    "space": r"\s",
    "upper": "A-Z",
    "word": r"\w",
    "xdigit": "0-9A-Fa-f",
}
_TOKEN = re.compile(
    r"""
      (?P<escaped>\\.)
    | (?P<set>\[\^?\]?(?:\\.|\[:[a-z]*:\]|[^\]\\])*\])
    | (?P<open>\((?:\?[a-zA-Z:=!<]+)?)
    | (?P<close>\))
    | (?P<repeat>[*+]|\{[0-9]*,[0-9]*\}|\{[0-9]+\})
    | (?P<maybe>\?)
    | (?P<choice>\|)
    | (?P<end>\$)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")
_POSIX_CLASS = re.compile(r"\[:([a-z]*):\]")


class BadPatternError(ValueError):
    """A pattern that is not a regular expression, or could run for ever; the text says why."""


@lru_cache(maxsize=16384)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of a recipe for Python's `re`, to use its ``search``.

    Raises `BadPatternError`.
    """
    if len(pattern) > MAX_PATTERN:
        raise BadPatternError(f"has {len(pattern):,} characters, more than {MAX_PATTERN:,}")
    translated = translate(pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `re` warns of sets that other languages read differently
            return re.compile(translated, re.DOTALL)
    except re.error as error:
        raise BadPatternError(f"is not a regular expression ({error.msg})") from None
    except (OverflowError, RecursionError):
        raise BadPatternError("repeats or nests too often") from None


def translate(pattern: str) -> str:
    """Translate `pattern` to the syntax of Python's `re`.

    Raises `BadPatternError` for an unknown POSIX class, and for a repeat of a group that can match in several ways.
    """
    out: list[str] = []
    ways = [False]  # for each open group: whether its content can match in several ways
    closed = False  # whether the token before closed such a group
    repeats = 0
    for token in _TOKEN.finditer(pattern):
        text, kind = token[0], token.lastgroup
        if kind == "repeat" and closed:
            raise BadPatternError("repeats a group that holds a repeat or a choice, which can take for ever")
        closed = False
        repeats += kind == "maybe" or (kind == "repeat" and not text[1:-1].isdigit())
        if repeats > MAX_REPEATS:
            raise BadPatternError(f"has more than {MAX_REPEATS} parts of free length (* + ?), which can take for ever")
        if kind in ("repeat", "maybe", "choice"):
            ways[-1] = True
        elif kind == "open":
            if _VERBOSE.match(text):
                raise BadPatternError("sets verbose mode (?x), in which blanks vanish and repeats cannot be counted")
            ways.append(False)
        elif kind == "close" and len(ways) > 1:
            closed = ways.pop()
            ways[-1] |= closed
        out.append(_python_form(kind, text))
    return "".join(out)


def _python_form(kind: str | None, text: str) -> str:
    if kind == "end":
        return r"\Z"
    return _POSIX_CLASS.sub(_class, text) if kind == "set" else text


def _class(found: re.Match[str]) -> str:
    try:
        return _CLASSES[found[1]]
    except KeyError:
        raise BadPatternError(f"uses [:{found[1]}:], which is no POSIX class") from None


def literal(text: str) -> str:
    r"""Return a pattern that matches only `text`, for every recipe format.

    ``=``, ``,``, ``#``, blanks and control characters, which have a meaning in the formats, become ``\xNN``.
    """
    return "".join(_literal_char(char) for char in text)


def _literal_char(char: str) -> str:
    if char in "=,#" or char.isspace() or ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0:
        return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
    return "\\" + char if char in ".^$*+?()[]{}|\\" else char


def number_set(numbers: Iterable[int]) -> str:
    """Return a pattern for exactly these decimal numbers, in syntax that every regex language has: ``([37]|1[0-5])``.

    Raises `ValueError` without numbers.
    """
    by_length: dict[int, set[str]] = {}
    for number in set(numbers):
        by_length.setdefault(len(str(number)), set()).add(str(number))
    if not by_length:
        raise ValueError("no numbers")
    return _either([way for length in sorted(by_length) for way in _ways(by_length[length])])


def _ways(texts: set[str]) -> list[str]:
    """Return patterns for texts of one length, with one class for first digits that have the same continuations."""
    if texts == {""}:
        return [""]
    tails: dict[str, set[str]] = {}
    for text in texts:
        tails.setdefault(text[0], set()).add(text[1:])
    digits: dict[frozenset[str], list[str]] = {}
    for digit in sorted(tails):
        digits.setdefault(frozenset(tails[digit]), []).append(digit)
    return [_digit_class(alike) + _either(_ways(set(tail))) for tail, alike in digits.items()]


def _either(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"({'|'.join(ways)})"


def _digit_class(digits: list[str]) -> str:
    """Return a sorted list of digits as one pattern: ``3``, ``[37]``, ``[0-5]``."""
    if len(digits) == 1:
        return digits[0]
    runs: list[list[int]] = []
    for digit in map(int, digits):
        if runs and runs[-1][-1] == digit - 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    parts = (f"{run[0]}-{run[-1]}" if len(run) > 2 else "".join(map(str, run)) for run in runs)
    return f"[{''.join(parts)}]"
