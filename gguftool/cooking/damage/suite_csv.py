"""Read the calibration files of GGUF-Tool-Suite: `kld_results.csv` or `ppl_results.csv`, and the curve in `group0/`.

    QTYPE,blk.0.attn_k.weight,blk.0.attn_output.weight, ...      one column per tensor
    iq1_kt,0.015437,0.015672, ...                                the whole model with that tensor at that type

How to read the numbers:

- They contain the run's own floor: the divergence of the baseline with nothing changed.  The floor is estimated by the
  smallest number (for perplexities, which scatter both ways, by the 5th percentile) and subtracted, so a file with any
  floor added gives the same plan.
- ``404`` and an empty cell mean that the tensor was not measured; 0 means that the engine does not use it.
- Numbers off the engine's grid of six decimals, in a file of numbers on that grid, were interpolated.
- Tensors that were measured as one group all have the same number.  It belongs to the group, not to each tensor.

Sources: collect_ppl_results.sh, fill_missing_metric.py and docs/quant_assign.md of GGUF-Tool-Suite, and its 26 files.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from gguftool.cooking.damage.evidence import MOST, Observation
from gguftool.cooking.damage.typical import log_typical, typical_error
from gguftool.errors import FormatError, LimitError, joined_problems, printable
from gguftool.format.ggml import find_type
from gguftool.record import record

MAX_FILE = 4 << 20  # bytes; published files have 20 KB
LEAST = 1e-5  # nats: numbers have six decimals, and the last is noise
_ERRORS = 3  # standard errors; a number closer to the floor cannot be told from it
_NOT_MEASURED = frozenset({"", "404", "404.0", "404%", "404.0%"})
_QTYPE = "QTYPE"
_GROUP = re.compile(r"group[0-9]+")
_LAYER = re.compile(r"blk\.([0-9]{1,6})\.(.+)")
_GRID = 1e6  # the engine prints multiples of 1 / this
_ON_GRID = 0.3  # if at least this share of the numbers is on the grid, the others count as interpolated
_BASES = 32  # tensors of a layer that may be one group; models have up to 20, a hostile file any number
_SAME = 0.5  # two tensors of a layer are one group if their numbers are equal in at least this share of layers


@record
class Cell:
    """One number of a file; `percent`: it is a signed change in percent."""

    value: float
    percent: bool


@record
class Table:
    """One file: for each row its type and the numbers by column; cells without a measurement are left out."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, Mapping[str, Cell]], ...]


@record
class Readings:
    """The observations of a file, and remarks on them for the user."""

    observations: tuple[Observation, ...]
    remarks: tuple[str, ...]


def looks_like_suite(data: bytes) -> bool:
    """Whether a file begins like the suite's CSVs."""
    return data.lstrip(b"\xef\xbb\xbf \t\"'")[:6].upper() == b"QTYPE,"


def parse_table(data: bytes, name: str) -> Table:
    """Parse a file; one `FormatError` names every cell that is not a number, and every type that does not exist."""
    if len(data) > MAX_FILE:
        raise LimitError(f"has {len(data):,} bytes; gguftool reads a table of at most {MAX_FILE:,}", source=name)
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig", "replace")))
    try:
        lines = [[cell.strip() for cell in line] for line in reader if line]
    except csv.Error as error:
        raise FormatError(f"is not a CSV: {error}", source=name) from None
    if not lines or lines[0][0].upper() != _QTYPE or len(lines[0]) < 2:
        raise FormatError("does not begin with QTYPE and tensor names, like files of GGUF-Tool-Suite", source=name)
    columns, problems, rows = tuple(lines[0][1:]), [], []
    doubled = sorted(column for column, count in Counter(columns).items() if count > 1)
    problems += [f"the column {printable(column)} exists twice" for column in doubled]
    for number, line in enumerate(lines[1:], start=2):
        traits = find_type(line[0])
        if traits is None:
            problems.append(f"line {number}: '{printable(line[0], 80)}' is not a type")
        elif len(line) != len(columns) + 1:
            problems.append(f"line {number}: {len(line)} fields, but the first line has {len(columns) + 1}")
        else:
            rows.append((traits.alias, _cells(columns, line[1:], number, problems)))
    if problems:
        raise FormatError(joined_problems(problems), source=name)
    return Table(name=name, columns=columns, rows=tuple(rows))


