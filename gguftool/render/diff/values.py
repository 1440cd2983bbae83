"""Keys, values, shapes and notes of a diff in words, the same in every format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gguftool.analysis.diff.data import TensorData
from gguftool.analysis.diff.figures import Errors
from gguftool.analysis.diff.metadata import ArrayDifference, KVChange, KVSide
from gguftool.errors import printable
from gguftool.format.ftypes import FILE_TYPE_KEY, ftype_name

_TEXT_LIMIT = 72  # characters to show of a string in a table
_FLOAT_DIGITS = 7  # the precision of a float32: 1e-05 instead of 9.999999747378752e-06


def value_text(value: Any, *, exact: bool = False) -> str:
    """Format a scalar or a list; strings are quoted. Unless `exact`, long strings are cut and floats have 7 digits."""
    if isinstance(value, str):
        return f"'{printable(value, len(value) if exact else _TEXT_LIMIT)}'"
    if isinstance(value, float) and not exact:
        return f"{value:.{_FLOAT_DIGITS}g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(value_text(item, exact=exact) for item in value)}]"
    return str(value)


def type_text(change: KVChange) -> str:
    """Name the type of an entry, or both if they differ; the element type of an array is in brackets."""
    names = dict.fromkeys(_type(side) for side in (change.old, change.new) if side)
    return " -> ".join(names)


def _type(side: KVSide) -> str:
    return side.type if side.element_type is None else f"[{side.element_type}]"


def describe_change(change: KVChange) -> str:
    """Describe the difference in one entry, in a line."""
    if change.array:
        return _array_text(change.array)
    if change.text:
        text = change.text
        return f"{text.old_length:,} -> {text.new_length:,} characters, from character {text.at + 1:,} on: see below"
    if change.old and change.new:
        return _pair(change.key, change.old, change.new)
    side = change.old or change.new
    return side_text(change.key, side) if side else ""


def side_text(key: str, side: KVSide, *, exact: bool = False) -> str:
    """Format an entry's value on one side: a file type with its name, an array as far as the report holds it."""
    if side.element_type is not None:
        items = [value_text(item, exact=exact) for item in side.value] + ["..."] * side.truncated
        return f"[{', '.join(items)}]" + (f" ({side.count:,} entries)" if side.truncated else "")
    text = value_text(side.value, exact=exact)
    if key == FILE_TYPE_KEY and isinstance(side.value, int) and not isinstance(side.value, bool):
        return f"{text} ({ftype_name(side.value)})"
    return text


def _pair(key: str, old: KVSide, new: KVSide) -> str:
    if old.element_type is not None and new.element_type is not None:
        return f"{old.count:,} -> {new.count:,} entries of another type"
    texts = [side_text(key, side) for side in (old, new)]
    if texts[0] == texts[1]:
        texts = [side_text(key, side, exact=True) for side in (old, new)]
    if texts[0] == texts[1]:
        return f"{texts[0]} on both sides, stored differently"
    return " -> ".join(texts)


def _array_text(array: ArrayDifference) -> str:
    parts = []
    if array.entries:
        first = array.entries[0]
        texts = [value_text(first.old), value_text(first.new)]
        if texts[0] == texts[1]:
            texts = [value_text(first.old, exact=True), value_text(first.new, exact=True)]
        parts.append(f"entry {first.index} differs: {texts[0]} -> {texts[1]}")
        if array.differing > 1:
            parts.append(f"{array.differing - 1:,} more differ{'s' if array.differing == 2 else ''}")
    if array.old_count != array.new_count:
        parts.append(f"{array.old_count:,} -> {array.new_count:,} entries")
        if not array.entries:
            parts.append(f"the first {min(array.old_count, array.new_count):,} are the same")
    return "; ".join(parts)


def key_text(change: KVChange) -> str:
    """Name the key, with the number of its occurrence unless it is the first."""
    return change.key if change.occurrence == 1 else f"{change.key} (occurrence {change.occurrence})"


def dims_text(dims: Iterable[int]) -> str:
    """Format dims, row length first: ``256 x 768``."""
    return " x ".join(map(str, dims)) or "scalar"


def unweighted(one: TensorData) -> str:
    """Give the note on a tensor, and say if the imatrix lacks it."""
    return "; ".join(filter(None, (one.note, "not in the imatrix" if one.weighted is False else "")))


def with_not_finite(note: str, errors: Errors | None) -> str:
    """Add to `note` the count of NaN and infinite values that were left out."""
    parts = [note] if note else []
    if errors and errors.not_finite:
        parts.append(f"NaN or infinite: {errors.not_finite_old:,} in A, {errors.not_finite_new:,} in B, left out")
    return "; ".join(parts)
