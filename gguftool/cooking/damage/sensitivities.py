"""Read evidence about a model's tensors: `measure.jsonl`, files of GGUF-Tool-Suite, sensitivities computed elsewhere.

Fisher values and the like come in a JSON file of sensitivities (docs/cooking.md has the format):

    {"gguftool": "sensitivities", "spread": 0.18, "type": "q3_K",
     "tensors": {"blk.0.attn_q.weight": 3.0e-5, "blk.0.attn_v.weight": {"q3_K": 1.5e-3, "q4_K": 1.4e-4}}}

A number is the KLD of the whole model, in nats, with only this tensor at `type`; without `type`, for each unit of
relative squared error of the tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gguftool.cooking.damage import suite_csv
from gguftool.cooking.damage.evidence import MOST, NOTHING, Evidence, Given, InputFile, Key, Observation
from gguftool.cooking.measure_lines import MAX_FILE, ErrorLine, KldLine, MeasureFile, ScaleLine, parse_measure
from gguftool.errors import FormatError, LimitError, PlanError, joined_problems, listed, printable
from gguftool.format.ggml import find_type
from gguftool.record import record, replace
from gguftool.storage.sources.locate import open_source

_FISHER_SPREAD = 0.18  # one standard deviation of log(measured / Fisher): docs/cooking.md
_MAX_TENSORS = 100_000
_MAX_JSON = 64 << 20  # bytes; 2,000 tensors at 20 types take 2 MB
_MARK = "sensitivities"


@record
class EvidenceFiles:
    """The files to read: `curve`, `sensitivity`, and in `measure` files of any other kind."""

    measure: tuple[str, ...] = ()
    curve: str | None = None
    sensitivity: str | None = None


def read_evidence(files: EvidenceFiles) -> Evidence:
    """Read all `files`; raise the error of the first that cannot be read, or has the wrong contents.

    Several files of measurements are combined. Raises `PlanError` if some hold divergences and others perplexities.
    """
    parts = [_read_measure(*_load(name)) for name in files.measure]
    if files.sensitivity is not None:
        parts.append(_read_sensitivity(*_load(files.sensitivity)))
    found = _joined(parts)
    if files.curve is None:
        return found
    data, name = _load(files.curve)
    curve, remarks = suite_csv.curve_of(suite_csv.parse_table(data, name))
    return replace(found, curve=curve, inputs=(*found.inputs, _input(data, name)), remarks=(*found.remarks, *remarks))


def unknown_tensors(evidence: Evidence, names: Collection[str]) -> str | None:
    """The problem, if `evidence` is about tensors that the model, which has `names`, lacks; None if there is none."""
    unknown = sorted(evidence.tensors - set(names))
    if not unknown:
        return None
    files = listed([each.name for each in evidence.inputs])
    known = len(evidence.tensors) - len(unknown)
    what = "it was measured on another model" if known < len(unknown) else "it was measured on another conversion"
    return (
        f"{files}: {len(unknown):,} tensors that the model lacks, and {known:,} that it has ({listed(unknown, 4)}); "
        f"{what}: take the file for this one, or remove these tensors from it"
    )


def _load(name: str) -> tuple[bytes, str]:
    source = open_source(name)
    if source.size > MAX_FILE:
        raise LimitError(f"has {source.size:,} bytes; gguftool reads at most {MAX_FILE:,}", source=source.name)
    return source.read_at(0, source.size), source.name


def _input(data: bytes, name: str) -> InputFile:
    return InputFile(name=name, sha256=hashlib.sha256(data).hexdigest())


def _joined(parts: Sequence[Evidence]) -> Evidence:
    units = dict.fromkeys(part.unit for part in parts if not part.says_nothing)
    if len(units) > 1:
        raise PlanError(
            f"--measure: {' and '.join(units)} do not add up; give files of one kind, kld_results.csv if it exists"
        )
    errors: dict[Key, float] = {}
    for part in parts:
        errors |= part.errors
    return Evidence(
        errors=errors,
        curve={},
        observations=tuple(one for part in parts for one in part.observations),
        given=tuple(one for part in parts for one in part.given),
        unit=next(iter(units), "KLD"),
        factor=math.prod(part.factor for part in parts),
        models=tuple(dict.fromkeys(digest for part in parts for digest in part.models)),
        inputs=tuple(one for part in parts for one in part.inputs),
        remarks=tuple(one for part in parts for one in part.remarks),
    )


def _read_measure(data: bytes, name: str) -> Evidence:
    """Read a file of measurements; its beginning shows its kind."""
    if suite_csv.looks_like_suite(data):
        table = suite_csv.parse_table(data, name)
        readings = suite_csv.readings_of(table)
        unit = "ln PPL" if suite_csv.is_perplexity(table) else "KLD"
        return replace(
            NOTHING,
            observations=readings.observations,
            unit=unit,
            inputs=(_input(data, name),),
            remarks=readings.remarks,
        )
    if not data.lstrip().startswith(b"{"):
        raise FormatError(
            "is not a file of measurements: 'gguftool measure' writes JSON lines, GGUF-Tool-Suite a CSV that begins "
            "with QTYPE",
            source=name,
        )
    return evidence_of(parse_measure(data, name), _input(data, name))


def evidence_of(file: MeasureFile, source: InputFile) -> Evidence:
    """Turn lines of `measure.jsonl` into evidence, without the floor; of two for a tensor and type the later counts."""
    floor = 0.0 if file.floor is None else max(file.floor.scores.kld, 0.0)
    observations = {
        (line.tensors, _alias(line.type)): Observation(
            tensors=line.tensors,
            type=_alias(line.type),
            value=max(round(line.scores.kld - floor, 10), suite_csv.LEAST),
            error=line.scores.kld_se,
            censored=line.censored,
        )
        for line in file.of(KldLine)
        if line.tensors
    }
    scales = file.of(ScaleLine)
    return Evidence(
        errors=_errors(file.of(ErrorLine)),
        curve={},
        observations=tuple(observations.values()),
        factor=scales[-1].factor if scales and scales[-1].factor > 0 else 1.0,
        models=tuple(dict.fromkeys(line.basis.model for line in file.of(KldLine))),
        inputs=(source,),
    )


def _errors(lines: Iterable[ErrorLine]) -> dict[Key, float]:
    """The errors by tensor and type; weighted ones only if all of the tensor's are, as the kinds do not compare."""
    plain: dict[str, dict[str, float]] = {}
    weighted: dict[str, dict[str, float]] = {}
    for line in lines:
        plain.setdefault(line.tensor, {})[_alias(line.type)] = line.error
        if line.weighted_error is not None:
            weighted.setdefault(line.tensor, {})[_alias(line.type)] = line.weighted_error
    best = {
        tensor: weighted[tensor] if len(weighted.get(tensor, ())) == len(row) else row for tensor, row in plain.items()
    }
    return {(tensor, qtype): value for tensor, row in best.items() for qtype, value in row.items()}


