"""Fuse tensors that engines multiply at once, and take fused tensors apart: the same bytes, in other pieces.

``qkv``      attn_q, attn_k, attn_v <-> attn_qkv: rows of q, then k, then v
``gate_up``  ffn_gate_exps, ffn_up_exps <-> ffn_gate_up_exps: for each expert the rows of gate, then those of up
``experts``  ffn_gate.X, ... <-> ffn_gate_exps, ...: the old form with a tensor for each expert, and the current one

Biases and scales follow.  Tensors that cannot be fused (of different types, for example) stay as they are: engines
decide layer by layer.  Fusing loses the order of the tensors in the file.  If unfusing would not restore it, the order
is recorded, and unfusing uses the record.

Sources: llama.cpp b11434 src/llama-model.cpp (create_tensor_qkv, create_tensor_gate_up_exps, the pass over scales);
ik_llama.cpp 8337e4cd src/llama-load-tensors.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial

from gguftool.errors import PlanError, grouped, printable
from gguftool.format.ggml import TYPES, type_name
from gguftool.model.model import Tensor
from gguftool.model.remap.fusing import FUSIONS, Fusion, is_fusible, qkv_rows, reads_fused, reads_parts, scales_problem
from gguftool.model.remap.names import rename_in_keys
from gguftool.model.scales import SUFFIXES
from gguftool.model.views import cat
from gguftool.record import record, replace
from gguftool.surgery.alter.experts import MAX_EXPERTS
from gguftool.surgery.alter.order import in_recorded_order, with_recorded_order
from gguftool.surgery.alter.state import Findings, Item, State, integer, layer_of

_EXPERT = re.compile(r"(?P<stem>.*\bffn_(?:gate|up|down))\.(?P<number>[0-9]{1,6})\.(?P<end>[a-z_]+)", re.ASCII)
_STACKED = re.compile(r"(?P<stem>.*\bffn_(?:gate|up|down))_exps\.(?P<end>weight|bias|scale|input_scale)", re.ASCII)
_IN_LAYER = re.compile(r"((?:.*\.)?blk\.[0-9]{1,6}\.)(.+)", re.ASCII)
_ENDS = ("weight", "bias", "scale", "input_scale")


@record
class Made:
    """Tensors made of others: the `new` ones, in their order, take the place of the `old` ones."""

    old: tuple[str, ...]
    new: tuple[Tensor, ...]


class Left(Exception):
    """Raised for tensors that stay as they are; the text says why."""


def fuse(state: State, kind: str, engines: Sequence[str], findings: Findings) -> State:
    """`state` with the tensors of `kind` fused, if their types and dims allow it and `engines` read the result."""
    made, left = _tried(_stacks(state) if kind == "experts" else _fusions(state, FUSIONS[kind]))
    findings.refuse(*(_not_read("--fuse", kind, reads_fused, state, engines) if made else ()))
    changed = _changed(state, f"--fuse {kind}", made, left, findings)
    parts = {each.new[0].name: each.old for each in made}
    behind = {new.name for each in made for new in each.new[1:]}
    apart = [name for item in changed.items if item.name not in behind for name in parts.get(item.name, [item.name])]
    return with_recorded_order(changed, apart, [item.name for item in state.items], findings)


def unfuse(state: State, kind: str, engines: Sequence[str], findings: Findings) -> State:
    """`state` with the fused tensors of `kind` taken apart, if `engines` read the parts."""
    made, left = _tried(_unstacked(state) if kind == "experts" else _parted(state, kind))
    findings.refuse(*(_not_read("--unfuse", kind, reads_parts, state, engines) if made else ()))
    return in_recorded_order(_changed(state, f"--unfuse {kind}", made, left, findings), findings)


def _not_read(
    word: str, kind: str, reads: Callable[[str, str, str], bool | None], state: State, engines: Sequence[str]
) -> list[str]:
    """A refusal if one of `engines` does not read the new tensors; if that is not known, the output's check decides."""
    deaf = [engine for engine in engines if reads(kind, state.architecture, engine) is False]
    others = [f"--engine {engine}" for engine in engines if engine not in deaf]
    if not deaf:
        return []
    whole, parts = (FUSIONS[kind].fused, FUSIONS[kind].parts) if kind in FUSIONS else ("ffn_up_exps", ("ffn_up.0",))
    what = whole if word == "--fuse" else ", ".join(parts)
    way_out = f"; {others[0]} writes it for that engine" if others else ""
    architecture = printable(state.architecture, 40)
    return [f"{word} {kind}: models of {architecture} have no {what} in {' and '.join(deaf)}{way_out}"]


