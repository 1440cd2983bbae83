"""Plan an altered model: run the operations in their order, check the result, and lay out the file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from gguftool.errors import PlanError, printable
from gguftool.format.file_names import normal_label
from gguftool.format.kv import KV, find_kv
from gguftool.model.guards import semantic_guards
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.padding import PADDING_KEY
from gguftool.model.remap.head_values import change, shown
from gguftool.record import replace
from gguftool.storage.plan import Plan
from gguftool.storage.sources.source import Source
from gguftool.surgery.alter.alteration import KINDS, Alteration, check_alteration, refuse
from gguftool.surgery.alter.experts import select_experts
from gguftool.surgery.alter.files import Lists, read_lists
from gguftool.surgery.alter.fuse import fuse, unfuse
from gguftool.surgery.alter.layers import select_layers
from gguftool.surgery.alter.rename import rename
from gguftool.surgery.alter.state import Findings, State, state_of
from gguftool.surgery.alter.take import drop, keep, take
from gguftool.surgery.alter.views import plan_views
from gguftool.surgery.alter.vocabulary import change_vocabulary
from gguftool.surgery.compatibility import refuse_not_computable, require_complete
from gguftool.surgery.edit.plan import Edits, edited
from gguftool.surgery.metadata import LAYOUT_KEYS, SelectedTensor, output_metadata
from gguftool.surgery.planned_head import judge_planned

Operation = Callable[[State], State]


def plan_alter(
    model: ModelLike,
    alteration: Alteration,
    output: StrPath,
    donors: Mapping[str, ModelLike] | None = None,
) -> Plan:
    """Plan `model` with the operations of `alteration` as the file `output`; with a size limit, as a set.

    `donors`: label -> model; operations refer to a donor by its label, and the input may have a label, too. Every
    change of metadata gets a remark. Only heads, lists, and tensors that must be compared (`:tied`, scales) are read.
    Raises one `PlanError` with all problems: lists out of range, groups that do not divide, donors of other widths or
    vocabularies, operations that exclude each other, changes after which the model would compute something else; and
    another one with every reason why one of `alteration.engines` would not load the output.
    """
    model = as_model(model)
    require_complete(model)
    opened = {normal_label(label): as_model(donor) for label, donor in (donors or {}).items()}
    findings = Findings()
    findings.problem(*check_alteration(alteration))
    lists = read_lists(alteration, tuple(opened), findings)
    altered = _altered(model, alteration, lists, opened, findings)
    kvs, sources = _edited(altered, alteration, findings)
    if not alteration.keep and not findings.problems:
        _guard(altered, kvs, alteration.engines, findings)
    _raise(findings, anyway=alteration.output.anyway)
    read = (*lists.sources, *sources)
    return _laid_out(replace(altered, kvs=kvs), alteration, output, [*opened.values()], read, findings)


def _guard(state: State, kvs: tuple[KV, ...], engines: Sequence[str], findings: Findings) -> None:
    """Find changes after which the model loads but computes something else; faults of the input are not refused."""
    model = state.model
    before = semantic_guards(model, model.kvs, model.tensors, engines)
    after = semantic_guards(model, kvs, [item.name for item in state.items], engines)
    findings.refuse(*(text for text in after.refusals if text not in before.refusals))
    findings.remark(*after.warnings, *(text for text in after.refusals if text in before.refusals))


def _raise(findings: Findings, *, anyway: bool) -> None:
    """Raise one `PlanError` for all problems and, unless `anyway`, for all refusals."""
    refused = [] if anyway else [f"{text} (--anyway writes it)" for text in findings.refusals]
    refuse([*findings.problems, *refused])


# --- operations ------------------------------------------------------------------------------------------------------


def _altered(
    model: Model, alteration: Alteration, lists: Lists, donors: Mapping[str, Model], findings: Findings
) -> State:
    """Run the operations; one that fails leaves the state unchanged, so that the others report their problems, too."""
    state = state_of(model)
    giving = {label: state_of(donor, None if donor is model else label) for label, donor in donors.items()}
    for operation in _first(alteration, giving, findings):
        state = _run(operation, state, findings)
    for operation in _forms(alteration, findings):
        state = _run(operation, state, findings)
    for operation in _selections(alteration, lists, _givers(state, alteration, giving), findings):
        state = _run(operation, state, findings)
    return state


def _givers(state: State, alteration: Alteration, donors: Mapping[str, State]) -> dict[str, State]:
    """The donors of layers in the form of the output; the input's own label means the current state."""
    own = state.model
    return {label: state if donor.model is own else _formed(donor, alteration) for label, donor in donors.items()}


def _selections(
    alteration: Alteration, lists: Lists, donors: Mapping[str, State], findings: Findings
) -> Iterator[Operation]:
    """Operations on layers, experts and tokens."""
    engines = alteration.engines
    if lists.layers is not None:
        yield partial(select_layers, text=lists.layers, donors=donors, engines=engines, findings=findings)
    if lists.experts is not None:
        later = (*alteration.remove, *(key for key, _ in alteration.set))
        yield partial(select_experts, wanted=lists.experts, engines=engines, given=later, findings=findings)
    if lists.vocab is not None:
        yield partial(change_vocabulary, wanted=lists.vocab, findings=findings)


