"""Alter an importance matrix like its model, by the same lists, so that the altered model can be quantized with it.

Weights say how strongly each column of a tensor's input was used.  Tensors that are fused have the same input, so the
entry of the fused tensor equals that of each part.  Both forms are written, because some layers may keep the other one.
Experts of one tensor are rows of its entry; a legacy file stores them one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gguftool.errors import PlanError, did_you_mean, listed, printable
from gguftool.format.file_names import normal_label
from gguftool.format.imatrix import Imatrix, ImatrixEntry, ImatrixKind
from gguftool.format.imatrix_write import serialize_gguf, serialize_legacy
from gguftool.model.axes import Axes, tensor_axes
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, StrPath, as_model, as_source
from gguftool.model.remap.experts import kept_chunks
from gguftool.model.remap.fusing import FUSIONS, STACKS
from gguftool.record import record
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.source import Source
from gguftool.surgery.alter.alteration import Alteration, check_alteration, refuse
from gguftool.surgery.alter.experts import MAX_EXPERTS
from gguftool.surgery.alter.files import read_lists
from gguftool.surgery.alter.lists import parse_list, resolve, resolve_own
from gguftool.surgery.alter.rename import renames_of
from gguftool.surgery.alter.state import (
    Findings,
    architecture_of,
    count_layers,
    in_layer,
    integer,
    is_mtp_base,
    layer_of,
)
from gguftool.surgery.convert_imatrix import kind_of_name
from gguftool.surgery.selection import select_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

Entries = Mapping[str, ImatrixEntry]
_LEAST_SHARE = 16  # one expert in so many must have an entry: this bounds the output by the size of the input


@record
class Counts:
    """Numbers of layers and experts in the model of an imatrix; 0 if unknown."""

    trunk: int
    layers: int
    experts: int
    chunk: int
    architecture: str


def plan_alter_imatrix(
    source: Source | StrPath,
    imatrix: Imatrix,
    alteration: Alteration,
    output: StrPath,
    *,
    model: ModelLike | None = None,
    donors: Mapping[str, Imatrix] | None = None,
) -> Plan:
    """Plan `imatrix`, which was read from `source`, as the file `output` for the model that `alteration` makes.

    `model`: the model before it was altered (its head gives the numbers of layers and experts); without it they are
    counted from the entries, and the experts of a legacy file cannot be told apart. `donors`: label -> the imatrix of
    another model that gives layers. Operations that concern no entry (keys, tokens, engines) are ignored.
    Raises one `PlanError` with all problems.
    """
    source, output, findings = as_source(source), Path(output), Findings()
    findings.problem(*check_alteration(alteration))
    if kind_of_name(output) not in (None, imatrix.kind):
        findings.problem(f"{output.name} is a name for the other format; imatrix convert changes the format")
    others = {normal_label(label): donor for label, donor in (donors or {}).items()}
    lists = read_lists(alteration, tuple(others), findings)
    counts = _counts(imatrix, None if model is None else as_model(model))
    entries = _without(imatrix.entries, alteration, counts, findings)
    entries = _formed(_renamed(entries, alteration, findings), alteration, counts)
    origins: list[int | None] = list(range(counts.layers))
    if lists.layers is not None:
        formed = {
            label: entries if donor is imatrix else _formed(donor.entries, alteration, counts)
            for label, donor in others.items()
        }
        entries, origins = _with_layers(entries, lists.layers, formed, counts, findings)
    if lists.experts is not None:
        entries = _with_experts(entries, lists.experts, origins, counts, findings)
    refuse(findings.problems)
    findings.remark(f"{len(imatrix.entries):,} entries -> {len(entries):,}")
    altered = Imatrix(
        entries=MappingProxyType(dict(entries)),
        datasets=imatrix.datasets,
        chunk_count=imatrix.chunk_count,
        chunk_size=imatrix.chunk_size,
        kind=imatrix.kind,
    )
    data = serialize_gguf(altered) if imatrix.kind is ImatrixKind.GGUF else serialize_legacy(altered)
    file = OutputFile(path=output, head=data, copies=(), size=len(data))
    return Plan(outputs=(file,), inputs=(source, *lists.sources), remarks=tuple(findings.remarks))


def _counts(imatrix: Imatrix, model: Model | None) -> Counts:
    kvs, names = (model.kvs, model.tensors) if model is not None else ((), imatrix.entries)
    trunk, nextn = count_layers(kvs, names)
    there = [layer for name in names if (layer := layer_of(name)) is not None]
    if not trunk + nextn:
        trunk = max(there, default=-1) + 1
    return Counts(
        trunk=trunk,
        layers=trunk + nextn,
        experts=_at_most(integer(kvs, "expert_count") or 0, MAX_EXPERTS),
        chunk=max(_at_most(integer(kvs, "experts_per_group") or 1, MAX_EXPERTS), 1),
        architecture=architecture_of(kvs),
    )


def _at_most(number: int, limit: int) -> int:
    """A count from the metadata of a model; 0, which means unknown, if it makes no sense."""
    return number if 0 <= number <= limit else 0


# --- entries by name -------------------------------------------------------------------------------------------------


def _without(entries: Entries, alteration: Alteration, counts: Counts, findings: Findings) -> Entries:
    """The entries that remain after --drop and --keep; a group or pattern may match no entry here."""
    if alteration.drop:
        gone = {name for what in alteration.drop for name in _meant(entries, what, counts)}
        return {name: entry for name, entry in entries.items() if name not in gone}
    if alteration.keep:
        kept = {name for what in alteration.keep for name in _meant(entries, what, counts)}
        findings.problem(*([] if kept else ["--keep leaves no entry"]))
        return {name: entry for name, entry in entries.items() if name in kept}
    return entries


def _meant(entries: Entries, what: str, counts: Counts) -> Iterable[str]:
    if what == ":mtp":
        return [name for name in entries if (layer_of(name) or 0) >= counts.trunk > 0 or is_mtp_base(name)]
    if what.startswith(":"):
        return ()  # no encoder, and no tensor that is looked up or unused, has an entry
    try:
        return select_tensors([what], list(entries))
    except PlanError:
        return ()


def _renamed(entries: Entries, alteration: Alteration, findings: Findings) -> Entries:
    for given in alteration.rename:
        try:
            names = renames_of(given, entries)
        except PlanError as error:
            findings.problem(str(error))
            continue
        entries = {names.get(name, name): _named(entry, names.get(name, name)) for name, entry in entries.items()}
    return entries


def _named(entry: ImatrixEntry, name: str) -> ImatrixEntry:
    return entry if name == entry.name else ImatrixEntry(name=name, sums=entry.sums, counts=entry.counts)


# --- fused forms -----------------------------------------------------------------------------------------------------


def _formed(entries: Entries, alteration: Alteration, counts: Counts) -> Entries:
    """`entries` and those of the other forms, each after the one that it is made from."""
    made = dict(entries)
    for kind in alteration.unfuse:
        made = dict(_unstacked(made, counts) if kind == "experts" else _parted(made, kind))
    for kind in alteration.fuse:
        made = dict(_stacked(made, counts) if kind == "experts" else _fused(made, kind))
    return made


def _fused(entries: Entries, kind: str) -> Iterator[tuple[str, ImatrixEntry]]:
    """The entries, and after each first part that of the fused tensor: all parts have the same input."""
    fusion = FUSIONS.get(kind)
    for name, entry in entries.items():
        yield name, entry
        end = "" if fusion is None else f".{fusion.parts[0]}.weight"
        if fusion is not None and name.endswith(end):
            whole = f"{name.removesuffix(end)}.{fusion.fused}.weight"
            if whole not in entries:
                yield whole, _named(entry, whole)


def _parted(entries: Entries, kind: str) -> Iterator[tuple[str, ImatrixEntry]]:
    """The entries, and after each entry of a fused tensor those of its parts."""
    fusion = FUSIONS.get(kind)
    for name, entry in entries.items():
        yield name, entry
        end = "" if fusion is None else f".{fusion.fused}.weight"
        if fusion is not None and name.endswith(end):
            parts = (f"{name.removesuffix(end)}.{part}.weight" for part in fusion.parts)
            yield from ((part, _named(entry, part)) for part in parts if part not in entries)


def _unstacked(entries: Entries, counts: Counts) -> Iterator[tuple[str, ImatrixEntry]]:
    """The entries; an entry of all experts becomes one for each expert."""
    for name, entry in entries.items():
        stem, base, end = _parts_of_name(name)
        if base not in STACKS or end != "weight":
            yield name, entry
            continue
        rows, numbers = _matrices(entry, counts)
        for number in range(len(rows)):
            alone = f"{stem}.{STACKS[base]}.{number}.weight"
            yield alone, ImatrixEntry(name=alone, sums=rows[number : number + 1], counts=numbers[number : number + 1])


def _stacked(entries: Entries, counts: Counts) -> Iterator[tuple[str, ImatrixEntry]]:
    """The entries; those of single experts become one of all experts, in the place of the first."""
    groups: dict[str, dict[int, ImatrixEntry]] = {}
    for name, entry in entries.items():
        whole = _stack_of(name)
        if whole is not None:
            groups.setdefault(whole[0], {})[whole[1]] = entry
    for name, entry in entries.items():
        whole = _stack_of(name)
        if whole is None:
            yield name, entry
        elif entry is next(iter(groups[whole[0]].values())):
            yield whole[0], _stack(whole[0], groups[whole[0]], counts)


def _stack(name: str, experts: Mapping[int, ImatrixEntry], counts: Counts) -> ImatrixEntry:
    """One entry called `name` from those of single `experts`, as wide as the first; missing experts get zeros."""
    import numpy as np

    width = next(iter(experts.values())).sums.size
    there = {number: one for number, one in experts.items() if one.sums.size == width}
    count = counts.experts or max(experts) + 1
    if count > min(MAX_EXPERTS, _LEAST_SHARE * len(there)):
        raise PlanError(
            f"--fuse experts: only {len(there):,} of {count:,} experts have an entry for '{printable(name, 80)}'; "
            "make the imatrix from more text, or keep the experts separate"
        )
    sums, numbers = np.zeros((count, width), np.float32), np.zeros(count, np.float32)
    for number, one in there.items():
        if number < count:
            sums[number], numbers[number] = one.sums.ravel(), one.counts[0]
    return ImatrixEntry(name=name, sums=sums, counts=numbers)


def _stack_of(name: str) -> tuple[str, int] | None:
    """For the name of one expert's entry: the name of the entry of all experts, and the expert's number."""
    expert = tensor_axes(name, "").expert
    if expert is None or not name.endswith(f".{expert}.weight"):
        return None
    return f"{name.removesuffix(f'.{expert}.weight')}_exps.weight", expert


def _parts_of_name(name: str) -> tuple[str, str, str]:
    rest, _, end = name.rpartition(".")
    stem, _, base = rest.rpartition(".")
    return stem, base, end


# --- layers and experts ----------------------------------------------------------------------------------------------


def _with_layers(
    entries: Entries, text: str, donors: Mapping[str, Entries], counts: Counts, findings: Findings
) -> tuple[Entries, list[int | None]]:
    """The entries of the layers in the list, and each layer's number in the input; None if it is another model's."""
    problems: list[str] = []
    wanted = parse_list(text, "layers", labels=True)
    unknown = sorted({span.label for span in wanted.spans if span.label is not None} - set(donors))
    if unknown:
        near = did_you_mean(unknown[0], donors)
        findings.problem(f"--layers: no imatrix is labelled {listed(unknown)}; give LABEL=FILE{near}")
        return entries, list(range(counts.layers))
    numbers: list[tuple[str | None, int]]
    sizes = {label: max((layer_of(name) or 0 for name in donor), default=0) + 1 for label, donor in donors.items()}
    own = {label for label, donor in donors.items() if donor is entries}
    numbers = resolve(
        wanted, lambda label: counts.trunk if label in own or not label else sizes[label], "layers", problems
    )
    numbers = [(None if label in own else label, layer) for label, layer in numbers]
    findings.problem(*problems)
    numbers += [(None, layer) for layer in range(counts.trunk, counts.layers)]
    if numbers == [(None, layer) for layer in range(counts.layers)]:
        return entries, list(range(counts.layers))
    groups = {label: _by_layer(donor) for label, donor in (*donors.items(), (None, entries))}
    made = {name: entry for name, entry in entries.items() if layer_of(name) is None}
    for number, (label, layer) in enumerate(numbers):
        for entry in groups[label].get(layer, ()):
            name = in_layer(entry.name, number)
            made[name] = _named(entry, name)
    return made, [layer if label is None else None for label, layer in numbers]


def _by_layer(entries: Entries) -> dict[int, list[ImatrixEntry]]:
    groups: dict[int, list[ImatrixEntry]] = {}
    for name, entry in entries.items():
        layer = layer_of(name)
        if layer is not None:
            groups.setdefault(layer, []).append(entry)
    return groups


def _with_experts(
    entries: Entries,
    wanted: str | Mapping[int, Sequence[int]],
    origins: Sequence[int | None],
    counts: Counts,
    findings: Findings,
) -> Entries:
    """The entries with the rows of the experts that their layers keep."""
    made: dict[str, ImatrixEntry] = {}
    for name, entry in entries.items():
        layer, axes = layer_of(name), tensor_axes(name, counts.architecture)
        if layer is None or not _counts_experts(name, axes):
            made[name] = entry
            continue
        try:
            ids = _ids(wanted, layer, origins[layer] if layer < len(origins) else None, entry, counts)
            made |= {each.name: each for each in _selected(entry, axes, ids, counts)}
        except PlanError as error:
            findings.problem(*(error.problems or [str(error)]))
    return made


def _counts_experts(name: str, axes: Axes) -> bool:
    """Whether an entry is of experts. That of a router is not: its input is the same whichever experts it chooses."""
    if not name.endswith(".weight") or _parts_of_name(name)[1] == "ffn_gate_inp":
        return False
    return axes.experts is not None or axes.expert is not None


def _ids(
    wanted: str | Mapping[int, Sequence[int]], new: int, old: int | None, entry: ImatrixEntry, counts: Counts
) -> Sequence[int]:
    """The expert ids for layer `new`, which was layer `old` of the input; all if no layer keeps fewer."""
    count = counts.experts or len(_matrices(entry, counts)[0])
    if not isinstance(wanted, str):
        if old is not None and old in wanted:
            return wanted[old]
        if all(len(ids) == count for ids in wanted.values()):
            return range(count)
        raise PlanError(f"--experts: no ids for layer {new if old is None else old}, which has experts")
    problems: list[str] = []
    ids = resolve_own(parse_list(wanted, "experts"), count, "experts", problems)
    refuse(problems)
    return ids


def _selected(entry: ImatrixEntry, axes: Axes, ids: Sequence[int], counts: Counts) -> Iterator[ImatrixEntry]:
    if axes.expert is not None:
        stem, _, end = entry.name.rsplit(".", 2)
        yield from (_named(entry, f"{stem}.{number}.{end}") for number, old in enumerate(ids) if old == axes.expert)
        return
    rows, numbers = _matrices(entry, counts, chunks=axes.chunks)
    chosen = list(kept_chunks(ids, counts.chunk) if axes.chunks else ids)
    outside = [number for number in chosen if not 0 <= number < len(rows)]
    if outside:
        raise PlanError(f"'{printable(entry.name, 80)}' has {len(rows):,} experts; number {outside[0]} does not exist")
    yield ImatrixEntry(name=entry.name, sums=rows[chosen], counts=numbers[chosen])


def _matrices(entry: ImatrixEntry, counts: Counts, *, chunks: bool = False) -> tuple[Floats, Floats]:
    """The sums of an entry of experts, one row each, and counts; raises `PlanError` if their number is unknown."""
    if len(entry.sums) > 1:
        return entry.sums, entry.counts
    experts = counts.experts // counts.chunk if chunks else counts.experts
    if not experts or entry.values % experts:
        raise PlanError(
            f"'{printable(entry.name, 80)}' has all experts in one row, and their number is unknown: give --model MODEL"
        )
    import numpy as np

    return entry.sums.reshape(experts, -1), np.repeat(entry.counts, experts)
