"""Swap: replace tensors of a model with a donor's, and leave the rest unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gguftool.errors import PlanError, listed, printable
from gguftool.format.ggml import type_alias
from gguftool.format.kv import KV
from gguftool.model.layout import Dialect, OutputOptions, check_sizes, gguf_file, padded_size, with_alignment
from gguftool.model.model import Model, Tensor, shape_text
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.padding import PADDING_KEY, Filler
from gguftool.model.scales import owner_of, scales_of
from gguftool.record import replace
from gguftool.storage.plan import OutputFile, Plan, in_place
from gguftool.surgery.compatibility import refuse_not_computable, require_complete
from gguftool.surgery.inputs import Donor, as_donor
from gguftool.surgery.metadata import OutputMetadata, SelectedTensor, output_metadata
from gguftool.surgery.selection import scales_remark, select_tensors
from gguftool.surgery.shards import TensorChanges, recorded_sequence, replace_shards, rewrite_set


def plan_swap(
    model: ModelLike,
    donor: Donor | ModelLike,
    patterns: Sequence[str],
    output: StrPath | None,
    options: OutputOptions | None = None,
) -> Plan:
    """Plan `model` with the tensors that match `patterns` taken from `donor`; for a set, `output` is the new prefix.

    `output` None changes the model in place: in a single file every new tensor must have the old one's padded size; in
    a set, the shards that change are replaced. Types may differ, but shapes must agree. A set keeps its shards, so
    `options.max_size` has no effect. Raises one `PlanError` with all problems.
    """
    model, donor, output = as_model(model), as_donor(donor), None if output is None else Path(output)
    options = options or OutputOptions()
    require_complete(model)
    changes = select_swaps(model, donor, patterns)
    dialect = options.dialect_for(model)
    if output is None:
        _refuse_other_count(model, changes)
    metadata = _metadata(model, donor, changes, keep_file_type=options.keep_file_type)
    check_sizes(changes.applied(model.tensors.values()), dialect)
    warnings = _refuse_not_computable(model, changes, options)
    first_shard = None
    if output is None and len(model.files) > 1:
        outputs, first_shard = replace_shards(model, metadata.kvs, changes, dialect)
    else:
        outputs = _outputs(model, metadata.kvs, changes, output, dialect)
    return Plan(
        outputs=outputs,
        inputs=(*model.sources, *(source for source in donor.sources if source not in model.sources)),
        remarks=(*_remarks(model, changes), *warnings, *model.remarks, *metadata.remarks),
        first_shard=first_shard,
        sequence=recorded_sequence(model) if len(model.files) > 1 else (),
    )


def select_swaps(model: Model, donor: Donor, patterns: Sequence[str]) -> TensorChanges:
    """Select by `patterns` the tensors of `model` to replace with the donor's; their scales are replaced with them.

    Dims are spelled as in `model`. Raises one `PlanError` with every tensor that the donor lacks or has in another
    shape or byte order, every scale without its weight, and every pattern that matches nothing.
    """
    selected = select_tensors(patterns, tuple(model.tensors))
    problems = [
        f"'{printable(name)}' is a scale of '{printable(weight)}' and changes its numbers: "
        f"--tensor '{printable(weight)}' swaps both"
        for name in selected
        if (weight := owner_of(model.tensors, name)) is not None and weight not in selected
    ]
    names = [name for name in selected if owner_of(model.tensors, name) is None]
    missing = [name for name in names if name not in donor.tensors]
    if missing:
        problems.append(f"{listed(missing)}: not in the donor {donor.name}, or of a type that ggml lacks")
    taken, wrong_order = {}, []
    for name in names:
        if name in missing:
            continue
        ours, theirs = model.tensors[name], donor.tensors[name]
        if donor.byte_order_of(name) is not model.byte_order:
            wrong_order.append(f"'{printable(name)}'")
        if ours.info.shape != theirs.info.shape:
            problems.append(
                f"'{printable(name)}' is {shape_text(ours.info.shape)} here and "
                f"{shape_text(theirs.info.shape)} in the donor"
            )
        taken[name] = replace(theirs, info=replace(theirs.info, dims=ours.info.dims))
    changes = _with_scales(model, donor, taken, problems)
    if wrong_order:
        order = model.byte_order.name.lower()
        problems.append(f"the model is {order}-endian, but the donor's bytes are not: {listed(wrong_order, 8)}")
    if len(problems) == 1:
        raise PlanError(problems[0])
    if problems:
        raise PlanError(f"cannot swap, {len(problems):,} problems", problems=problems)
    return changes


def _with_scales(model: Model, donor: Donor, taken: dict[str, Tensor], problems: list[str]) -> TensorChanges:
    """The weights of `taken` with the donor's scales in place of the model's; adds to `problems`."""
    whole = donor.model is not None and donor.model.is_complete
    scales: dict[str, Tensor] = {}
    added: dict[str, tuple[Tensor, ...]] = {}
    dropped: set[str] = set()
    for name, tensor in taken.items():
        ours, theirs = scales_of(model.tensors, name), scales_of(donor.tensors, name)
        scales |= {scale: theirs[scale] for scale in ours if scale in theirs}
        more = tuple(theirs[scale] for scale in theirs if scale not in ours)
        added |= {name: more} if more else {}
        lost = [scale for scale in ours if scale not in theirs]
        if lost and not whole and tensor.type_name == "NVFP4":
            problems.append(
                f"'{printable(name)}' is NVFP4 in the donor {donor.name} without {listed(lost)}: it needs the scale "
                "that it was made with (gguftool export takes both along)"
            )
        dropped.update(lost)
    return TensorChanges(taken={**taken, **scales}, added=added, dropped=frozenset(dropped))


def _metadata(model: Model, donor: Donor, changes: TensorChanges, *, keep_file_type: bool) -> OutputMetadata:
    bare = Model(name=donor.name, files=model.files, kvs=(), tensors=donor.tensors)  # safetensors carry no metadata
    itself = {source.file_key for source in donor.sources} == {source.file_key for source in model.sources}
    source = model if itself else donor.model or bare
    chosen = [
        SelectedTensor(tensor=tensor, model=model if model.tensors.get(tensor.info.name) is tensor else source)
        for tensor in changes.applied(model.tensors.values())
    ]
    return output_metadata(model, chosen, keep_file_type=keep_file_type)


def _outputs(
    model: Model, kvs: tuple[KV, ...], changes: TensorChanges, output: Path | None, dialect: Dialect
) -> tuple[OutputFile, ...]:
    if len(model.files) > 1 and output is not None:
        return rewrite_set(model, kvs, changes, output, dialect)
    base = model.files[0].source
    tensors = changes.applied(model.tensors.values())
    kvs = with_alignment(kvs, dialect.alignment, dialect.byte_order)
    old, padding = model.files[0].header.data_offset, model.get(PADDING_KEY)
    if padding is not None:
        kvs = (*kvs, padding)
        dialect = replace(dialect, filler=replace(dialect.filler, at_least=old))
    if output is not None:
        return (gguf_file(output, kvs, tensors, dialect),)
    _refuse_other_sizes(model, changes.taken, dialect)
    if padding is not None or dialect.filler.pad:
        dialect = replace(dialect, filler=Filler(data_offset=old))
    return (in_place(gguf_file(Path(base.name), kvs, tensors, dialect), base),)


def _refuse_not_computable(model: Model, changes: TensorChanges, options: OutputOptions) -> tuple[str, ...]:
    new = [*changes.taken.values(), *(scale for scales in changes.added.values() for scale in scales)]
    had = {name: tensor.info.type for name, tensor in model.tensors.items()}
    created = [tensor for tensor in new if had.get(tensor.info.name) != tensor.info.type]
    return refuse_not_computable(created, model.tensors.values(), options)


def _refuse_other_count(model: Model, changes: TensorChanges) -> None:
    """Raise `PlanError` if scales come or go: then everything after the head, or every shard's count, changes."""
    added = [scale.info.name for scales in changes.added.values() for scale in scales]
    if added or changes.dropped:
        what = f"the scales {listed(added, 4)} come" if added else f"the scales {listed(sorted(changes.dropped), 4)} go"
        raise PlanError(f"not in place: {what} with their weights; -o OUT writes a new file", source=model.name)


