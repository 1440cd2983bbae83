"""Merge: the tensors of any mix of inputs into one valid model, in one file or in large shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguftool.errors import PlanError, listed
from gguftool.format.header import KV, ByteOrder, ValueType, make_kv
from gguftool.format.recipe import Recipe
from gguftool.model.layout import Dialect, ForceSizes, check_sizes, gguf_file, with_alignment
from gguftool.model.model import Model, Tensor
from gguftool.model.padding import Filler
from gguftool.storage.plan import Plan
from gguftool.surgery.compare import contradictions, shape_conflicts
from gguftool.surgery.inputs import Input
from gguftool.surgery.mix import MixOptions, choose
from gguftool.surgery.sets import Cut, lay_out_set
from gguftool.surgery.truth import Chosen, true_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """What to choose and how the output lies in its files; sizes and alignment in bytes.

    `kv_from`: whose metadata, by default that of the first input with a `general.architecture`; `max_size`: write a
    set of files up to this size; `allowed_mismatches`: keys in which inputs may differ; `provenance`: say in
    `gguftool.source.*` where each tensor came from.
    """

    recipe: Recipe | None = None
    mix: MixOptions = MixOptions()  # noqa: RUF009 - frozen
    kv_from: Model | None = None
    max_size: int | None = None
    keep_file_type: bool = False
    allowed_mismatches: tuple[str, ...] = ()
    provenance: bool = False
    alignment: int | None = None
    force_sizes: ForceSizes | None = None
    filler: Filler = Filler()  # noqa: RUF009 - frozen


def plan_merge(inputs: Sequence[Input | Model], output: Path, options: MergeOptions | None = None) -> Plan:
    """Plan the model that `inputs` make, as `output`, or as a set with that prefix where `max_size` is given.

    Raises one `PlanError` with everything that stands in the way: missing, extra and ambiguous tensors, shapes and
    metadata that contradict each other, rules that match nothing, types that no input has, sizes in doubt.
    """
    options = options or MergeOptions()
    sources = [source if isinstance(source, Input) else Input(model=source) for source in inputs]
    remarks = [remark for source in sources for remark in source.model.remarks]
    donor = _same_model(options.kv_from, sources) or _default_donor(sources)
    if options.recipe is None:
        sources = _without_strays(sources, remarks)
    reference = _reference(donor, sources)
    names = _names(donor, reference, sources)
    mix = choose(names, sources, options.recipe, options.mix)
    _refuse_problems([*mix.problems, *_problems(donor, reference, names, sources, options)])
    chosen = [mix.chosen[name] for name in names]
    truth = true_metadata(donor, chosen, keep_file_type=options.keep_file_type)
    kvs = truth.kvs
    if options.provenance:
        kvs = (*kvs, *_provenance(chosen, donor.byte_order))
    tensors = tuple(_as_in(reference, choice.tensor) for choice in chosen)
    dialect = Dialect(
        version=donor.version,
        byte_order=donor.byte_order,
        alignment=options.alignment or donor.alignment,
        force_sizes=options.force_sizes,
        filler=options.filler,
    )
    remarks += [*mix.remarks, *truth.remarks]
    return _lay_out(output, kvs, tensors, dialect, options.max_size, _plan_inputs(donor, sources), remarks)


def _lay_out(
    output: Path,
    kvs: tuple[KV, ...],
    tensors: tuple[Tensor, ...],
    dialect: Dialect,
    max_size: int | None,
    inputs: Sequence[Model],
    remarks: Sequence[str],
) -> Plan:
    check_sizes(tensors, dialect)
    kvs = with_alignment(kvs, dialect.alignment, dialect.byte_order)
    sources = tuple(dict.fromkeys(source for model in inputs for source in model.sources))
    if max_size is None:
        return Plan(outputs=(gguf_file(output, kvs, tensors, dialect),), inputs=sources, remarks=tuple(remarks))
    prefix = str(output).removesuffix(".gguf")
    outputs, more = lay_out_set(prefix, kvs, tensors, Cut(max_size=max_size), dialect)
    return Plan(outputs=outputs, inputs=sources, remarks=(*remarks, *more))


# --- who gives metadata, names and order -----------------------------------------------------------------------------


def _default_donor(sources: Sequence[Input]) -> Model:
    donor = next((s.model for s in sources if s.model.get("general.architecture")), None)
    if donor is None:
        raise PlanError("no input has a general.architecture; --kv-from names a model that gives the metadata")
    return donor


def _same_model(model: Model | None, sources: Sequence[Input]) -> Model | None:
    """Return the input that `model` is by its files, else `model` itself: an extra donor of metadata."""
    if model is None:
        return None
    wanted = {source.file_id for source in model.sources}
    return next((s.model for s in sources if {x.file_id for x in s.model.sources} & wanted), model)


def _without_strays(sources: list[Input], remarks: list[str]) -> list[Input]:
    """Leave out incomplete sets where one complete model has all that they have."""
    complete = [source for source in sources if source.model.is_complete and source.model.tensors]
    if len(complete) != 1 or len(sources) == 1:
        return sources
    whole = complete[0].model.tensors.keys()
    strays = [s for s in sources if s is not complete[0] and s.model.missing and s.model.tensors.keys() <= whole]
    if strays:
        remarks.append(f"left out incomplete sets beside {complete[0].name}: {listed([s.name for s in strays])}")
    return [source for source in sources if source not in strays]


def _reference(donor: Model, sources: Sequence[Input]) -> Model | None:
    """Return the model that says which tensors there are, their order and spelling: the donor or a complete input."""
    candidates = [donor, *(source.model for source in sources)]
    return next((model for model in candidates if model.is_complete and model.tensors), None)


def _names(donor: Model, reference: Model | None, sources: Sequence[Input]) -> tuple[str, ...]:
    if reference is not None:
        return tuple(reference.tensors)
    # No input is whole. Sets of one model agree on which shard holds which tensor, so shard numbers give the order.
    numbers: dict[str, int] = {}
    for model in (donor, *(source.model for source in sources)):
        for file in model.files:
            for info in file.header.tensors:
                numbers.setdefault(info.name, file.shard.number if file.shard else 0)
    return tuple(sorted(numbers, key=lambda name: numbers[name]))


def _as_in(reference: Model | None, tensor: Tensor) -> Tensor:
    """Return `tensor` with the dims as the reference spells them (publishers differ in trailing ones)."""
    if reference is None:
        return tensor
    return replace(tensor, info=replace(tensor.info, dims=reference.tensors[tensor.info.name].info.dims))


# --- what stands in the way ------------------------------------------------------------------------------------------


def _problems(
    donor: Model, reference: Model | None, names: Sequence[str], sources: Sequence[Input], options: MergeOptions
) -> Iterator[str]:
    known = set(names)
    for source in sources:
        extra = [name for name in source.model.tensors if name not in known]
        if extra:
            yield f"{listed(extra)}: in {source.name} but not in {reference.name if reference else 'the set'}"
        if source.model.byte_order is not donor.byte_order:
            yield f"{source.name} is {source.model.byte_order.name.lower()}-endian, {donor.name} is not"
    if reference is None and donor.expected_tensors not in (None, len(names)):
        missing = listed(list(donor.missing)) or "unknown"
        yield f"{len(names):,} of {donor.expected_tensors:,} tensors are there; missing shards: {missing}"
    elif reference is None:
        yield "no input is complete, and none says how many tensors there are (split.tensors.count)"
    if reference is not None:
        yield from shape_conflicts(reference, names, sources)
    yield from contradictions(donor, sources, options.allowed_mismatches)


def _refuse_problems(problems: Sequence[str]) -> None:
    if problems:
        raise PlanError(f"{len(problems)} problem(s): " + "; ".join(problems))


def _plan_inputs(donor: Model, sources: Sequence[Input]) -> list[Model]:
    return [donor, *(source.model for source in sources)]


def _provenance(chosen: Sequence[Chosen], order: ByteOrder) -> tuple[KV, ...]:
    """Say where each tensor came from: file names (no folders), and for each tensor the index of its file."""
    files: dict[str, int] = {}
    indexes = [files.setdefault(Path(choice.tensor.gap.source.name).name, len(files)) for choice in chosen]
    return (
        make_kv("gguftool.source.files", ValueType.ARRAY, list(files), element=ValueType.STRING, byte_order=order),
        make_kv("gguftool.source.of_tensor", ValueType.ARRAY, indexes, element=ValueType.UINT32, byte_order=order),
    )