Attempt = tuple[str, Callable[[], Made]]


def _tried(attempts: Iterable[Attempt]) -> tuple[list[Made], dict[str, list[str]]]:
    """The tensors that can be made; and the others, by the reason why they stay."""
    made: list[Made] = []
    left: dict[str, list[str]] = {}
    for name, attempt in attempts:
        try:
            made.append(attempt())
        except (Left, PlanError) as reason:
            left.setdefault(str(reason), []).append(name)
    return made, left


def _changed(state: State, what: str, made: Sequence[Made], left: Mapping[str, list[str]], findings: Findings) -> State:
    """`state` with the tensors of `made`; a problem if there are none."""
    reasons = [f"{what} leaves tensors unchanged, {line}" for line in grouped(left, 4)]
    if not made:
        findings.problem(*(reasons or [f"{what}: the model has nothing of that kind"]))
        return state
    counts = (sum(len(names) for names in each) for each in zip(*((one.old, one.new) for one in made), strict=True))
    findings.remark("{}: {:,} tensor(s) -> {:,}".format(what, *counts), *reasons)
    changed = rename_in_keys(state.kvs, _new_names(made), byte_order=state.model.byte_order)
    return replace(state, kvs=findings.add_changes(changed), items=tuple(_replaced(state, made)))


def _new_names(made: Sequence[Made]) -> dict[str, list[str]]:
    """Map each old name to the names of the new tensors that hold its bytes."""
    names: dict[str, list[str]] = {}
    for each in made:
        for old in each.old:
            end = old.rpartition(".")[2]
            names[old] = [new.name for new in each.new if new.name.rpartition(".")[2] == end]
    return names


def _replaced(state: State, made: Sequence[Made]) -> list[Item]:
    """The tensors of `state`, with the new ones in the place of the first old one."""
    by_name = state.by_name
    places = {name: place for place, name in enumerate(by_name)}
    first = {min(each.old, key=places.__getitem__): each for each in made}
    gone = {old for each in made for old in each.old}
    items: list[Item] = []
    for item in state.items:
        if item.name in first:
            items += [Item(tensor=tensor, model=item.model) for tensor in first[item.name].new]
        elif item.name not in gone:
            items.append(item)
    return items


# --- qkv and gate_up -------------------------------------------------------------------------------------------------


def _fusions(state: State, fusion: Fusion) -> Iterator[Attempt]:
    """For each layer that has the first part, the attempt that fuses its parts."""
    tensors = {item.name: item.tensor for item in state.items}
    for prefix in _prefixes(tensors, fusion.parts[0], fusion.kind):
        yield f"{prefix}{fusion.fused}", partial(_fused, tensors, prefix, fusion)


def _prefixes(names: Iterable[str], base: str, kind: str) -> list[str]:
    """The layers that have a weight called `base`, as ``blk.N.``, except those where it is something else."""
    layers: dict[str, list[str]] = {}
    for name in names:
        found = _IN_LAYER.fullmatch(name)
        if found:
            layers.setdefault(found[1], []).append(found[2])
    return [prefix for prefix, bases in layers.items() if f"{base}.weight" in bases and is_fusible(kind, bases)]


