"""Judge the head that a recipe would give a model, by the rules of `check`."""

from __future__ import annotations

from collections.abc import Mapping

from gguftool.analysis.lint.heads.planned import (
    HeadOf,
    head_of_model,
    head_target,
    judge_head,
    only_at,
    places_of,
)
from gguftool.analysis.lint.rules import Finding, Severity, judged
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.ggml import nbytes
from gguftool.format.header import TensorInfo, round_up
from gguftool.model.model import Model, Tensor
from gguftool.record import replace


def judge_prediction(
    model: Model, types: Mapping[str, int | None], engines: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    """Judge `model` with `types` (ids) for its tensors; tensors not in `types` are left out, None means unknown.

    Returns the warnings and errors that the model itself does not have, for `engines` (default: both, then weighed as
    in `check`). Findings that involve tensors of unknown type are left out.
    """
    known = engines or tuple(ENGINES)
    unknown = {name for name, type_id in types.items() if type_id is None}
    before = judge_head(head_target(model.name, head_of_model(model)), known)
    found = judge_head(head_target(model.name, [_predicted(model, types)]), known)
    found = tuple(each for each in found if each.severity is not Severity.INFO and unknown.isdisjoint(each.tensors))
    new = only_at(found, places_of(found) - places_of(before))
    weighed = new if engines else judged(new, known)[0]
    return tuple(map(_without_command, weighed))


def _without_command(finding: Finding) -> Finding:
    """Leave out a way out that is a command on a file: there is no file yet."""
    return replace(finding, way_out="") if "'gguftool " in finding.way_out else finding


def _predicted(model: Model, types: Mapping[str, int | None]) -> HeadOf:
    first, infos, offset = model.files[0], [], 0
    for name, tensor in model.tensors.items():
        if name in types:
            info = _info(tensor, types[name], offset)
            infos.append(info)
            offset += round_up(nbytes(info.type, info.dims) or tensor.nbytes, model.alignment)
    header = replace(first.header, kvs=model.kvs, tensors=tuple(infos))
    shard = None if model.is_complete else first.shard
    return HeadOf(header=header, size=header.data_offset + offset, shard=shard)


def _info(tensor: Tensor, type_id: int | None, offset: int) -> TensorInfo:
    return replace(tensor.info, type=tensor.info.type if type_id is None else type_id, offset=offset)
