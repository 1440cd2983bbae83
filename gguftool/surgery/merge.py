"""Merge: the tensors of one or more models into one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguftool.errors import PlanError, printable
from gguftool.format.header import find_kv
from gguftool.model.layout import Dialect, ForceSizes, check_sizes, gguf_file, with_alignment
from gguftool.model.model import Model, Tensor
from gguftool.storage.plan import Plan
from gguftool.surgery.common import require_complete, without_layout_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How the output lies in its file; alignment in bytes, None for the metadata donor's."""

    alignment: int | None = None
    force_sizes: ForceSizes | None = None


def plan_merge(models: Sequence[Model], output: Path, options: MergeOptions | None = None) -> Plan:
    """Plan one file with all tensors of `models`, each of which must come from exactly one of them.

    Raises `PlanError` where a tensor is missing or stands in several models, or a size is in doubt.
    """
    options = options or MergeOptions()
    donor = next((model for model in models if find_kv(model.kvs, "general.architecture")), models[0])
    require_complete(donor)
    if len({model.byte_order for model in models}) > 1:
        raise PlanError("the inputs differ in their byte order; convert one of them first")
    tensors = _pool(models)
    dialect = Dialect(
        version=donor.version,
        byte_order=donor.byte_order,
        alignment=options.alignment or donor.alignment,
        force_sizes=options.force_sizes,
    )
    check_sizes(tensors, dialect)
    kvs = with_alignment(without_layout_keys(donor.kvs), dialect.alignment, dialect.byte_order)
    return Plan(
        outputs=(gguf_file(output, kvs, tensors, dialect),),
        inputs=tuple(source for model in models for source in model.sources),
        remarks=tuple(remark for model in models for remark in model.remarks),
    )


def _pool(models: Sequence[Model]) -> tuple[Tensor, ...]:
    pooled: dict[str, Tensor] = {}
    twice = []
    for model in models:
        for name, tensor in model.tensors.items():
            first = pooled.setdefault(name, tensor)
            if first is not tensor:
                twice.append(f"'{printable(name)}' in {first.gap.source.name} and {tensor.gap.source.name}")
    if twice:
        more = f"; and {len(twice) - 20:,} more" if len(twice) > 20 else ""
        raise PlanError(f"{len(twice):,} tensor(s) stand in more than one input: {'; '.join(twice[:20])}{more}")
    return tuple(pooled.values())