def _fused(tensors: Mapping[str, Tensor], prefix: str, fusion: Fusion) -> Made:
    """Fuse one weight, with its biases and scales; raises `Left`."""
    weights = _parts(tensors, prefix, fusion, "weight")
    if len(weights) < len(fusion.parts):
        raise Left(f"not all of {', '.join(fusion.parts)} exist")
    if f"{prefix}{fusion.fused}.weight" in tensors:
        raise Left(f"{fusion.fused} already exists")
    kinds = list(dict.fromkeys(type_name(weight.info.type) for weight in weights))
    if len(kinds) > 1:
        raise Left(f"their types differ ({', '.join(kinds)})")
    problem = scales_problem(fusion.kind, tensors, [weight.name for weight in weights])
    if problem:
        raise Left(problem)
    whole = f"{prefix}{fusion.fused}"
    old, new = [*weights], [cat(1, weights).named(f"{whole}.weight")]
    biases = _parts(tensors, prefix, fusion, "bias")
    if biases:
        if len(biases) < len(fusion.parts):
            raise Left("only some of them have a bias")
        old += biases
        new.append(_joined_biases(biases).named(f"{whole}.bias"))
    for suffix in SUFFIXES:
        scales = _parts(tensors, prefix, fusion, suffix.removeprefix("."))
        if scales:
            old += scales
            new.append(scales[0].named(whole + suffix))
    return Made(old=tuple(tensor.name for tensor in old), new=tuple(new))


def _parts(tensors: Mapping[str, Tensor], prefix: str, fusion: Fusion, end: str) -> list[Tensor]:
    found = (tensors.get(f"{prefix}{part}.{end}") for part in fusion.parts)
    return [tensor for tensor in found if tensor is not None]


def _joined_biases(biases: Sequence[Tensor]) -> Tensor:
    """One bias of several; for experts, those of one expert after those of another."""
    if len(biases[0].info.dims) < 2:
        return cat(0, biases)
    flat = cat(1, [_with_dims(bias, (bias.info.dims[0], 1, *bias.info.dims[1:])) for bias in biases])
    return _with_dims(flat, (flat.info.dims[0] * flat.info.dims[1], *flat.info.dims[2:]))


