"""Plan the tensors.map of a set with one tensor in each shard."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gguftool.errors import PlanError, printable
from gguftool.format.ggml import type_alias
from gguftool.format.header import TensorInfo
from gguftool.format.tensors_map import MapEntry, render_map
from gguftool.model.model import Model, ModelFile, tensors_of
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.storage.plan import OutputFile, Plan
from gguftool.surgery.compatibility import require_complete


def plan_tensors_map(model: ModelLike, sha256: Mapping[str, str], output: StrPath) -> Plan:
    """Plan the map of `model`'s shards as `output`; `sha256` maps file names to hashes. Shard 1 has no line.

    Raises `PlanError` if shards are missing, the first holds tensors, or another does not hold exactly one: a map has
    one line for each shard.
    """
    model = as_model(model)
    require_complete(model)
    counts = [(len(file.header.tensors), file) for file in model.files]
    crowded = [(count, file) for number, (count, file) in enumerate(counts) if count != (number > 0)]
    if len(model.files) < 2 or crowded:
        found = "it is a single file"
        if len(model.files) > 1:
            count, file = crowded[0]
            found = f"{printable(file.source.name)} holds {count:,}"
        what = "a tensors.map is for sets with one tensor in each shard, and only the metadata in shard 1"
        raise PlanError(f"{what}; {found}", source=model.name)
    return _plan((_entry_of(file, sha256[file.source.name]) for file in model.files[1:]), Path(output), model)


def plan_tensors_map_of_split(model: ModelLike, plan: Plan, sha256: Sequence[str]) -> Plan:
    """Plan the map of the shards that `plan` split `model` into, one tensor each after the first.

    `sha256` has the hash of each output of `plan`, in order. The map is written next to the shards.
    """
    model = as_model(model)
    shards = zip(plan.outputs[1:], sha256[1:], strict=True)
    entries = (
        _entry(output.path.name, digest, model.tensors[mark.name].info, mark.length)
        for output, digest in shards
        for mark in output.marks or ()
    )
    return _plan(entries, plan.outputs[0].path.parent / "tensors.map", model)


def _plan(entries: Iterable[MapEntry], output: Path, model: Model) -> Plan:
    head = render_map(entries).encode("utf-8", "surrogateescape")
    return Plan(outputs=(OutputFile(path=output, head=head, copies=(), size=len(head)),), inputs=model.sources)


def _entry_of(file: ModelFile, sha256: str) -> MapEntry:
    (tensor,) = tensors_of(file.source, file.header)
    return _entry(os.path.basename(file.source.name), sha256, tensor.info, tensor.nbytes)


def _entry(file: str, sha256: str, info: TensorInfo, nbytes: int) -> MapEntry:
    return MapEntry(
        file=file,
        sha256=sha256,
        tensor=info.name,
        shape=info.dims,
        dtype=type_alias(info.type),
        elements=info.elements,
        nbytes=nbytes,
    )
