"""How two long texts differ: as lines with context, or as the first place that differs.

difflib matches the lines, and its cost grows at least with the square of their number. So texts with very many lines
(no chat template has them) or with very long lines (which would not show what differs) get only the first place that
differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher

from gguftool.record import record

_MAX_LINES = 2000  # of both sides, between the common start and the common end
_MAX_LINE = 500  # characters; some templates are written on one line
_CONTEXT = 3  # lines around a change
_BEFORE, _AFTER = 30, 60  # characters of an excerpt, before and from the first difference


@record
class TextDifference:
    """Two texts: their lengths in characters, the first place that differs, and excerpts of both from there.

    `lines` is a unified diff without file names, empty if lines are too long or too many to compare.
    """

    at: int
    old_length: int
    new_length: int
    old_excerpt: str
    new_excerpt: str
    lines: tuple[str, ...]


def text_difference(old: str, new: str) -> TextDifference:
    """Compare two texts; `text_difference(b, a)` gives the same result with the sides exchanged."""
    at = _common_start(old, new)
    start = max(0, at - _BEFORE)
    return TextDifference(
        at=at,
        old_length=len(old),
        new_length=len(new),
        old_excerpt=old[start : at + _AFTER],
        new_excerpt=new[start : at + _AFTER],
        lines=tuple(_unified(old.split("\n"), new.split("\n"))),
    )


def _common_start(old: str, new: str) -> int:
    """Find the length of the common start by bisection: comparing slices is fast."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _unified(old: list[str], new: list[str]) -> Iterator[str]:
    swap = new < old  # always match in the same order, because difflib's answer depends on it
    for group in _groups(new, old) if swap else _groups(old, new):
        spans = [(after, before) if swap else (before, after) for before, after in group]
        yield f"@@ -{_range(s[0] for s in spans)} +{_range(s[1] for s in spans)} @@"
        for left, right in spans:
            if old[left] == new[right]:
                yield from (f" {line}" for line in old[left])
            else:
                yield from (f"-{line}" for line in old[left])
                yield from (f"+{line}" for line in new[right])


def _groups(first: list[str], second: list[str]) -> Iterator[list[tuple[slice, slice]]]:
    """Yield groups of line ranges that belong together, or nothing if the texts are not comparable by line.

    Only the lines between the common start and the common end (and their context) are matched.
    """
    shortest = min(len(first), len(second))
    start = next((i for i in range(shortest) if first[i] != second[i]), shortest)
    room = shortest - start
    end = next((i for i in range(room) if first[-1 - i] != second[-1 - i]), room)
    changed = [line for side in (first, second) for line in side[start : len(side) - end]]
    if len(changed) > _MAX_LINES or any(len(line) > _MAX_LINE for line in changed):
        return
    skip = max(0, start - _CONTEXT)
    left, right = (side[skip : len(side) - max(0, end - _CONTEXT)] for side in (first, second))
    for group in SequenceMatcher(None, left, right).get_grouped_opcodes(_CONTEXT):
        yield [(slice(skip + i1, skip + i2), slice(skip + j1, skip + j2)) for _, i1, i2, j1, j2 in group]


def _range(spans: Iterator[slice]) -> str:
    """Format `start,length` as unified diffs count: from 1; for an empty range, the line before it."""
    found = list(spans)
    start, stop = found[0].start, found[-1].stop
    return f"{start + 1 if stop > start else start},{stop - start}"
