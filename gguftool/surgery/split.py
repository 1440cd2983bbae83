"""Split: cut one model into a set of shards."""

from __future__ import annotations

import os

from gguftool.model.layout import OutputOptions, check_sizes, with_alignment
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.record import record
from gguftool.storage.plan import Plan
from gguftool.surgery.compatibility import require_complete
from gguftool.surgery.metadata import without_layout_keys
from gguftool.surgery.shards import Cut, lay_out_set


@record
class SplitOptions:
    """How to cut, and how the shards are laid out; sizes in bytes.

    `max_tensors`: tensors in a shard, ignored if `output.max_size` is set; `bundle_small`: tensors below this size go
    into shard 1; `tensor_first`: shard 1 holds others too.
    """

    max_tensors: int = 1
    bundle_small: int = 0
    tensor_first: bool = False
    output: OutputOptions = OutputOptions()


def plan_split(model: ModelLike, prefix: StrPath, options: SplitOptions | None = None) -> Plan:
    """Plan the shards ``PREFIX-00001-of-NNNNN.gguf`` of `model`; all metadata is in shard 1.

    Raises `PlanError` if the model is incomplete, a size is in doubt, or there would be more than 65,535 shards.
    """
    model, options = as_model(model), options or SplitOptions()
    require_complete(model)
    dialect = options.output.dialect_for(model)
    tensors = tuple(model.tensors.values())
    check_sizes(tensors, dialect)
    metadata = with_alignment(without_layout_keys(model.kvs), dialect.alignment, dialect.byte_order)
    cut = Cut(
        max_tensors=options.max_tensors,
        max_size=options.output.max_size,
        bundle_small=options.bundle_small,
        tensor_first=options.tensor_first,
    )
    outputs, remarks = lay_out_set(os.fspath(prefix), metadata, tensors, cut, dialect)
    return Plan(
        outputs=outputs,
        inputs=model.sources,
        remarks=(*model.remarks, *remarks),
        sequence=tuple(model.tensors) if options.bundle_small else (),
    )
