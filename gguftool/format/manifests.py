r"""Manifests of hashes in the formats of sha256sum and llama-gguf-hash.

    3955de92...  model.gguf                           sha256sum: a line with escapes in its name starts with \
    sha256    3955de92...  model.gguf:output.weight   llama-gguf-hash: the line of model.gguf is over all its tensors

Sources: GNU coreutils src/digest.c (print_filename, filename_unescape); llama.cpp examples/gguf-hash/gguf-hash.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gguftool.errors import FormatError, printable

_LLAMA_LINE = re.compile(r"(?P<algorithm>[a-z0-9]+)\s+(?P<hex>[0-9a-fA-F-]+)\s\s(?P<name>.+)")
_SUM_LINE = re.compile(r"(?P<escaped>\\?)(?P<hex>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {escape: char for char, escape in _ESCAPES.items()}


def manifest_lines(text: str) -> list[str]:
    """Return the lines without blank ones, comments and BOM."""
    lines = re.split(r"\r?\n", text.removeprefix("\ufeff"))
    return [line for line in lines if line.strip() and not line.startswith("#")]


def is_sums(line: str) -> bool:
    """Whether `line` is one of sha256sum."""
    return _SUM_LINE.fullmatch(line) is not None


def is_tensor_hashes(line: str) -> bool:
    """Whether `line` is one of llama-gguf-hash."""
    return _LLAMA_LINE.fullmatch(line) is not None


def render_sum(name: str, sha256: str) -> str:
    """Write one line, without line break, for ``sha256sum --check``."""
    escaped = re.sub(r"[\\\n\r]", lambda found: _ESCAPES[found[0]], name)
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}"


def parse_sums(lines: Sequence[str], source: str) -> dict[str, str]:
    """Parse lines of sha256sum to name -> sha256; raise `FormatError` for any other line, and if two differ."""
    expected: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _SUM_LINE.fullmatch(line) or _no_line(line, number, source)
        name = match["name"]
        if match["escaped"]:
            name = re.sub(r"\\[\\nr]", lambda found: _UNESCAPES[found[0]], name)
        _promise(expected, name, match["hex"], number, source)
    return expected


def parse_tensor_hashes(lines: Sequence[str], source: str) -> Mapping[str, str]:
    """Parse lines of llama-gguf-hash to name -> sha256; skip those of other algorithms.

    Raises `FormatError` for any other line, if two differ about a name, and if no line has a sha256.
    """
    expected: dict[str, str] = {}
    others = {}
    for number, line in enumerate(lines, start=1):
        match = _LLAMA_LINE.fullmatch(line) or _no_line(line, number, source)
        if match["algorithm"] == "sha256":
            _promise(expected, match["name"], match["hex"], number, source)
        else:
            others[match["algorithm"]] = True
    if not expected:
        names = printable(", ".join(others), 80)
        raise FormatError(f"its hashes are {names}; only sha256 is checked (llama-gguf-hash --sha256)", source=source)
    return expected


def _promise(expected: dict[str, str], name: str, sha256: str, number: int, source: str) -> None:
    if expected.setdefault(name, sha256.lower()) != sha256.lower():
        raise FormatError(
            f"another hash of '{printable(name, 80)}' than in an earlier line; remove the wrong one",
            source=source,
            where=f"line {number}",
        )


def _no_line(line: str, number: int, source: str) -> re.Match[str]:
    raise FormatError(f"cannot be read: '{printable(line, 80)}'", source=source, where=f"line {number}")
