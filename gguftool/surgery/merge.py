"""Merge: combine tensors from any inputs into one valid model, in one file or a set of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguftool.errors import PlanError, listed
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.model.layout import Dialect, OutputOptions, check_sizes, gguf_file, with_alignment
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.record import record, replace
from gguftool.storage.plan import Plan, Request
from gguftool.surgery.compatibility import contradictions, refuse_not_computable, shape_conflicts
from gguftool.surgery.inputs import Input, as_inputs
from gguftool.surgery.metadata import (
    PROVENANCE_PREFIX,
    SelectedTensor,
    output_metadata,
    with_true_file_type,
    without_provenance,
)
from gguftool.surgery.planned_head import is_judged_already, judge_planned
from gguftool.surgery.selection import (
    Selection,
    SelectionOptions,
    scale_owners,
    scales_remark,
    select_inputs,
    with_scales,
)
from gguftool.surgery.shards import Cut, lay_out_set

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe


@record
class MergeOptions:
    """Which tensors to take, and how the output is laid out.

    `kv_from`: the model that gives the metadata, default: the first input with a `general.architecture`;
    `allowed_mismatches`: keys in which inputs may differ; `provenance`: record in `gguftool.source.*` where each
    tensor came from; `consume`: remove each input file as soon as the output holds its bytes safely.
    """

    recipe: Recipe | None = None
    selection: SelectionOptions = SelectionOptions()
    kv_from: ModelLike | None = None
    allowed_mismatches: tuple[str, ...] = ()
    provenance: bool = False
    output: OutputOptions = OutputOptions()
    consume: Request | None = None


def merge_anchor(output: Path, max_size: int | None) -> Path:
    """The name that identifies the output, for one file or many: its path, or the prefix of a set."""
    return output if max_size is None else Path(str(output).removesuffix(".gguf"))


def plan_merge(
    inputs: Input | ModelLike | Sequence[Input | ModelLike], output: StrPath, options: MergeOptions | None = None
) -> Plan:
    """Plan the model that `inputs` make together, as the file `output`; with a size limit, as a set of that prefix.

    A path among `inputs` may have a label, ``LABEL=PATH``, and adjacent paths are pooled, as on the command line.
    Each tensor must be in exactly one input, or `options.recipe` selects it by type or label. Metadata, order and
    spelling of dims come from one input; metadata about quantization is corrected for the output.
    Raises one `PlanError` with all problems: missing, extra and ambiguous tensors, shapes and metadata that contradict
    each other, rules that match nothing, types that no input has, sizes in doubt; and another one with every reason why
    the output would not load (`planned_head.judge_planned`).
    """
    output, options = Path(output), options or MergeOptions()
    sources = as_inputs(inputs)
    remarks = [remark for source in sources for remark in source.model.remarks]
    donor = _same_model(options.kv_from, sources) or _default_donor(sources)
    left_out = [] if options.kv_from is None else _of_other_architecture(donor, sources, options.allowed_mismatches)
    if left_out:
        sources = [source for source in sources if source not in left_out]
        where = listed([source.name for source in left_out])
        remarks.append(f"left out, as their architecture differs from that of {donor.name}: {where}")
    if options.recipe is None:
        sources = _without_strays(sources, remarks)
    reference = _reference(donor, sources)
    names = with_scales(_names(donor, reference, sources), [source.model for source in sources])
    selection = select_inputs(names, sources, options.recipe, options.selection)
    _refuse_problems([*selection.problems, *_problems(donor, reference, names, sources, options)], remarks)
    chosen = [selection.chosen[name] for name in names if name in selection.chosen]
    metadata = output_metadata(donor, chosen, keep_file_type=options.output.keep_file_type)
    if not options.output.keep_file_type:
        metadata = with_true_file_type(metadata, chosen, donor.byte_order, wanted=options.output.true_file_type)
    kvs = metadata.kvs
    if options.provenance:
        kvs = (*without_provenance(kvs), *_provenance(chosen, donor.byte_order))
    kvs = options.output.with_texts(kvs, donor.byte_order)
    tensors = tuple(_as_in(reference, choice.tensor) for choice in chosen)
    dialect, max_size = options.output.dialect_for(donor), options.output.max_size
    created, kept = _by_origin(chosen, reference or donor)
    remarks += [
        *refuse_not_computable(created, kept, options.output),
        *_scale_remarks(names, reference or donor, selection),
        *selection.remarks,
        *metadata.remarks,
    ]
    plan = lay_out(output, kvs, tensors, dialect, max_size, _plan_inputs(donor, sources), remarks)
    models = [source.model for source in sources]
    judged = [donor, *(model for model in models if model is not donor)]
    if not is_judged_already(with_alignment(kvs, dialect.alignment, dialect.byte_order), tensors, judged):
        plan = judge_planned(plan, judged, engines=options.output.engines, anyway=options.output.anyway)
    if options.consume is None:
        return plan
    from gguftool.surgery.removable import consuming

    return consuming(plan, merge_anchor(output, max_size), options.consume, chosen, donor, models)


def lay_out(
    output: Path,
    kvs: tuple[KV, ...],
    tensors: tuple[Tensor, ...],
    dialect: Dialect,
    max_size: int | None,
    inputs: Sequence[Model],
    remarks: Sequence[str],
) -> Plan:
    """Plan one file, or with `max_size` (bytes) a set with `output` as its prefix.

    Raises `PlanError` for sizes in doubt, or more shards than a set can have.
    """
    check_sizes(tensors, dialect)
    kvs = with_alignment(kvs, dialect.alignment, dialect.byte_order)
    sources = tuple(dict.fromkeys(source for model in inputs for source in model.sources))
    if max_size is None:
        return Plan(outputs=(gguf_file(output, kvs, tensors, dialect),), inputs=sources, remarks=tuple(remarks))
    outputs, more = lay_out_set(str(merge_anchor(output, max_size)), kvs, tensors, Cut(max_size=max_size), dialect)
    return Plan(outputs=outputs, inputs=sources, remarks=(*remarks, *more))


# --- which input gives metadata, names and order ---------------------------------------------------------------------


def _default_donor(sources: Sequence[Input]) -> Model:
    donor = next((s.model for s in sources if s.model.get(ARCHITECTURE_KEY)), None)
    if donor is not None:
        return donor
    if len(sources) == 1 and sources[0].model.is_complete:
        return sources[0].model  # for example an imatrix file
    missing = [shard for source in sources for shard in source.model.missing]
    gaps = f" (missing shards: {listed(missing)})" if missing else ""
    raise PlanError(f"no input has a general.architecture{gaps}; --kv-from names a model that gives the metadata")


def _same_model(model: ModelLike | None, sources: Sequence[Input]) -> Model | None:
    """The input with a file of `model`, else `model` itself: an additional donor of metadata; None without `model`."""
    if model is None:
        return None
    model = as_model(model)
    wanted = model.sources[
        0
    ].file_key  # the file with the metadata; shards with different prefixes are different inputs
    return next((s.model for s in sources if wanted in {x.file_key for x in s.model.sources}), model)


def _of_other_architecture(donor: Model, sources: Sequence[Input], allowed: Sequence[str]) -> list[Input]:
    """The inputs of another architecture than the donor that the user named: they are there by chance."""
    wanted = donor.get(ARCHITECTURE_KEY)
    if wanted is None or ARCHITECTURE_KEY in allowed:
        return []
    found = ((source, source.model.get(ARCHITECTURE_KEY)) for source in sources)
    return [source for source, kv in found if kv is not None and (kv.type, kv.raw) != (wanted.type, wanted.raw)]


def _without_strays(sources: list[Input], remarks: list[str]) -> list[Input]:
    """Leave out incomplete sets if the one complete model has all their tensors."""
    complete = [source for source in sources if source.model.is_complete and source.model.tensors]
    if len(complete) != 1 or len(sources) == 1:
        return sources
    whole = complete[0].model.tensors.keys()
    strays = [s for s in sources if s is not complete[0] and s.model.missing and s.model.tensors.keys() <= whole]
    if strays:
        remarks.append(f"left out incomplete sets next to {complete[0].name}: {listed([s.name for s in strays])}")
    return [source for source in sources if source not in strays]


def _reference(donor: Model, sources: Sequence[Input]) -> Model | None:
    """The model that decides about tensors, their order and spelling: the donor or a complete input, or None.

    A file that looks complete, but has fewer tensors than the donor's set counts, is a part like the others.
    """
    least = donor.expected_tensors or 1
    candidates = [donor, *(source.model for source in sources)]
    if len(candidates) == 2 and candidates[0] is candidates[1] and donor.is_complete:
        return donor  # even without tensors: some files have only a vocabulary
    return next((model for model in candidates if model.is_complete and len(model.tensors) >= least), None)


def _names(donor: Model, reference: Model | None, sources: Sequence[Input]) -> tuple[str, ...]:
    if reference is not None:
        return tuple(reference.tensors)
    # No input is complete. Sets of one model agree on which shard holds which tensor, so shard numbers give the order.
    numbers: dict[str, int] = {}
    for model in (donor, *(source.model for source in sources)):
        for file in model.files:
            for info in file.header.tensors:
                numbers.setdefault(info.name, file.shard.number if file.shard else 0)
    return tuple(sorted(numbers, key=lambda name: numbers[name]))


def _as_in(reference: Model | None, tensor: Tensor) -> Tensor:
    """`tensor` with dims spelled as in `reference` (publishers differ in trailing ones)."""
    known = None if reference is None else reference.tensors.get(tensor.info.name)
    return tensor if known is None else replace(tensor, info=replace(tensor.info, dims=known.info.dims))


def _by_origin(chosen: Sequence[SelectedTensor], reference: Model) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that `reference` lacks or has in another type, and those that it has in the same type."""
    created: list[Tensor] = []
    kept: list[Tensor] = []
    for choice in chosen:
        known = reference.tensors.get(choice.tensor.info.name)
        is_same = known is not None and known.info.type == choice.tensor.info.type
        (kept if is_same else created).append(choice.tensor)
    return created, kept


