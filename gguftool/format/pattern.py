"""Regular expressions of recipes: extended ones as in bash, searched unanchored in tensor names.

Most of the syntax is the same in Python's `re`; the rest is translated: POSIX classes (``[[:digit:]]``), ``.`` that
matches any character, ``$`` that matches only at the very end.

Patterns and names come from strangers, and `re` backtracks.  So lengths are bounded, and a pattern is refused if it
repeats a group that can match in several ways, which takes twice the time with each character (``(a*)*``,
``(a|aa)+``).  Other patterns take at worst a power of the length of the name for each combination of their choices.
So a pattern with choices or parts of variable length (``.*``, ``[0-9]+``) searches only the start of a name: the first
256 characters, or fewer if it has many such parts.  It is refused if even 63 would cost too much (engines refuse names
of 64 bytes and more).  A search that still takes `MAX_SECONDS` is given up.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache, partial
from itertools import chain, islice

from gguftool.errors import PlanError, did_you_mean, printable

MAX_PATTERN = 4096  # characters; a rule that lists every layer of a large model has a few hundred
MAX_STEPS = 250_000_000  # of one search at worst, by `_bounds`; they take about 1 s
_SEARCHED = (256, 127, 63)  # characters of a name that a pattern with choices or variable length may search
_TIMED = 10**5  # steps at worst from which searches are timed
_LIKE = 5000  # names that a pattern without a match is compared with, before their parts
MAX_SECONDS = 5.0  # time limit of one pattern, over all names

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
    """A pattern that is not a regular expression, or could run forever; the text says why."""


class NamePattern:
    """A compiled pattern; `search(name)` is true if it is in `name`, and raises `PlanError` if that takes too long."""

    __slots__ = ("search",)

    def __init__(self, pattern: str, regex: re.Pattern[str], searched: int | None, steps: int) -> None:
        """`searched`: characters of a name, or None for all; `steps` of a search at worst."""
        search = regex.search if searched is None else partial(regex.search, endpos=searched)
        self.search: Callable[[str], object] = _timed(pattern, search) if steps > _TIMED else search


def _bounds(repeats: int, ways: int) -> tuple[int | None, int]:
    """The characters of a name to search, and the steps that this takes at worst.

    That is: every split of the characters among the parts of variable length, for every combination of choices.
    """
    for length in _SEARCHED:
        steps = ways * math.comb(length + repeats + 1, repeats + 1)
        if steps <= MAX_STEPS:
            return (length if repeats or ways > 1 else None), steps
    raise BadPatternError(
        "has too many choices and parts of variable length (| * + ?), which can take forever: a limit of gguftool"
    )


def _timed(pattern: str, search: Callable[[str], object]) -> Callable[[str], object]:
    """Wrap `search` to give up `pattern` once all its searches together have taken `MAX_SECONDS`."""
    spent = 0.0

    def timed(name: str) -> object:
        nonlocal spent
        start = time.perf_counter()
        found = search(name)
        took = time.perf_counter() - start
        if took > 0.001:  # an honest search takes microseconds and is not counted
            spent += took
            if spent > MAX_SECONDS:
                raise PlanError(
                    f"the pattern '{printable(pattern)}' takes too long to search: over {MAX_SECONDS:.0f} s on these "
                    "names, a limit of gguftool. Use fewer parts of variable length (* + ?)"
                )
        return found

    return timed


@lru_cache(maxsize=16384)
def compile_pattern(pattern: str) -> NamePattern:
    """Compile a pattern of a recipe, to use its ``search``.

    Raises `BadPatternError`.
    """
    if len(pattern) > MAX_PATTERN:
        raise BadPatternError(f"has {len(pattern):,} characters, more than {MAX_PATTERN:,}, a limit of gguftool")
    translated, repeats, ways = _translate(pattern)
    bounds = _bounds(repeats, ways)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `re` warns of sets that other languages read differently
            return NamePattern(pattern, re.compile(translated, re.DOTALL), *bounds)
    except re.error as error:
        raise BadPatternError(f"is not a regular expression ({error.msg})") from None
    except (OverflowError, RecursionError):
        raise BadPatternError("repeats or nests too often") from None


class _Group:
    """An open group: the ways in which it can match, and whether its content has a repeat or a choice."""

    def __init__(self) -> None:
        self.alternatives = 0  # the ways of the alternatives before this one
        self.ways = 1  # of the alternative being read
        self.free = False

    @property
    def total(self) -> int:
        return self.alternatives + self.ways


def _translate(pattern: str) -> tuple[str, int, int]:
    """Translate `pattern` to the syntax of Python's `re`; also count its parts of variable length and its choices.

    Raises `BadPatternError` for an unknown POSIX class, and for a repeat of a group that can match in several ways.
    """
    out: list[str] = []
    groups = [_Group()]
    closed = False  # whether the token before closed a group with a repeat or a choice
    repeats = 0
    for token in _TOKEN.finditer(pattern):
        text, kind = token[0], token.lastgroup
        if kind == "repeat" and closed:
            raise BadPatternError(
                "repeats a group that holds a repeat or a choice, which can take forever: a limit of gguftool"
            )
        closed = False
        group = groups[-1]
        repeats += kind == "repeat" and not text[1:-1].isdigit()
        group.ways *= 2 if kind == "maybe" else 1
        if kind in ("repeat", "maybe", "choice"):
            group.free = True
        if kind == "choice":
            group.alternatives, group.ways = group.total, 1
        elif kind == "open":
            if _VERBOSE.match(text):
                raise BadPatternError("sets verbose mode (?x), in which blanks vanish and repeats cannot be counted")
            groups.append(_Group())
        elif kind == "close" and len(groups) > 1:
            inner = groups.pop()
            closed = inner.free
            groups[-1].free |= closed
            groups[-1].ways *= inner.total
        out.append(_python_form(kind, text))
    return "".join(out), repeats, groups[0].total


def _python_form(kind: str | None, text: str) -> str:
    if kind == "end":
        return r"\Z"
    return _POSIX_CLASS.sub(_class, text) if kind == "set" else text


def _class(found: re.Match[str]) -> str:
    try:
        return _CLASSES[found[1]]
    except KeyError:
        raise BadPatternError(f"uses [:{found[1]}:], which is not a POSIX class") from None


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


def near_tensor(pattern: str, names: Collection[str]) -> str:
    """The end of a message about a pattern that matches none of `names`: the name, or the part of one, that it is like.

    ``blk.0.atn_q.weight`` is like a whole name, ``atn_q`` like a part of many.
    """
    parts = (part for name in names for part in name.split(".") if not part.isdigit())
    return did_you_mean(pattern, dict.fromkeys(chain(islice(names, _LIKE), parts)))
