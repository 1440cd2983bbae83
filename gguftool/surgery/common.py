"""What several operations ask of their inputs."""

from __future__ import annotations

from collections.abc import Iterable

from gguftool.errors import PlanError, listed
from gguftool.format.header import KV
from gguftool.format.shards import KEY_TENSORS, SPLIT_KEYS
from gguftool.model.model import Model
from gguftool.model.opening import ORDER_KEY

# Keys that describe how a model lies in files, not the model; every writer makes its own.
LAYOUT_KEYS = SPLIT_KEYS | {ORDER_KEY, "gguftool.padding"}


def without_layout_keys(kvs: Iterable[KV]) -> tuple[KV, ...]:
    """Return `kvs` without those that describe how the model lies in files."""
    return tuple(kv for kv in kvs if kv.key not in LAYOUT_KEYS)


def require_complete(model: Model) -> None:
    """Raise `PlanError` with what is missing where a writer's output would lack a tensor."""
    if model.is_complete:
        return
    found = len(model.tensors)
    said = "" if model.expected_tensors is None else f": {found:,} of {model.expected_tensors:,} tensors are there"
    gaps = f"; missing: {listed(model.missing)}" if model.missing else f" ({KEY_TENSORS} is wrong, or shards are)"
    raise PlanError(f"the model is incomplete{said}{gaps}", source=model.name)