def _alias(text: str) -> str:
    traits = find_type(text)
    return text if traits is None else traits.alias


# --- sensitivities as JSON -------------------------------------------------------------------------------------------


def _read_sensitivity(data: bytes, name: str) -> Evidence:
    if len(data) > _MAX_JSON:
        raise LimitError(f"has {len(data):,} bytes; gguftool reads at most {_MAX_JSON:,} of sensitivities", source=name)
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {printable(str(error), 200)}", source=name) from None
    problems: list[str] = []
    given = tuple(_given(fields, problems)) if isinstance(fields, dict) else ()
    if not isinstance(fields, dict) or fields.get("gguftool") != _MARK:
        problems.insert(0, f'expected an object with "gguftool": "{_MARK}" (docs/cooking.md has the format)')
    if not given and not problems:
        problems.append("it gives no tensor's sensitivity")
    if problems:
        raise FormatError(joined_problems(problems), source=name)
    return replace(NOTHING, given=given, inputs=(_input(data, name),))


def _given(fields: Mapping[str, Any], problems: list[str]) -> Iterable[Given]:
    spread = fields.get("spread", _FISHER_SPREAD)
    if not _is_number(spread) or not 0 < spread <= 10:
        problems.append(
            f'"spread" is {printable(str(spread), 40)}; expected a number above 0, such as {_FISHER_SPREAD}'
        )
        spread = _FISHER_SPREAD
    common = fields.get("type")
    if common is not None and (not isinstance(common, str) or find_type(common) is None):
        problems.append(f'"type" is {printable(str(common), 40)}, which is not a type')
        common = None
    tensors = fields.get("tensors")
    if not isinstance(tensors, dict) or len(tensors) > _MAX_TENSORS:
        problems.append('"tensors" is not an object of tensors and their sensitivities')
        return
    for tensor, value in tensors.items():
        for qtype, number in (value if isinstance(value, dict) else {common: value}).items():
            if qtype is not None and find_type(qtype) is None:
                problems.append(f"{printable(tensor, 80)}: '{printable(str(qtype), 40)}' is not a type")
            elif not _is_number(number) or number < 0:
                problems.append(
                    f"{printable(tensor, 80)}: {printable(str(number), 40)} is not a damage: a number from 0 on"
                )
            else:
                value_or_least = max(float(number), suite_csv.LEAST * 1e-4)
                alias = None if qtype is None else _alias(qtype)
                yield Given(tensor=tensor, type=alias, value=value_or_least, spread=float(spread))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MOST <= value <= MOST