def _cells(columns: Sequence[str], texts: Sequence[str], number: int, problems: list[str]) -> dict[str, Cell]:
    cells = {}
    for column, text in zip(columns, texts, strict=True):
        if text in _NOT_MEASURED:
            continue
        percent = text.endswith("%")
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = math.nan
        if not abs(value) <= MOST or (value < 0 and not percent):
            problems.append(f"line {number}, {printable(column, 80)}: '{printable(text, 40)}' is not such a number")
        else:
            cells[column] = Cell(value=value, percent=percent)
    return cells


# --- sensitivities ---------------------------------------------------------------------------------------------------


def is_perplexity(table: Table) -> bool:
    """Whether the numbers are perplexities: these are above 1, and divergences of single tensors are far below."""
    values = [cell.value for _, cells in table.rows for cell in cells.values() if not cell.percent and cell.value > 0]
    percent = any(cell.percent for _, cells in table.rows for cell in cells.values())
    return percent or (bool(values) and median(values) > 1 and min(values) > 0.9)


def readings_of(table: Table) -> Readings:
    """Turn a table into observations without its floor, in nats of KLD or of ln PPL."""
    observations: list[Observation] = []
    remarks: list[str] = []
    perplexity = is_perplexity(table)
    groups = _groups(table)
    for qtype, cells in table.rows:
        traits = find_type(qtype)
        values = {name: _nats(cell, perplexity) for name, cell in cells.items() if not _GROUP.fullmatch(name)}
        if traits is not None and traits.kind == "ternary":
            remarks.append(f"{table.name}: the row {qtype} is left out: its type is only for ternary weights")
        elif values:
            made, notes = _row(qtype, values, groups, perplexity)
            observations += made
            remarks += [f"{table.name}, {qtype}: {note}" for note in notes]
    if not observations:
        raise FormatError("holds no number for any tensor at a usable type", source=table.name)
    return Readings(observations=tuple(observations), remarks=tuple(remarks))


def _nats(cell: Cell, perplexity: bool) -> float:
    if cell.percent:
        return math.log1p(max(cell.value, -99.0) / 100)
    return math.log(max(cell.value, 1e-9)) if perplexity else cell.value


