"""Export: write tensors of a model into a safetensors file, as they are or as floats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguftool.errors import PlanError, listed, printable
from gguftool.format.ggml import type_alias
from gguftool.format.kv import ByteOrder
from gguftool.format.safetensors import SafeTensor, serialize_safetensors
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.scales import factor_of, owner_of, scales_of
from gguftool.record import replace
from gguftool.storage.plan import Copy, OutputFile, Plan, copies_of
from gguftool.storage.sources.source import Extent, Source
from gguftool.surgery.dequantized_source import FloatType, dequantized
from gguftool.surgery.selection import select_tensors


def plan_export(model: ModelLike, patterns: Sequence[str], output: StrPath, dtype: FloatType | None = None) -> Plan:
    """Plan the safetensors file `output` with the tensors that match `patterns`.

    With `dtype` None, bytes are copied as they are: dtype U8, with type and dims in the file's metadata, so that `swap`
    can take them back; the scales of a weight come with it. As floats, a weight is multiplied by its scale, as in
    llama.cpp, and its scales are left out. Raises one `PlanError` with every tensor that cannot be exported that way,
    or every pattern that matches nothing.
    """
    model = as_model(model)
    names, remarks = _with_scales(select_tensors(patterns, tuple(model.tensors)), model, raw=dtype is None)
    contents = _contents([model.tensors[name] for name in names], model, dtype)
    entries, offset = [], 0
    copies: list[Copy] = []
    for name, extent in zip(names, contents, strict=True):
        info = model.tensors[name].info
        entries.append(
            SafeTensor(
                name=name,
                dims=info.dims,
                type_id=info.type,
                dtype="U8" if dtype is None else dtype.name,
                begin=offset,
                end=offset + extent.length,
                big_endian=dtype is None and model.byte_order is ByteOrder.BIG,
            )
        )
        if extent.length:
            copies += copies_of(extent, offset)
        offset += extent.length
    _refuse_odd_names(names)
    head = serialize_safetensors(entries)
    return Plan(
        outputs=(
            OutputFile(
                path=Path(output),
                head=head,
                copies=tuple(replace(copy, offset=len(head) + copy.offset) for copy in copies),
                size=len(head) + offset,
            ),
        ),
        inputs=model.sources,
        remarks=(f"exports {len(names)} tensor(s)", *remarks, *model.remarks),
    )


def _with_scales(names: Sequence[str], model: Model, *, raw: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors to export for `names`, in the model's order, and remarks; all scales if `raw`, else none."""
    chosen = set(names)
    scales = {scale for name in names for scale in scales_of(model.tensors, name)}
    if raw:
        more = scales - chosen
        remarks = (f"{len(more):,} scale(s) come with their weights: {listed(sorted(more), 4)}",) if more else ()
        return tuple(name for name in model.tensors if name in chosen | scales), remarks
    scaled = [name for name in names if factor_of(model.tensors, name) is not None]
    remarks = (f"{len(scaled):,} weight(s) multiplied by their scales: {listed(scaled, 4)}",) if scaled else ()
    return tuple(name for name in names if owner_of(model.tensors, name) not in chosen), remarks


def _contents(tensors: Sequence[Tensor], model: Model, dtype: FloatType | None) -> list[Extent]:
    contents, problems = [], []
    for tensor in tensors:
        try:
            contents.append(_content(tensor, model, dtype))
        except PlanError as error:
            problems.append(error.message)
    if len(problems) == 1:
        raise PlanError(problems[0])
    if problems:
        raise PlanError(f"{len(problems):,} tensors cannot be exported this way", problems=problems)
    return contents


def _content(tensor: Tensor, model: Model, dtype: FloatType | None) -> Extent:
    if tensor.sizing is Sizing.CONFLICT or (dtype is None and tensor.sizing is Sizing.GAP):
        raise PlanError(
            f"'{printable(tensor.info.name)}' is {type_alias(tensor.info.type)}, and its size cannot be told from its "
            f"padding: together they take {tensor.padded_extent.length:,} bytes"
        )
    if dtype is None:
        return tensor.extent
    source: Source = dequantized(tensor, dtype, model.byte_order, factor_of(model.tensors, tensor.info.name))
    return Extent(source=source, offset=0, length=source.size)


def _refuse_odd_names(names: Sequence[str]) -> None:
    for name in names:
        if not name or name == "__metadata__" or not name.isprintable():
            raise PlanError(f"'{printable(name)}' cannot be a tensor name in a safetensors file")
