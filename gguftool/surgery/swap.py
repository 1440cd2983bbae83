"""Swap: replace tensors of a model by those of a donor, without touching the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguftool.errors import PlanError, listed, printable
from gguftool.format.ggml import type_alias
from gguftool.format.header import KV
from gguftool.model.layout import Dialect, ForceSizes, check_sizes, gguf_file, with_alignment
from gguftool.model.model import Model, Tensor
from gguftool.storage.plan import OutputFile, Plan
from gguftool.surgery.common import require_complete, select_tensors
from gguftool.surgery.compare import shape_text
from gguftool.surgery.donors import Donor
from gguftool.surgery.sets import rewrite_set
from gguftool.surgery.truth import Chosen, TrueMetadata, true_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapOptions:
    """How the output lies in its files; alignment in bytes, None for the model's own."""

    keep_file_type: bool = False
    alignment: int | None = None
    force_sizes: ForceSizes | None = None


def plan_swap(
    model: Model, donor: Donor, patterns: Sequence[str], output: Path, options: SwapOptions | None = None
) -> Plan:
    """Plan `model` with the tensors that `patterns` choose taken from `donor`; of a set, `output` is the prefix.

    Types may differ, shapes must agree. Raises one `PlanError` with all that stands in the way.
    """
    options = options or SwapOptions()
    require_complete(model)
    taken = choose_swaps(model, donor, patterns)
    dialect = Dialect(
        version=model.version,
        byte_order=model.byte_order,
        alignment=options.alignment or model.alignment,
        force_sizes=options.force_sizes,
    )
    truth = _truth(model, donor, taken, keep_file_type=options.keep_file_type)
    check_sizes([taken.get(name, tensor) for name, tensor in model.tensors.items()], dialect)
    is_set = len(model.files) > 1
    outputs = rewrite_set if is_set else _one_output
    return Plan(
        outputs=outputs(model, truth.kvs, taken, output, dialect),
        inputs=(*model.sources, *(source for source in donor.sources if source not in model.sources)),
        remarks=(f"swaps {len(taken)} tensor(s): {_described(model, taken)}", *model.remarks, *truth.remarks),
    )


def choose_swaps(model: Model, donor: Donor, patterns: Sequence[str]) -> dict[str, Tensor]:
    """Return the donor's tensors for the names that `patterns` choose in `model`, dims spelled as there."""
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
        if donor.byte_orders.get(name, donor.byte_order) is not model.byte_order:
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


def _truth(model: Model, donor: Donor, taken: Mapping[str, Tensor], *, keep_file_type: bool) -> TrueMetadata:
    nobody = Model(name=donor.name, files=model.files, kvs=(), tensors=donor.tensors)  # safetensors carry no metadata
    itself = {source.file_id for source in donor.sources} == {source.file_id for source in model.sources}
    source = model if itself else donor.model or nobody
    chosen = [
        Chosen(tensor=taken.get(name, tensor), model=source if name in taken else model)
        for name, tensor in model.tensors.items()
    ]
    return true_metadata(model, chosen, keep_file_type=keep_file_type)


def _one_output(
    model: Model, kvs: tuple[KV, ...], taken: Mapping[str, Tensor], output: Path, dialect: Dialect
) -> tuple[OutputFile, ...]:
    tensors = [taken.get(name, tensor) for name, tensor in model.tensors.items()]
    return (gguf_file(output, with_alignment(kvs, dialect.alignment, dialect.byte_order), tensors, dialect),)


def _described(model: Model, taken: Mapping[str, Tensor], limit: int = 20) -> str:
    said = [
        f"{printable(name)} {type_alias(model.tensors[name].info.type)} -> {type_alias(tensor.info.type)}"
        for name, tensor in list(taken.items())[:limit]
    ]
    more = f" and {len(taken) - limit} more" if len(taken) > limit else ""
    return ", ".join(said) + more
