"""The tensors.map of a per-tensor shard set, as a plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gguftool.errors import PlanError
from gguftool.format.ggml import type_alias
from gguftool.format.maps import MapEntry, render_map
from gguftool.model.model import Model, ModelFile, tensors_of
from gguftool.storage.plan import OutputFile, Plan


def plan_map(model: Model, sha256: Mapping[str, str], output: Path) -> Plan:
    """Plan the map of `model`'s shards; `sha256` gives each file's hash by its name. The first shard has no line.

    Raises `PlanError` where another shard holds not exactly one tensor: a map has one line a shard.
    """
    crowded = [file.source.name for file in model.files[1:] if len(file.header.tensors) != 1]
    if len(model.files) < 2 or crowded:
        found = f"{crowded[0]} holds another number" if crowded else "it is a single file"
        raise PlanError(f"a tensors.map is for sets of one tensor a shard; {found}", source=model.name)
    text = render_map(_entry(file, sha256[file.source.name]) for file in model.files[1:])
    head = text.encode("utf-8", "surrogateescape")
    return Plan(outputs=(OutputFile(path=output, head=head, copies=(), size=len(head)),), inputs=model.sources)


def _entry(file: ModelFile, sha256: str) -> MapEntry:
    (tensor,) = tensors_of(file.source, file.header)
    return MapEntry(
        file=os.path.basename(file.source.name),
        sha256=sha256,
        tensor=tensor.info.name,
        shape=tensor.info.dims,
        dtype=type_alias(tensor.info.type),
        elements=tensor.info.elements,
        nbytes=tensor.nbytes,
    )
