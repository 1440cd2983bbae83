"""tensors.map: one line per shard with its sha256, tensor, shape and type, as GGUF-Tool-Suite publishes them.

    M-00002-of-00022.gguf:<sha256 of the file>:token_embd.weight:shape=(256, 272):dtype=q4_k:elements=69632:bytes=39168

Fields 6 and 7 are hints: 11% of the published lines leave out the row metadata of ik types, and some count padding.
A hash of zeros, or an empty one, means that the file was not hashed. The first shard of a set is not in its map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gguftool.errors import FormatError, joined_problems, printable
from gguftool.format.ggml import find_type
from gguftool.record import record

MAX_LINES = 65_535  # a set has no more shards
_LINE_END = re.compile(r"\r\n|\r|\n")  # not str.splitlines: names may contain characters at which it splits
_NUMBER = re.compile(r"[0-9]{1,19}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@record
class MapEntry:
    """One line. `sha256` is of the whole shard file, or None if unknown; `shape` in ggml order."""

    file: str
    sha256: str | None
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    nbytes: int
    imatrix: str | None = None

    @property
    def type_id(self) -> int | None:
        """The id of `dtype`, or None for an unknown type."""
        traits = find_type(self.dtype)
        return traits.id if traits else None


def parse_map(text: str, source: str) -> tuple[MapEntry, ...]:
    """Read a map; lines of 7 or 8 fields. Raises one `FormatError` that names every line it cannot read."""
    entries, problems = [], []
    lines = _LINE_END.split(text.removeprefix("\ufeff"))
    if len(lines) > MAX_LINES:
        raise FormatError(f"{len(lines):,} lines; a map has at most {MAX_LINES:,}", source=source)
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            entry = _parse_line(line.strip())
            if isinstance(entry, str):
                problems.append(f"line {number}: {entry}")
            else:
                entries.append(entry)
    if problems:
        raise FormatError(f"not a tensors.map: {joined_problems(problems, 10)}", source=source)
    return tuple(entries)


def render_map(entries: Iterable[MapEntry]) -> str:
    """Write a map; the inverse of `parse_map`. Raises `FormatError` for a name with ``:`` or a line break."""
    return "".join(_render_line(entry) + "\n" for entry in entries)


def _parse_line(line: str) -> MapEntry | str:
    """Parse one line; return the entry, or the problem as text."""
    fields = line.split(":")
    if len(fields) not in (7, 8):
        return f"{len(fields)} fields, expected 7 or 8 separated by ':' ({printable(line, 60)!r})"
    file, sha256, tensor = fields[:3]
    named = dict(field.partition("=")[::2] for field in fields[3:])
    shape = _parse_shape(named.get("shape", ""))
    numbers = named.get("elements", ""), named.get("bytes", "")
    if shape is None or "dtype" not in named or not all(map(_NUMBER.fullmatch, numbers)):
        return f"expected shape=(..):dtype=..:elements=N:bytes=N ({printable(line, 60)!r})"
    known = _SHA256.fullmatch(sha256.lower()) is not None and set(sha256) != {"0"}
    if sha256 and set(sha256) != {"0"} and not known:
        return f"'{printable(sha256, 70)}' is not a sha256"
    return MapEntry(
        file=file,
        sha256=sha256.lower() if known else None,
        tensor=tensor,
        shape=shape,
        dtype=named["dtype"].lower(),
        elements=int(numbers[0]),
        nbytes=int(numbers[1]),
        imatrix=named.get("imatrix") or None,
    )


def _parse_shape(text: str) -> tuple[int, ...] | None:
    """Read ``(256, 272)`` or ``(4096,)``; None for other text."""
    if not (text.startswith("(") and text.endswith(")")):
        return None
    dims = [dim.strip() for dim in text[1:-1].split(",")]
    if dims[-1] == "":
        dims.pop()  # the empty text after a tuple's last comma
    return tuple(map(int, dims)) if all(map(_NUMBER.fullmatch, dims)) else None


def _render_line(entry: MapEntry) -> str:
    for text in (entry.file, entry.tensor):
        if any(char in text for char in ":\r\n"):
            raise FormatError(f"'{printable(text)}' contains ':' or a line break, which a tensors.map cannot express")
    shape = f"({entry.shape[0]},)" if len(entry.shape) == 1 else f"({', '.join(map(str, entry.shape))})"
    fields = [
        entry.file,
        entry.sha256 or "0" * 64,
        entry.tensor,
        f"shape={shape}",
        f"dtype={entry.dtype.lower()}",
        f"elements={entry.elements}",
        f"bytes={entry.nbytes}",
    ]
    return ":".join([*fields, f"imatrix={entry.imatrix}"] if entry.imatrix else fields)
