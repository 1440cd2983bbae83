"""Human units: parse and format sizes. Everywhere else, bytes are `int`."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from itertools import groupby

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)\s*(?P<unit>[KMGT]?I?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Parse bytes: ``48G`` is 48e9, ``48GiB`` 48 * 2^30, fractions are allowed; raise `ValueError` for other text."""
    match = _SIZE.fullmatch(text.strip())
    units = _DECIMAL | _BINARY
    if match is None or match["unit"].upper() not in units:
        raise ValueError(f"'{text}' is not a size; write 500M, 48G (powers of 1000) or 48GiB (powers of 1024)")
    whole, _, fraction = match["number"].partition(".")
    size: int = int(whole + fraction) * units[match["unit"].upper()] // 10 ** len(fraction)
    if size >= 1 << 63:
        raise ValueError(f"'{text[:40]}' is more than any file system holds")
    return size


def format_size(nbytes: int) -> str:
    """Format bytes in binary units with three significant digits: ``231 GiB``, ``1.21 MiB``, ``96 B``."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1024
        units.pop(0)
    if units[0] == "B":
        return f"{nbytes} B"
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f} {units[0]}"


def runs_text(numbers: Sequence[int], limit: int) -> str:
    """Format ascending numbers as runs: ``0-5, 8-13``; beyond `limit` runs, an ellipsis."""
    runs = []
    for _, pairs in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in pairs]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs[:limit]) + (", ..." if len(runs) > limit else "")


def format_float32(value: float) -> str:
    """Format a 32-bit float in the fewest digits that identify it: ``1e-05``, not 9.999999747378752e-06."""
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return repr(short)
    return repr(float(f"{value:.9g}"))


def format_count(number: int) -> str:
    """Format a count in decimal units: ``135 M``, ``671 B``."""
    size, units = float(number), ["", " K", " M", " B", " T"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    if not units[0]:
        return str(number)
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}{units[0]}"