def _first(alteration: Alteration, donors: Mapping[str, State], findings: Findings) -> Iterator[Operation]:
    """Operations on whole tensors: take, drop, keep."""
    engines = alteration.engines
    for given in alteration.take:
        yield partial(take, given=given, donors=donors, engines=engines, findings=findings)
    if alteration.drop:
        yield partial(drop, whats=alteration.drop, engines=engines, findings=findings)
    if alteration.keep:
        yield partial(keep, whats=alteration.keep, engines=engines, findings=findings)


def _forms(alteration: Alteration, findings: Findings) -> Iterator[Operation]:
    """Operations on the form of tensors; they apply to layers of other models, too."""
    for given in alteration.rename:
        yield partial(rename, given=given, findings=findings)
    for kind in (kind for kind in alteration.unfuse if kind in KINDS):
        yield partial(unfuse, kind=kind, engines=alteration.engines, findings=findings)
    for kind in (kind for kind in alteration.fuse if kind in KINDS):
        yield partial(fuse, kind=kind, engines=alteration.engines, findings=findings)


def _run(operation: Operation, state: State, findings: Findings) -> State:
    try:
        return operation(state)
    except PlanError as error:
        findings.problem(*(error.problems or [str(error)]))
        return state


def _formed(donor: State, alteration: Alteration) -> State:
    """A donor of layers in the form of the output; the check of the layers finds what it lacks in that form."""
    unheard = Findings()
    for operation in _forms(alteration, unheard):
        donor = _run(operation, donor, unheard)
    return donor


def _edited(state: State, alteration: Alteration, findings: Findings) -> tuple[tuple[KV, ...], tuple[Source, ...]]:
    """The metadata after --set and --remove, and the files that values were read from."""
    edits = Edits(
        remove=alteration.remove, settings=tuple(f"{key}={value}" for key, value in alteration.set), force_type=False
    )
    try:
        result = edited(state.kvs, edits, state.model.byte_order)
    except PlanError as error:
        findings.problem(str(error))
        return state.kvs, ()
    findings.remark(*(f"{printable(key, 80)}: set to {printable(value, 80)}" for key, value in alteration.set))
    findings.remark(*(f"{printable(key, 80)}: removed" for key in alteration.remove), *result.remarks)
    return result.kvs, result.sources


# --- the output ------------------------------------------------------------------------------------------------------


def _laid_out(
    state: State,
    alteration: Alteration,
    output: StrPath,
    donors: Sequence[Model],
    read: Sequence[Source],
    findings: Findings,
) -> Plan:
    options = replace(alteration.output, engines=alteration.engines)
    base = replace(state.model, kvs=state.kvs)
    chosen = [
        SelectedTensor(tensor=item.tensor, model=base if item.model is state.model else item.model)
        for item in state.items
    ]
    metadata = output_metadata(base, chosen, keep_file_type=options.keep_file_type)
    padding = find_kv(state.kvs, PADDING_KEY)  # room for later edits, which the layout fits to the new head
    kvs = metadata.kvs if padding is None else (*metadata.kvs, padding)
    created, kept = _by_origin(state)
    warnings = refuse_not_computable(created, kept, options)
    refused = findings.refusals if options.anyway else []
    remarks = [*state.model.remarks, *findings.remarks, *refused, *metadata.remarks, *warnings]
    remarks += _unsaid(state.model.kvs, kvs, remarks)
    tensors = [item.tensor for item in state.items]
    plan = plan_views(kvs, tensors, output, options, like=state.model, remarks=remarks)
    used = [donor for donor in donors if donor is not state.model and set(donor.sources) & set(plan.inputs)]
    plan = replace(plan, inputs=tuple(dict.fromkeys((*plan.inputs, *read))))
    if alteration.keep:
        return plan  # a part of a model, which no engine loads by itself
    return judge_planned(plan, [state.model, *used], engines=options.engines, anyway=options.anyway)


def _unsaid(before: Sequence[KV], after: Sequence[KV], remarks: Sequence[str]) -> Iterator[str]:
    """Yield a remark for each changed key without one."""
    ordered = sorted(remarks)
    old, new = ({kv.key: kv for kv in reversed(kvs) if kv.key not in LAYOUT_KEYS} for kvs in (before, after))
    for key in dict.fromkeys((*old, *new)):
        if key in old and key in new and (old[key].type, old[key].raw) == (new[key].type, new[key].raw):
            continue
        name = printable(key, 80)
        if not any(_starts_one(ordered, start) for start in (f"{name}:", f"{name} ")):
            kv = new.get(key) or old[key]
            text = change(old[key], kv) if key in old and key in new else shown(kv)
            yield f"{name}: {text}{'' if key in old and key in new else ' (new)' if key in new else ' (removed)'}"


def _starts_one(ordered: Sequence[str], start: str) -> bool:
    """Whether one of the sorted texts starts with `start`."""
    place = bisect_left(ordered, start)
    return place < len(ordered) and ordered[place].startswith(start)


def _by_origin(state: State) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that the input lacks or has in another type, and those that it has in the same type."""
    created: list[Tensor] = []
    kept: list[Tensor] = []
    for item in state.items:
        known = state.model.tensors.get(item.name)
        is_same = known is not None and known.info.type == item.tensor.info.type
        (kept if is_same else created).append(item.tensor)
    return created, kept
