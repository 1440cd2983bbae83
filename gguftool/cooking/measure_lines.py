"""The file that `measure` writes and `plan` reads: one JSON object per line (docs/measuring.md).

Every line records what it was measured on, so that a later run knows which lines are its own. A line is appended as a
whole, after its measurement. An incomplete last line was left by a killed run, and is ignored.  Other bytes at the end
are an error: the next run would cut off data that is not ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from gguftool.cooking.damage.evidence import MOST
from gguftool.errors import FormatError, LimitError, printable
from gguftool.format.ggml import find_type
from gguftool.record import record

MAX_FILE = 1 << 30  # bytes; held in memory. 2,000 tensors at 20 types take 20 MB
LEAST_KLD = 1e-5  # nats: an engine prints six decimals, the last of which is rounding of its saved logits
ERRORS = 3  # standard errors; a smaller divergence cannot be told from zero
_BASIS = ("model", "text", "imatrix", "engine", "options")
_BEGIN = b'{"kind": "'  # starts each line
_ALWAYS = frozenset({"model", "imatrix"})
_T = TypeVar("_T")


@record
class Basis:
    """The basis of a measurement: hashes of model, text and imatrix, the engine's build, options that change numbers.

    A field is None if the line does not depend on it.
    """

    model: str
    text: str | None
    imatrix: str | None
    engine: str | None
    options: str | None
    gguftool: str

    def differences(self, other: Basis) -> list[str]:
        """The names of fields that differ, so that measurements of both do not belong together.

        Text, engine and options are compared only if both have them: the error of a type depends on none of them. The
        release of gguftool may differ.
        """
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in _BASIS)
        return [name for name, a, b in pairs if a != b and (name in _ALWAYS or None not in (a, b))]


@record
class Scores:
    """A comparison with the reference: mean over `tokens` scored, with standard errors over them.

    `kld` in nats; `same_top` is the share of equal top tokens, from 0 to 1. `by_chunk`: the divergence of each chunk,
    None if the engine prints too few decimals for it.
    """

    kld: float
    kld_se: float
    same_top: float
    same_top_se: float
    ppl: float
    ppl_se: float
    ppl_ratio: float
    ppl_ratio_se: float
    tokens: int
    chunks: int
    by_chunk: tuple[float, ...] | None


@record
class Carrier:
    """The type that held the values in the engine, and its own rounding error relative to theirs, squared."""

    type: str
    error: float


@record
class FloorLine:
    """The reference against itself; `base_ppl` is the perplexity that the saved logits have."""

    scores: Scores
    base_ppl: float
    basis: Basis


@record
class KldLine:
    """The model with the `tensors` of a `group` at one type, against the reference.

    `censored`: the divergence could not be told from the floor, and `scores.kld` is an upper bound.
    """

    group: str
    tensors: tuple[str, ...]
    type: str
    censored: bool
    scores: Scores
    carrier: Carrier | None
    basis: Basis

    @property
    def key(self) -> tuple[object, ...]:
        """The fields that identify a measurement among those of the same basis."""
        return ("kld", self.group, self.tensors, self.type)


@record
class ErrorLine:
    """The relative squared error of one tensor at one type, from `rows` of its `of` rows.

    `weighted_error` is the same with the weights of the imatrix, None without one. `source` names the ready-made model
    that the values are from, None if they were made here.
    """

    tensor: str
    type: str
    error: float
    weighted_error: float | None
    rows: int
    of: int
    source: str | None
    basis: Basis

    @property
    def key(self) -> tuple[object, ...]:
        """The fields that identify a measurement among those of the same basis."""
        return ("error", self.tensor, self.type, self.source)


@record
class ScaleLine:
    """The factor between predicted and actual divergence of a mix, by the sha256 of its recipe."""

    factor: float
    predicted: float
    actual: float
    recipe: str
    basis: Basis


Line = FloorLine | KldLine | ErrorLine | ScaleLine
_KINDS: dict[str, type[Any]] = {"floor": FloorLine, "kld": KldLine, "error": ErrorLine, "scale": ScaleLine}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@record
class MeasureFile:
    """All lines in order. `nbytes` is the end of the last complete line: bytes after it must be cut off."""

    lines: tuple[Line, ...]
    nbytes: int

    @property
    def floor(self) -> FloorLine | None:
        """The floor, None if no divergence was measured."""
        return next(iter(self.of(FloorLine)), None)

    def of(self, kind: type[_T]) -> tuple[_T, ...]:
        """The lines of one kind."""
        return tuple(line for line in self.lines if isinstance(line, kind))


def serialize_line(line: Line) -> str:
    """Serialize `line` with its end: the kind first, then its own fields, then the basis."""
    fields: dict[str, Any] = {"kind": _NAMES[type(line)]}
    for name, value in asdict(line).items():
        if name in ("scores", "basis"):
            fields |= value
        else:
            fields[name] = value
    return json.dumps(fields, ensure_ascii=True, allow_nan=False) + "\n"


def parse_measure(data: bytes, name: str) -> MeasureFile:
    """Parse a file; `name` is for errors. Raises `FormatError` with the line number, if `measure` did not write it."""
    if len(data) > MAX_FILE:
        raise LimitError(f"has {len(data):,} bytes; gguftool reads a measure file of at most {MAX_FILE:,}", source=name)
    nbytes = data.rfind(b"\n") + 1
    _check_rest(data[nbytes : nbytes + 1024], name)
    lines = []
    for number, raw in enumerate(data[:nbytes].splitlines(), 1):
        try:
            lines.append(_parse_line(raw))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FormatError(_reason(error), source=name, where=f"line {number}") from None
    return MeasureFile(lines=tuple(lines), nbytes=nbytes)


def _check_rest(rest: bytes, name: str) -> None:
    """Raise `FormatError` unless `rest` is the start of a line; after a power failure, it may be zeros."""
    begun = rest.rstrip(b"\0")
    if not begun.startswith(_BEGIN) and not _BEGIN.startswith(begun):
        raise FormatError(
            "is not a file of measurements: it ends with something that is not a line of measure; give another file",
            source=name,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the field '{printable(str(error.args[0]))}' is missing; this is not a line that measure writes"
    text = "too deeply nested" if isinstance(error, RecursionError) else str(error)
    return f"{printable(text)}; measure writes one JSON object a line"


def _parse_line(raw: bytes) -> Line:
    fields = json.loads(raw)
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str) or fields["kind"] not in _KINDS:
        raise ValueError(f"expected an object with the kind {', '.join(_KINDS)}")
    kind = _KINDS[fields["kind"]]
    line: Line = kind(**{name: _VALUES[name](name, fields) for name in kind.__slots__})
    return line


def _text(name: str, fields: Mapping[str, Any]) -> str:
    if not isinstance(fields[name], str):
        raise ValueError(f"'{name}' is not a text")
    return str(fields[name])


def _text_or_none(name: str, fields: Mapping[str, Any]) -> str | None:
    return None if fields[name] is None else _text(name, fields)


def _number(name: str, fields: Mapping[str, Any]) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"'{name}' is not a finite number")
    return float(value)


def _positive(name: str, fields: Mapping[str, Any]) -> float:
    value = _number(name, fields)
    if value < 0:
        raise ValueError(f"'{name}' is {value:g}, below zero")
    return value


def _damage(name: str, fields: Mapping[str, Any]) -> float:
    """A number that is used to compute damage."""
    value = _number(name, fields)
    if abs(value) > MOST:
        raise ValueError(f"'{name}' is {value:g}, which cannot be a measurement")
    return value


def _damage_from_zero(name: str, fields: Mapping[str, Any]) -> float:
    _damage(name, fields)
    return _positive(name, fields)


def _count(name: str, fields: Mapping[str, Any]) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError(f"'{name}' is not a count")
    return value


def _type(name: str, fields: Mapping[str, Any]) -> str:
    text = _text(name, fields)
    if find_type(text) is None:
        raise ValueError(f"'{printable(text)}' is not a type")
    return text


def _texts(name: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    value = fields[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"'{name}' is not a list of texts")
    return tuple(value)


def _flag(name: str, fields: Mapping[str, Any]) -> bool:
    if not isinstance(fields[name], bool):
        raise ValueError(f"'{name}' is neither true nor false")
    return bool(fields[name])


def _positive_or_none(name: str, fields: Mapping[str, Any]) -> float | None:
    return None if fields[name] is None else _damage_from_zero(name, fields)


def _scores(_: str, fields: Mapping[str, Any]) -> Scores:
    by_chunk = fields["by_chunk"]
    if by_chunk is not None and not isinstance(by_chunk, list):
        raise ValueError("'by_chunk' is not a list")
    chunks = None if by_chunk is None else tuple(_number("by_chunk", {"by_chunk": value}) for value in by_chunk)
    numbers = {name: _positive(name, fields) for name in _POSITIVE_SCORES}
    tokens, count = _count("tokens", fields), _count("chunks", fields)
    return Scores(kld=_damage("kld", fields), **numbers, tokens=tokens, chunks=count, by_chunk=chunks)


def _carrier(name: str, fields: Mapping[str, Any]) -> Carrier | None:
    found = fields[name]
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"'{name}' is not an object")
    return Carrier(type=_type("type", found), error=_positive("error", found))


def _basis(_: str, fields: Mapping[str, Any]) -> Basis:
    optional = {name: _text_or_none(name, fields) for name in ("text", "imatrix", "engine", "options")}
    return Basis(model=_text("model", fields), gguftool=_text("gguftool", fields), **optional)


_POSITIVE_SCORES = ("kld_se", "same_top", "same_top_se", "ppl", "ppl_se", "ppl_ratio", "ppl_ratio_se")
_VALUES: dict[str, Any] = {
    "scores": _scores,
    "basis": _basis,
    "carrier": _carrier,
    "group": _text,
    "tensors": _texts,
    "tensor": _text,
    "type": _type,
    "censored": _flag,
    "base_ppl": _positive,
    "error": _damage_from_zero,
    "weighted_error": _positive_or_none,
    "rows": _count,
    "of": _count,
    "source": _text_or_none,
    "factor": _damage_from_zero,
    "predicted": _positive,
    "actual": _positive,
    "recipe": _text,
}


def foreign_line(lines: Iterable[Line], basis: Basis) -> tuple[int, list[str]] | None:
    """Find the first line that does not belong to `basis`: its number, and the differences."""
    for number, line in enumerate(lines, 1):
        differences = line.basis.differences(basis)
        if differences:
            return number, differences
    return None
