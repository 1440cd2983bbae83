"""Swap: replace tensors of a model by a donor's, and leave the rest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gguftool.errors import PlanError, listed, printable
from gguftool.format.ggml import type_alias
from gguftool.format.kv import KV
from gguftool.model.layout import Dialect, OutputOptions, check_sizes, gguf_file, padded_size, with_alignment
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.padding import PADDING_KEY, Filler
from gguftool.record import replace
from gguftool.storage.plan import OutputFile, Plan, in_place
from gguftool.surgery.compatibility import require_complete, shape_text
from gguftool.surgery.inputs import Donor, as_donor
from gguftool.surgery.metadata import OutputMetadata, SelectedTensor, output_metadata
from gguftool.surgery.selection import select_tensors
from gguftool.surgery.shards import recorded_sequence, replace_shards, rewrite_set


def plan_swap(
    model: ModelLike,
    donor: Donor | ModelLike,
    patterns: Sequence[str],
    output: StrPath | None,
    options: OutputOptions | None = None,
) -> Plan:
    """Plan `model` with the tensors that match `patterns` taken from `donor`; for a set, `output` is the new prefix.

    `output` None changes the model in place: in a single file every new tensor must have the old one's padded size, of
    a set the shards that change are replaced. Types may differ, shapes must agree. A set keeps its shards, so
    `options.max_size` has no effect. Raises one `PlanError` with all problems.
    """
    model, donor, output = as_model(model), as_donor(donor), None if output is None else Path(output)
    options = options or OutputOptions()
    require_complete(model)
    taken = select_swaps(model, donor, patterns)
    dialect = options.dialect_for(model)
    metadata = _metadata(model, donor, taken, keep_file_type=options.keep_file_type)
    check_sizes([taken.get(name, tensor) for name, tensor in model.tensors.items()], dialect)
    first_shard = None
    if output is None and len(model.files) > 1:
        outputs, first_shard = replace_shards(model, metadata.kvs, taken, dialect)
    else:
        outputs = _outputs(model, metadata.kvs, taken, output, dialect)
    return Plan(
        outputs=outputs,
        inputs=(*model.sources, *(source for source in donor.sources if source not in model.sources)),
        remarks=(f"swaps {len(taken)} tensor(s): {_described(model, taken)}", *model.remarks, *metadata.remarks),
        first_shard=first_shard,
        sequence=recorded_sequence(model) if len(model.files) > 1 else (),
    )


def select_swaps(model: Model, donor: Donor, patterns: Sequence[str]) -> dict[str, Tensor]:
    """Select by `patterns` the tensors of `model` to replace, and map their names to the donor's tensors.

    Dims are spelled as in `model`. Raises one `PlanError` with every tensor that the donor lacks or has in another
    shape or byte order, and every pattern that matches nothing.
    """
    names = select_tensors(patterns, tuple(model.tensors))
    problems = []
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
    if wrong_order:
        order = model.byte_order.name.lower()
        problems.append(f"the model is {order}-endian, the donor's bytes are not: {listed(wrong_order, 8)}")
    if len(problems) == 1:
        raise PlanError(problems[0])
    if problems:
        raise PlanError(f"cannot swap, {len(problems):,} problems", problems=problems)
    return taken


def _metadata(model: Model, donor: Donor, taken: Mapping[str, Tensor], *, keep_file_type: bool) -> OutputMetadata:
    bare = Model(name=donor.name, files=model.files, kvs=(), tensors=donor.tensors)  # safetensors carry no metadata
    itself = {source.file_key for source in donor.sources} == {source.file_key for source in model.sources}
    source = model if itself else donor.model or bare
    chosen = [
        SelectedTensor(tensor=taken.get(name, tensor), model=source if name in taken else model)
        for name, tensor in model.tensors.items()
    ]
    return output_metadata(model, chosen, keep_file_type=keep_file_type)


def _outputs(
    model: Model, kvs: tuple[KV, ...], taken: Mapping[str, Tensor], output: Path | None, dialect: Dialect
) -> tuple[OutputFile, ...]:
    if len(model.files) > 1 and output is not None:
        return rewrite_set(model, kvs, taken, output, dialect)
    base = model.files[0].source
    tensors = [taken.get(name, tensor) for name, tensor in model.tensors.items()]
    kvs = with_alignment(kvs, dialect.alignment, dialect.byte_order)
    old, padding = model.files[0].header.data_offset, model.get(PADDING_KEY)
    if padding is not None:
        kvs = (*kvs, padding)
        dialect = replace(dialect, filler=replace(dialect.filler, at_least=old))
    if output is not None:
        return (gguf_file(output, kvs, tensors, dialect),)
    _refuse_other_sizes(model, taken, dialect)
    if padding is not None or dialect.filler.pad:
        dialect = replace(dialect, filler=Filler(data_offset=old))
    return (in_place(gguf_file(Path(base.name), kvs, tensors, dialect), base),)


def _refuse_other_sizes(model: Model, taken: Mapping[str, Tensor], dialect: Dialect) -> None:
    """Raise `PlanError` if a tensor's padded size would change: in place, nothing behind it may move."""
    problems = []
    for name, tensor in taken.items():
        old, new = padded_size(model.tensors[name], dialect).total, padded_size(tensor, dialect).total
        if old != new:
            problems.append(f"'{printable(name)}' takes {new:,} bytes, its place has {old:,}")
    if problems:
        raise PlanError(f"not in place: {'; '.join(problems)}; -o OUT writes a new file", source=model.name)


def _described(model: Model, taken: Mapping[str, Tensor], limit: int = 20) -> str:
    swaps = [
        f"{printable(name)} {type_alias(model.tensors[name].info.type)} -> {type_alias(tensor.info.type)}"
        for name, tensor in list(taken.items())[:limit]
    ]
    more = f" and {len(taken) - limit} more" if len(taken) > limit else ""
    return ", ".join(swaps) + more
