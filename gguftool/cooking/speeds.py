"""How slow types are, from benchmarks: llama-bench's CSV, or a `tg_results.csv` of GGUF-Tool-Suite's sweeps.

Generating a token reads the weights once, so tokens per second times bytes is the speed at which a type is read.  The
factor of a type is the time for a byte of it, relative to a byte of the fastest type in the file.

Source: llama.cpp tools/llama-bench/llama-bench.cpp (get_fields), GGUF-Tool-Suite collect_sweep_results.sh.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gguftool.cooking.damage.suite_csv import MAX_FILE, looks_like_suite, parse_table
from gguftool.cooking.mix import Slow
from gguftool.errors import FormatError, LimitError
from gguftool.format.ggml import find_type

_MOST = 1_000_000  # the largest factor; --slow has the same limit


def slowness_of(data: bytes, name: str, device: str) -> tuple[Slow, ...]:
    """The factors of all types in a benchmark of `device`; raises `FormatError` if it holds none."""
    if len(data) > MAX_FILE:
        raise LimitError(f"has {len(data):,} bytes; gguftool reads a table of at most {MAX_FILE:,}", source=name)
    found: dict[str, float] = {}
    for type_text, speed in _sweep(data, name) if looks_like_suite(data) else _llama_bench(data, name):
        found[type_text] = max(speed, found.get(type_text, 0.0))
    if not found:
        raise FormatError(
            "holds no speeds of types; expected the CSV of 'llama-bench -o csv' with -n, or a tg_results.csv",
            source=name,
        )
    fastest, slowest = max(found.values()), min(found.values())
    if not 0 < fastest < _MOST * slowest:
        raise FormatError(
            f"has a speed that is {_MOST:,} times another or more: not a benchmark of one device", source=name
        )
    return tuple(Slow(type=text, device=device, factor=fastest / speed) for text, speed in found.items())


def _llama_bench(data: bytes, name: str) -> Iterator[tuple[str, float]]:
    """Types and their bytes read per second, from rows that generate tokens and do not process a prompt."""
    for row in _rows(data, name):
        type_text = _type_in(row.get("model_type") or "")
        size, speed = _number(row, "model_size"), _number(row, "avg_ts")
        generates = _number(row, "n_gen") > 0 and not _number(row, "n_prompt") > 0
        if type_text is not None and generates and size > 0 and speed > 0:
            yield type_text, size * speed


def _rows(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from csv.DictReader(io.StringIO(data.decode("utf-8-sig", "replace")))
    except csv.Error as error:
        raise FormatError(f"is not a CSV: {error}", source=name) from None


def _type_in(words: str) -> str | None:
    """The type in text such as ``llama 8B Q4_K - Medium``."""
    found = (traits for word in words.split() if (traits := find_type(word)) is not None)
    return next((traits.alias for traits in found), None)


def _number(row: Mapping[str, object], key: str) -> float:
    try:
        value = float(str(row.get(key)))
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _sweep(data: bytes, name: str) -> Iterator[tuple[str, float]]:
    """Types and relative speeds: tokens per second times bits per weight."""
    for type_text, cells in parse_table(data, name).rows:
        traits = find_type(type_text)
        cell = next((cells[column] for column in cells if column.lower() == "group0"), None)
        if traits is not None and cell is not None and cell.value > 0 and not cell.percent:
            yield type_text, cell.value * traits.bits_per_weight
