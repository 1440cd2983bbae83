"""Merge: the tensors of any mix of inputs into one valid model, in one file or in large shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguftool.errors import PlanError, listed
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.model.layout import Dialect, ForceSizes, check_sizes, gguf_file, with_alignment
from gguftool.model.model import Model, Tensor
from gguftool.model.padding import Filler
from gguftool.record import record, replace
from gguftool.storage.plan import Plan, Request
from gguftool.surgery.compatibility import contradictions, shape_conflicts
from gguftool.surgery.inputs import Input
from gguftool.surgery.metadata import PROVENANCE_PREFIX, Chosen, true_metadata, without_provenance
from gguftool.surgery.selection import MixOptions, choose
from gguftool.surgery.shards import Cut, lay_out_set

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe


@record
class MergeOptions:
    """What to choose and how the output lies in its files; sizes and alignment in bytes.

    `kv_from`: whose metadata, by default that of the first input with a `general.architecture`; `max_size`: write a
    set of files up to this size; `allowed_mismatches`: keys in which inputs may differ; `provenance`: say in
    `gguftool.source.*` where each tensor came from; `consume`: remove each file when what the output takes from it is
    safe, for this command.
    """

    recipe: Recipe | None = None
    mix: MixOptions = MixOptions()
    kv_from: Model | None = None
    max_size: int | None = None
    keep_file_type: bool = False
    allowed_mismatches: tuple[str, ...] = ()
    provenance: bool = False
    alignment: int | None = None
    force_sizes: ForceSizes | None = None
    filler: Filler = Filler()
    consume: Request | None = None


def merge_anchor(output: Path, max_size: int | None) -> Path:
    """Return what stands for the output whatever its files are called: its path, or the prefix of a set."""
    return output if max_size is None else Path(str(output).removesuffix(".gguf"))


def plan_merge(inputs: Sequence[Input | Model], output: Path, options: MergeOptions | None = None) -> Plan:
    """Plan the model that `inputs` make, as `output`, or as a set with that prefix where `max_size` is given.

    Raises one `PlanError` with everything that stands in the way: missing, extra and ambiguous tensors, shapes and
    metadata that contradict each other, rules that match nothing, types that no input has, sizes in doubt.
    """
    options = options or MergeOptions()
    sources = [source if isinstance(source, Input) else Input(model=source) for source in inputs]
    remarks = [remark for source in sources for remark in source.model.remarks]
    donor = _same_model(options.kv_from, sources) or _default_donor(sources)
    left_out = [] if options.kv_from is None else _of_other_architecture(donor, sources, options.allowed_mismatches)
    if left_out:
        sources = [source for source in sources if source not in left_out]
        where = listed([source.name for source in left_out])
        remarks.append(f"left out, as their architecture is not that of {donor.name}: {where}")
    if options.recipe is None:
        sources = _without_strays(sources, remarks)
    reference = _reference(donor, sources)
    names = _names(donor, reference, sources)
    mix = choose(names, sources, options.recipe, options.mix)
    _refuse_problems([*mix.problems, *_problems(donor, reference, names, sources, options)], remarks)
    chosen = [mix.chosen[name] for name in names]
    truth = true_metadata(donor, chosen, keep_file_type=options.keep_file_type)
    kvs = truth.kvs
    if options.provenance:
        kvs = (*without_provenance(kvs), *_provenance(chosen, donor.byte_order))
    tensors = tuple(_as_in(reference, choice.tensor) for choice in chosen)
    dialect = Dialect(
        version=donor.version,
        byte_order=donor.byte_order,
        alignment=options.alignment or donor.alignment,
        force_sizes=options.force_sizes,
        filler=options.filler,
    )
    remarks += [*mix.remarks, *truth.remarks]
    plan = lay_out(output, kvs, tensors, dialect, options.max_size, _plan_inputs(donor, sources), remarks)
    if options.consume is None:
        return plan
    from gguftool.surgery.removable import consuming

    models = [source.model for source in sources]
    return consuming(plan, merge_anchor(output, options.max_size), options.consume, chosen, donor, models)


def lay_out(
    output: Path,
    kvs: tuple[KV, ...],
    tensors: tuple[Tensor, ...],
    dialect: Dialect,
    max_size: int | None,
    inputs: Sequence[Model],
    remarks: Sequence[str],
) -> Plan:
    """Return the plan of one file, or with `max_size` of a set with `output` as prefix."""
    check_sizes(tensors, dialect)
    kvs = with_alignment(kvs, dialect.alignment, dialect.byte_order)
    sources = tuple(dict.fromkeys(source for model in inputs for source in model.sources))
    if max_size is None:
        return Plan(outputs=(gguf_file(output, kvs, tensors, dialect),), inputs=sources, remarks=tuple(remarks))
    outputs, more = lay_out_set(str(merge_anchor(output, max_size)), kvs, tensors, Cut(max_size=max_size), dialect)
    return Plan(outputs=outputs, inputs=sources, remarks=(*remarks, *more))


# --- who gives metadata, names and order -----------------------------------------------------------------------------


def _default_donor(sources: Sequence[Input]) -> Model:
    donor = next((s.model for s in sources if s.model.get("general.architecture")), None)
    if donor is not None:
        return donor
    if len(sources) == 1 and sources[0].model.is_complete:
        return sources[0].model  # an imatrix file, say
    missing = [shard for source in sources for shard in source.model.missing]
    gaps = f" (missing shards: {listed(missing)})" if missing else ""
    raise PlanError(f"no input has a general.architecture{gaps}; --kv-from names a model that gives the metadata")


def _same_model(model: Model | None, sources: Sequence[Input]) -> Model | None:
    """Return the input that `model` is by its files, else `model` itself: an extra donor of metadata."""
    if model is None:
        return None
    wanted = {source.file_key for source in model.sources}
    return next((s.model for s in sources if {x.file_key for x in s.model.sources} & wanted), model)


def _of_other_architecture(donor: Model, sources: Sequence[Input], allowed: Sequence[str]) -> list[Input]:
    """Return the inputs that say another architecture than the donor that the user named: they lie there by chance."""
    key = "general.architecture"
    wanted = donor.get(key)
    if wanted is None or key in allowed:
        return []
    said = ((source, source.model.get(key)) for source in sources)
    return [source for source, kv in said if kv is not None and (kv.type, kv.raw) != (wanted.type, wanted.raw)]


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
    """Return the model that says which tensors there are, their order and spelling: the donor or a complete input.

    A file that is complete for all it tells, but has fewer tensors than the donor's set counts, is a part like others.
    """
    least = donor.expected_tensors or 1
    candidates = [donor, *(source.model for source in sources)]
    if len(candidates) == 2 and candidates[0] is candidates[1] and donor.is_complete:
        return donor  # also without tensors: files of a vocabulary alone exist
    return next((model for model in candidates if model.is_complete and len(model.tensors) >= least), None)


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
    if len(sources) > 1 and donor.get("general.architecture") is None:
        yield f"{donor.name}, which is to give the metadata, has no general.architecture"
    for source in sources:
        extra = [name for name in source.model.tensors if name not in known]
        if extra:
            yield f"not in {reference.name if reference else 'the set'}, but in {source.name}: {listed(extra, 8)}"
        if source.model.byte_order is not donor.byte_order:
            yield f"{source.name} is {source.model.byte_order.name.lower()}-endian, {donor.name} is not"
    if reference is None and donor.expected_tensors is None:
        yield "no input is complete, and the metadata does not say how many tensors there are (split.tensors.count)"
    elif reference is None and donor.expected_tensors is not None and donor.expected_tensors < len(names):
        counts = [f"{len(source.model.tensors):,} in {source.name}" for source in sources]
        yield f"{len(names):,} tensors are there, {donor.expected_tensors:,} belong together: {listed(counts)}"
    elif reference is None and donor.expected_tensors != len(names):
        missing = listed(list(donor.missing)) or "unknown"
        yield f"{len(names):,} of {donor.expected_tensors:,} tensors are there; missing shards: {missing}"
    if reference is not None:
        yield from shape_conflicts(reference, names, sources)
    yield from contradictions(donor, sources, options.allowed_mismatches)


def _refuse_problems(problems: Sequence[str], remarks: Sequence[str]) -> None:
    """Raise one error for all problems; what was left out may be why, so it is said too."""
    if problems:
        problems = [*problems, *(remark for remark in remarks if remark.startswith("left out"))]
        said = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise PlanError(f"cannot merge, {said}", problems=problems)


def _plan_inputs(donor: Model, sources: Sequence[Input]) -> list[Model]:
    return [donor, *(source.model for source in sources)]


def _provenance(chosen: Sequence[Chosen], order: ByteOrder) -> tuple[KV, ...]:
    """Say where each tensor came from: files' names, and for each tensor the index of its file."""
    files: dict[str, int] = {}
    indexes = [files.setdefault(choice.tensor.gap.source.name, len(files)) for choice in chosen]
    names = _short_names([Path(name).parts for name in files])
    return (
        make_kv(f"{PROVENANCE_PREFIX}files", ValueType.ARRAY, names, element=ValueType.STRING, byte_order=order),
        make_kv(f"{PROVENANCE_PREFIX}of_tensor", ValueType.ARRAY, indexes, element=ValueType.UINT32, byte_order=order),
    )


def _short_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return as much of the end of each path as tells them apart: the name alone where that does."""
    for depth in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names
