"""Split: one model into a set of shards."""

from __future__ import annotations

from gguftool.model.layout import Dialect, ForceSizes, check_sizes, with_alignment
from gguftool.model.model import Model
from gguftool.record import record
from gguftool.storage.plan import Plan
from gguftool.surgery.metadata import without_layout_keys
from gguftool.surgery.selection import require_complete
from gguftool.surgery.shards import Cut, lay_out_set


@record
class SplitOptions:
    """How to cut (see `Cut`), and how tensors lie in the shards; alignment in bytes, None for the model's own."""

    max_tensors: int = 1
    max_size: int | None = None
    bundle_small: int = 0
    tensor_first: bool = False
    alignment: int | None = None
    force_sizes: ForceSizes | None = None


def plan_split(model: Model, prefix: str, options: SplitOptions | None = None) -> Plan:
    """Plan the shards ``PREFIX-00001-of-NNNNN.gguf`` of `model`; all metadata is in shard 1.

    Raises `PlanError` where the model is incomplete, a size is in doubt, or there would be more than 65,535 shards.
    """
    options = options or SplitOptions()
    require_complete(model)
    dialect = Dialect(
        version=model.version,
        byte_order=model.byte_order,
        alignment=options.alignment or model.alignment,
        force_sizes=options.force_sizes,
    )
    tensors = tuple(model.tensors.values())
    check_sizes(tensors, dialect)
    metadata = with_alignment(without_layout_keys(model.kvs), dialect.alignment, dialect.byte_order)
    cut = Cut(
        max_tensors=options.max_tensors,
        max_size=options.max_size,
        bundle_small=options.bundle_small,
        tensor_first=options.tensor_first,
    )
    outputs, remarks = lay_out_set(prefix, metadata, tensors, cut, dialect)
    return Plan(
        outputs=outputs,
        inputs=model.sources,
        remarks=(*model.remarks, *remarks),
        sequence=tuple(model.tensors) if options.bundle_small else (),
    )
