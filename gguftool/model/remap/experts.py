"""Rewrite the metadata for a selection of experts: the numbers of experts, of used experts, and of groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.kv import KV, ByteOrder
from gguftool.model.remap.head_values import HeadValues, Remapped, Rewrite, runs
from gguftool.model.remap.periods import check_counts

_COUNT: Final = "expert_count"
_USED: Final = "expert_used_count"
_GROUPS: Final = "expert_group_count"
_PER_GROUP: Final = "experts_per_group"  # grovemoe


def expert_keys(
    kvs: Sequence[KV],
    kept: Mapping[int, Sequence[int]],
    *,
    engines: Sequence[str] = tuple(ENGINES),
    byte_order: ByteOrder = ByteOrder.LITTLE,
    given: Collection[str] = (),
) -> Remapped:
    """Rewrite `kvs` for models in which each MoE layer keeps these experts, in this order: layer -> old numbers.

    `given` names keys that the caller sets or removes afterwards: they are not checked here.
    """
    out = Rewrite(kvs, byte_order)
    values = HeadValues(kvs)
    prefix = values.architecture
    old = values.number(_COUNT, 0)
    if not _possible(out, prefix, old, kept):
        return out.result()
    new = len(next(iter(kept.values())))
    if new != old:
        out.number(f"{prefix}.{_COUNT}", new)
    _lower_used(out, values, new, given)
    _check_groups(out, values, kept, given)
    _check_chunks(out, values, kept)
    check_counts(out, values, engines)
    return out.result()


def _possible(out: Rewrite, prefix: str, old: int, kept: Mapping[int, Sequence[int]]) -> bool:
    counts = {len(experts) for experts in kept.values()}
    if not old:
        out.problems.append(f"{prefix}.{_COUNT} is absent or 0: the model has no experts to select")
    for layer, experts in kept.items():
        wrong = [expert for expert in experts if not 0 <= expert < old]
        if old and wrong:
            out.problems.append(f"layer {layer}: experts {runs(wrong)} are out of range; there are {old:,}")
    if len(counts) > 1:
        found = ", ".join(f"{count:,}" for count in sorted(counts))
        out.problems.append(
            f"layers would keep {found} experts, but {prefix}.{_COUNT} is one number: keep equally many in every layer"
        )
    if not kept or 0 in counts:
        out.problems.append("no experts are left; keep at least one in each layer")
    return not out.problems


def _lower_used(out: Rewrite, values: HeadValues, new: int, given: Collection[str]) -> None:
    """Limit the number of used experts to those that are left."""
    key = f"{values.architecture}.{_USED}"
    kv = values.kvs.get(key)
    if kv is None or key in given:
        return
    used = values.value(kv)
    if isinstance(used, list):
        if any(number > new for number in used):
            out.array(key, [min(number, new) for number in used], kv.element_type)
    elif used > new:
        out.number(key, new)


def _check_groups(out: Rewrite, values: HeadValues, kept: Mapping[int, Sequence[int]], given: Collection[str]) -> None:
    """Engines route by groups of adjacent experts: the members of a group must stay together."""
    key = f"{values.architecture}.{_GROUPS}"
    groups, old = values.number(_GROUPS, 1), values.number(_COUNT, 0)
    if groups <= 1 or key in given:
        return
    new = len(next(iter(kept.values())))
    way_out = f"keep equal numbers of each group of {max(old // groups, 1)}, group after group"
    way_out = f"{way_out}, or route without groups: --set {key}=u32:1"
    if new % groups or new <= groups:
        out.problems.append(f"{key} is {groups}, but {new} experts do not divide into that many groups: {way_out}")
        return
    size, old_size = new // groups, old // groups
    mixed = [layer for layer, experts in kept.items() if not _are_groups(experts, size, old_size)]
    if mixed:
        out.refusals.append(
            f"experts of layers {runs(sorted(mixed))} leave their groups ({key} is {groups}): {way_out}"
        )


def _are_groups(experts: Sequence[int], size: int, old_size: int) -> bool:
    """Whether each run of `size` experts is from one old group, and no two runs from the same; groups may move."""
    groups = [{expert // old_size for expert in experts[at : at + size]} for at in range(0, len(experts), size)]
    return all(len(group) == 1 for group in groups) and len(set().union(*groups)) == len(groups)


def _check_chunks(out: Rewrite, values: HeadValues, kept: Mapping[int, Sequence[int]]) -> None:
    """Grovemoe's chunk experts serve adjacent experts: those stay together."""
    size = values.number(_PER_GROUP, 0)
    if size <= 1:
        return
    for layer, experts in kept.items():
        if any(expert // size * size + index % size != expert for index, expert in enumerate(experts)):
            out.problems.append(
                f"layer {layer}: {size} adjacent experts share a chunk expert; keep all {size} of them, or none"
            )


def kept_chunks(experts: Sequence[int], size: int) -> tuple[int, ...]:
    """The chunk experts that belong to `experts`, which keeps whole groups of `size`."""
    return tuple(expert // size for expert in experts[::size])