def _scale_remarks(names: Sequence[str], reference: Model, selection: Selection) -> Iterator[str]:
    """Count the scales that only the output has, and those that only `reference` has."""
    added = [name for name in names if name in selection.chosen and name not in reference.tensors]
    added = list(scale_owners(added, [choice.model for choice in selection.chosen.values()])) if added else []
    dropped = [name for name in names if name not in selection.chosen]
    yield from scales_remark(added, dropped)


# --- problems --------------------------------------------------------------------------------------------------------


_LIST_OF_TENSORS = "the model that gives the metadata decides which tensors belong: --kv-from names another"


def _problems(
    donor: Model, reference: Model | None, names: Sequence[str], sources: Sequence[Input], options: MergeOptions
) -> Iterator[str]:
    known = set(names)
    owners = scale_owners(names, [donor, *(source.model for source in sources)])
    without = sum(name in donor.tensors or name not in owners for name in names)  # a donor counts its own scales
    if len(sources) > 1 and donor.get(ARCHITECTURE_KEY) is None:
        yield f"{donor.name} should give the metadata, but has no general.architecture"
    for source in sources:
        extra = [name for name in source.model.tensors if name not in known]
        if extra:
            where = reference.name if reference else "the set"
            yield f"not in {where}, but in {source.name}: {listed(extra, 8)}; {_LIST_OF_TENSORS}"
        if source.model.byte_order is not donor.byte_order:
            yield f"{source.name} is {source.model.byte_order.name.lower()}-endian, but {donor.name} is not"
    if reference is None and donor.expected_tensors is None:
        yield "no input is complete, and the metadata does not give the number of tensors (split.tensors.count)"
    elif reference is None and donor.expected_tensors == without:
        pass
    elif reference is None and donor.expected_tensors is not None and donor.expected_tensors < len(names):
        counts = [f"{len(source.model.tensors):,} in {source.name}" for source in sources]
        yield f"{len(names):,} tensors were found, but {donor.expected_tensors:,} belong together: {listed(counts)}"
    elif reference is None and donor.expected_tensors != len(names):
        yield f"{len(names):,} of {donor.expected_tensors:,} tensors were found; {_in_no_input(donor, sources)}"
    if reference is not None:
        yield from shape_conflicts(reference, names, sources)
    yield from contradictions(donor, sources, options.allowed_mismatches)