def _refuse_other_sizes(model: Model, taken: Mapping[str, Tensor], dialect: Dialect) -> None:
    """Raise `PlanError` if a tensor's padded size would change: in place, nothing after it may move."""
    problems = []
    for name, tensor in taken.items():
        old, new = padded_size(model.tensors[name], dialect).total, padded_size(tensor, dialect).total
        if old != new:
            problems.append(f"'{printable(name)}' takes {new:,} bytes, but its place has {old:,}")
    if problems:
        raise PlanError(f"not in place: {'; '.join(problems)}; -o OUT writes a new file", source=model.name)


def _remarks(model: Model, changes: TensorChanges) -> tuple[str, ...]:
    swaps = f"swaps {len(changes.taken)} tensor(s): {_described(model, changes.taken)}"
    added = [scale.info.name for scales in changes.added.values() for scale in scales]
    return (swaps, *scales_remark(added, sorted(changes.dropped)))


def _described(model: Model, taken: Mapping[str, Tensor], limit: int = 20) -> str:
    swaps = [
        f"{printable(name)} {type_alias(model.tensors[name].info.type)} -> {type_alias(tensor.info.type)}"
        for name, tensor in list(taken.items())[:limit]
    ]
    more = f" and {len(taken) - limit} more" if len(taken) > limit else ""
    return ", ".join(swaps) + more