def _with_dims(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A tensor of plain numbers with other dims. Its rows do not matter: no block spans several numbers."""
    traits = TYPES.get(tensor.info.type)
    if traits is None or traits.block_size != 1:
        raise Left(f"biases have the type {tensor.type_name}")
    return replace(tensor, info=replace(tensor.info, dims=dims))


def _parted(state: State, kind: str) -> Iterator[Attempt]:
    """For each fused weight, the attempt that takes it apart."""
    fusion = FUSIONS[kind]
    tensors = {item.name: item.tensor for item in state.items}
    for prefix in _prefixes(tensors, fusion.fused, kind):
        yield f"{prefix}{fusion.fused}", partial(_parts_of, state, tensors, prefix, kind)


def _parts_of(state: State, tensors: Mapping[str, Tensor], prefix: str, kind: str) -> Made:
    """Take one fused weight apart, with its bias and scales; raises `Left`."""
    fusion = FUSIONS[kind]
    whole = f"{prefix}{fusion.fused}"
    there = [part for part in fusion.parts if f"{prefix}{part}.weight" in tensors]
    if there:
        raise Left(f"{', '.join(there)} already exist")
    old = [tensors[f"{whole}.{end}"] for end in _ENDS if f"{whole}.{end}" in tensors]
    weight = old[0]
    rows = _rows(state, weight, kind)
    starts = [sum(rows[:number]) for number in range(len(rows))]
    new = []
    for part, start, count in zip(fusion.parts, starts, rows, strict=True):
        cut = range(start, start + count)
        made = [_part(tensor, cut, weight).named(tensor.name.replace(whole, prefix + part)) for tensor in old]
        new.append(made)
    return Made(
        old=tuple(tensor.name for tensor in old),
        new=tuple(tensor for made in zip(*new, strict=True) for tensor in made),
    )


def _rows(state: State, weight: Tensor, kind: str) -> tuple[int, ...]:
    total = weight.info.dims[1] if len(weight.info.dims) > 1 else 0
    if kind == "gate_up":
        if total % 2 or not total:
            raise Left(f"{total:,} rows do not divide into gate and up")
        return total // 2, total // 2
    rows = qkv_rows(state.kvs, layer_of(weight.name) or 0, total)
    if rows is None:
        raise Left(f"{total:,} rows do not fit the q, k and v of the heads in the metadata")
    return rows


def _part(tensor: Tensor, rows: range, weight: Tensor) -> Tensor:
    """The part of a weight, or of its bias, that belongs to `rows` of the weight; a scale belongs to every part."""
    if tensor is weight:
        return tensor.take(1, rows)
    if tensor.name.endswith(SUFFIXES):
        return tensor
    total, dims = weight.info.dims[1], tensor.info.dims
    if not dims or dims[0] != total:
        raise Left(f"the bias has {dims[0] if dims else 1:,} numbers for {total:,} rows")
    if len(dims) < 2:
        return tensor.take(0, rows)
    count = len(rows)
    halves = _with_dims(tensor, (count, total // count, *dims[1:]))
    return _with_dims(halves.take(1, [rows.start // count]), (count, *dims[1:]))


# --- experts ---------------------------------------------------------------------------------------------------------


def _stacks(state: State) -> Iterator[Attempt]:
    """For each layer and kind of the old form, the attempt that stacks the tensors of its experts."""
    groups: dict[tuple[str, str], dict[int, Tensor]] = {}
    for item in state.items:
        found = _EXPERT.fullmatch(item.name)
        if found:
            groups.setdefault((found["stem"], found["end"]), {})[int(found["number"])] = item.tensor
    names = {item.name for item in state.items}
    for (stem, end), experts in groups.items():
        count = min(integer(state.kvs, "expert_count") or len(experts), MAX_EXPERTS + 1)
        yield f"{stem}_exps.{end}", partial(_stacked, f"{stem}_exps.{end}", experts, count, names)


def _stacked(name: str, experts: Mapping[int, Tensor], count: int, names: Container[str]) -> Made:
    """Stack the experts of one weight, bias or scale; raises `Left`."""
    if sorted(experts) != list(range(count)):
        raise Left(f"only {len(experts):,} of {count:,} experts exist")
    if name in names:
        raise Left("the tensor with all experts already exists")
    tensors = [experts[number] for number in range(count)]
    axis = {"weight": 2, "bias": 1}.get(name.rpartition(".")[2], 0)
    return Made(old=tuple(tensor.name for tensor in tensors), new=(cat(axis, tensors).named(name),))


def _unstacked(state: State) -> Iterator[Attempt]:
    """For each tensor of all experts, the attempt that takes it apart."""
    for item in state.items:
        found = _STACKED.fullmatch(item.name)
        if found:
            yield item.name, partial(_experts_of, item.tensor, found["stem"], found["end"])


def _experts_of(tensor: Tensor, stem: str, end: str) -> Made:
    axis = {"weight": 2, "bias": 1}.get(end, 0)
    dims = tensor.info.dims
    count = dims[axis] if axis < len(dims) else 1
    if count > MAX_EXPERTS:
        raise Left(f"{count:,} experts")
    parts = (_alone(tensor.take(axis, [number]), axis) for number in range(count))
    new = tuple(part.named(f"{stem}.{number}.{end}") for number, part in enumerate(parts))
    return Made(old=(tensor.name,), new=new)


def _alone(tensor: Tensor, axis: int) -> Tensor:
    """A tensor of one expert without the axis that counts them; a scale keeps its one number."""
    return tensor.reshape(tensor.info.dims[:axis]) if axis else tensor