def _row(
    qtype: str, values: Mapping[str, float], groups: Mapping[str, str], perplexity: bool
) -> tuple[list[Observation], list[str]]:
    """The observations of one type, without the floor."""
    unused = {name for name, value in values.items() if value == 0 and not perplexity}
    used = sorted(value for name, value in values.items() if name not in unused)
    filled = set() if perplexity else _interpolated(values)
    twentieth = used[len(used) // 20] if used else 0.0
    floor = (twentieth if perplexity else used[0]) if used else 0.0
    noise = _rounded(max(1 / _GRID, (twentieth - used[0]) / 2)) if used else 1 / _GRID
    bound = max(LEAST, _ERRORS * noise)
    made = []
    for names in _measured_together(values, groups):
        excess = _rounded(values[names[0]] - floor)
        low = excess < bound
        made.append(
            Observation(
                tensors=names,
                type=qtype,
                value=LEAST if names[0] in unused else bound if low else excess,
                error=noise,
                censored=low,
                interpolated=names[0] in filled,
            )
        )
    notes = [_floor_note(floor, used, perplexity)] if used else []
    lows = sum(one.censored for one in made)
    notes += [f"{lows:,} of {len(made):,} cannot be told from the floor: the prior decides for them"] if lows else []
    notes += [f"{len(filled):,} numbers were interpolated, and are treated as such"] if filled else []
    together = sum(len(one.tensors) for one in made if len(one.tensors) > 1)
    notes += [f"{together:,} tensors were measured in groups, which share one number each"] if together else []
    return made, notes


def _rounded(value: float) -> float:
    """`value` without the rounding error of subtracting: an added floor must not move a value across a bound."""
    return round(value, 10)


def _floor_note(floor: float, used: Sequence[float], perplexity: bool) -> str:
    if perplexity:
        return f"a baseline of {math.exp(floor):.6g} is subtracted (in ln PPL)"
    share = floor / median(used) if median(used) > 0 else 0.0
    return f"a floor of {floor:.6f} is subtracted, {share:.0%} of the median"


def _interpolated(values: Mapping[str, float]) -> set[str]:
    """The names with numbers off the engine's grid, if enough others are on it."""
    off = {name for name, value in values.items() if abs(value * _GRID - round(value * _GRID)) > 1e-3}
    return off if len(values) - len(off) >= _ON_GRID * len(values) else set()


def _groups(table: Table) -> dict[str, str]:
    """For each base of a layer (``attn_k.weight``), the first base that was measured with it in most layers."""
    layers: dict[str, dict[str, float]] = {}
    for at, (_, cells) in enumerate(table.rows):
        for name, cell in cells.items():
            found = _LAYER.fullmatch(name)
            if found and cell.value:
                layers.setdefault(f"{at}.{found[1]}", {})[found[2]] = cell.value
    together: dict[tuple[str, str], list[bool]] = {}
    for bases in layers.values():
        names = list(bases)[:_BASES]
        for at, first in enumerate(names):
            for second in names[at + 1 :]:
                together.setdefault((first, second), []).append(bases[first] == bases[second])
    leaders: dict[str, str] = {}
    for (first, second), equal in together.items():
        if len(equal) > 1 and sum(equal) >= _SAME * len(equal):
            leaders.setdefault(second, leaders.get(first, first))
    return leaders


def _measured_together(values: Mapping[str, float], groups: Mapping[str, str]) -> Iterable[tuple[str, ...]]:
    """The names; those of one group with the same number are together."""
    found: dict[tuple[str, str, float] | str, list[str]] = {}
    leaders = frozenset(groups.values())
    for name, value in values.items():
        layer = _LAYER.fullmatch(name)
        leader = layer and (groups.get(layer[2]) or (layer[2] if layer[2] in leaders else None))
        key = (layer[1], leader, value) if layer and leader and value else name
        found.setdefault(key, []).append(name)
    return (tuple(names) for names in found.values())


# --- the curve -------------------------------------------------------------------------------------------------------


def curve_of(table: Table) -> tuple[dict[str, float], tuple[str, ...]]:
    """The damage of the whole model at each type, without its floor; and remarks.

    Types at or near the floor, and those without a number, get typical values on the scale of the others.
    Raises `FormatError` for a file without a column of the whole model.
    """
    column = next((name for name in table.columns if name.lower() == "group0"), None)
    if column is None:
        raise FormatError(
            "has no column group0: a curve has one number for the whole model at each type", source=table.name
        )
    cells = {qtype: cells[column] for qtype, cells in table.rows if column in cells}
    perplexity = is_perplexity(
        Table(name=table.name, columns=(column,), rows=tuple((q, {column: c}) for q, c in cells.items()))
    )
    quantized = {
        qtype: _nats(cell, perplexity)
        for qtype, cell in cells.items()
        if (traits := find_type(qtype)) is not None and traits.is_quantized and traits.kind != "ternary" and cell.value
    }
    if len(quantized) < 2:
        raise FormatError("has fewer than two types with a number, so it is not a curve", source=table.name)
    floor = min(quantized.values())
    excess = {qtype: _rounded(value - floor) for qtype, value in quantized.items()}
    above = {qtype: value for qtype, value in excess.items() if value > LEAST}
    if not above:
        raise FormatError("gives all types the same number, so it is not a curve", source=table.name)
    # The floor is the number of the best type. Near it the difference says nothing, so types get typical values there.
    scale = median(math.log(value) - log_typical(qtype) for qtype, value in above.items())
    curve = {qtype: value + math.exp(scale + _best(quantized)) for qtype, value in above.items()}
    remarks = [f"{table.name}: a floor of {math.exp(floor) if perplexity else floor:.6g} is subtracted from the curve"]
    missing = sorted({qtype for qtype, _ in table.rows} - set(cells))
    if missing:
        remarks.append(f"{table.name}: no number for {', '.join(missing)}; typical ones are used")
    return curve, tuple(remarks)


def _best(quantized: Mapping[str, float]) -> float:
    """The typical loss of the type at the floor, as a logarithm: the subtracted floor contained it."""
    return log_typical(min(quantized, key=lambda qtype: quantized[qtype]))


def scaled_typical(curve: Mapping[str, float], qtype: str) -> float:
    """A typical error on the scale of `curve`, for a type that it lacks."""
    scale = median(math.log(value) - log_typical(known) for known, value in curve.items())
    return math.exp(scale) * typical_error(qtype)