def _in_no_input(donor: Model, sources: Sequence[Input]) -> str:
    """Name the shards that no input has; inputs are sets of one model if their counts agree."""
    shards = [file.shard for model in (donor, *(s.model for s in sources)) for file in model.files if file.shard]
    counts = {shard.count for shard in shards}
    if len(counts) != 1:
        return f"missing shards: {listed(list(donor.missing)) or 'unknown'}"
    (count,) = counts
    gaps = sorted(set(range(1, count + 1)) - {shard.number for shard in shards})
    if not gaps:
        return "every shard number exists, so sets that are cut differently were mixed"
    one_set = len({shard.prefix for shard in shards}) == 1
    names = [str(replace(shards[0], number=number)) for number in gaps]
    return f"in no input: shards {listed(names if one_set else [name[-19:-5] for name in names])}"


def _refuse_problems(problems: Sequence[str], remarks: Sequence[str]) -> None:
    """Raise one error for all problems; also list the inputs that were left out, which may be the cause."""
    if problems:
        problems = [*problems, *(remark for remark in remarks if remark.startswith("left out"))]
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise PlanError(f"cannot merge, {count}", problems=problems)


def _plan_inputs(donor: Model, sources: Sequence[Input]) -> list[Model]:
    return [donor, *(source.model for source in sources)]


def _provenance(chosen: Sequence[SelectedTensor], order: ByteOrder) -> tuple[KV, ...]:
    """Record where each tensor came from: the names of the files, and for each tensor the index of its file."""
    files: dict[str, int] = {}
    indexes = [files.setdefault(choice.tensor.padded_extent.source.name, len(files)) for choice in chosen]
    names = _short_names([Path(name).parts for name in files])
    return (
        make_kv(f"{PROVENANCE_PREFIX}files", ValueType.ARRAY, names, element=ValueType.STRING, byte_order=order),
        make_kv(f"{PROVENANCE_PREFIX}of_tensor", ValueType.ARRAY, indexes, element=ValueType.UINT32, byte_order=order),
    )


def _short_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest ends of the paths that tell them apart: just the name if that is enough."""
    for depth in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names
