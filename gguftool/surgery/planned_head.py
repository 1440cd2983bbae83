"""Check the head that a plan would write, by the rules of `check`: an output that would not load is refused.

A plan is refused only for what it makes worse. Errors that an input already has are not the plan's fault: people fix a
broken file with two edits in a row, and a type that one engine lacks is fine in a file for the other engine. So the
plan's errors are compared, place by place, with those of its inputs.

Planners call `is_judged_already` first: if the output has everything that the rules look at from its inputs, no rule is
imported or run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from gguftool.errors import PlanError, listed
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.header import (
    ALIGNMENT_KEY,
    ARCHITECTURE_KEY,
    Header,
    alignment_of,
    parse,
)
from gguftool.format.kv import KV, ValueType, find_kv
from gguftool.model.model import Model, Tensor
from gguftool.record import record, replace
from gguftool.storage.plan import OutputFile, Plan

if TYPE_CHECKING:
    from gguftool.analysis.lint.heads.planned import Place
    from gguftool.analysis.lint.rules import Finding

# Prefixes of keys that no rule about loading looks at, or of which only the type matters, unless they are in `_READ`.
_UNREAD = ("gguftool.", "split.", "quantize.")
_SHOWN_ONLY = "general."
_READ = frozenset({ARCHITECTURE_KEY, ALIGNMENT_KEY, "general.type"})
_VOCABULARY, _OF_VOCABULARIES = "V", ("tokenizer.", ARCHITECTURE_KEY, "general.type")
_NOTED = ("K", "V", "A")  # codes that get a note for new warnings
# Errors about keys keep other rules from being evaluated: once they are fixed, more errors may show.
_WITH_ARCHITECTURE = ("K", "V", "A", "S11", "M", "D")
_WITH_KEYS = ("K03", "K04", "K05", "K06", "A", "S11", "D")
_HIDDEN_BY: dict[str, tuple[str, ...]] = {
    "F15": _WITH_ARCHITECTURE,
    "K01": _WITH_ARCHITECTURE,
    "K02": _WITH_KEYS,
    "K03": _WITH_KEYS,
}


def is_judged_already(kvs: Sequence[KV], tensors: Collection[Tensor], inputs: Sequence[Model]) -> bool:
    """Whether a head of `kvs` and `tensors` has all that rules look at from the inputs, one of which is complete."""
    complete = [model for model in inputs if model.is_complete]
    if not complete:
        return False
    wanted = _read_by_rules(kvs)
    return all(_has_tensors(model, tensors) and _read_by_rules(model.kvs) == wanted for model in complete)


def _has_tensors(model: Model, tensors: Collection[Tensor]) -> bool:
    """Whether `model` has tensors of these names, dims and types, and no others."""
    if len(tensors) != len(model.tensors):
        return False
    known = model.tensors
    infos = (tensor.info for tensor in tensors)
    return all(
        info.name in known and (known[info.name].info.dims, known[info.name].info.type) == (info.dims, info.type)
        for info in infos
    )


def _read_by_rules(kvs: Iterable[KV]) -> list[tuple[str, ValueType, bytes]]:
    """The entries that rules look at, sorted by key; of those for people, only the types of values other than text."""
    found = []
    for kv in kvs:
        if kv.key.startswith(_UNREAD):
            continue
        by_type = kv.key.startswith(_SHOWN_ONLY) and kv.key not in _READ
        if not by_type or kv.type is not ValueType.STRING:
            found.append((kv.key, kv.type, bytes([kv.element_type]) if by_type else kv.raw))
    return sorted(found, key=lambda entry: entry[0])


def judge_planned(plan: Plan, inputs: Sequence[Model], *, engines: Sequence[str] = (), anyway: bool = False) -> Plan:
    """Check the head that `plan` writes, as a reader of its outputs will see it; return the plan with notes as remarks.

    `inputs`: the models that the plan is made of; the first gives the metadata. `engines`: those that the output is
    for, default: both. Raises one `PlanError` with every error that no input has, for each engine that loads one of the
    inputs (for each engine, if none loads an input), and if no engine is left that loads the output; with `anyway`
    these become notes.
    """
    heads = _heads(plan, inputs[0])
    verdict = _judged(heads, inputs, tuple(engines) or tuple(ENGINES))
    if verdict.refused and not anyway:
        named = dict.fromkeys(engine for each in verdict.refused for engine in each.engines) or engines or ENGINES
        raise PlanError(
            f"the output would not load in {' and '.join(named)}; --anyway writes it",
            problems=verdict.lines,
        )
    notes = (*(f"does not load: {line}" for line in verdict.lines), *verdict.notes)
    return replace(plan, remarks=(*plan.remarks, *notes)) if notes else plan


# --- what the plan writes --------------------------------------------------------------------------------------------


def _heads(plan: Plan, model: Model) -> tuple[tuple[Header, int], ...]:
    """The heads of the model after `plan`, each with its file's size; shards that stay come from `model`."""
    if any(output.replaces is not None for output in plan.outputs):
        new = {output.replaces: output for output in plan.outputs}
        return tuple(
            _head(new[file.source], model) if file.source in new else (file.header, file.source.size)
            for file in model.files
        )
    return tuple(_head(output, model) for output in plan.outputs)


def _head(output: OutputFile, model: Model) -> tuple[Header, int]:
    """The head that is written, or that of a shard that is copied whole."""
    if output.head:
        return parse(output.head, output.size), output.size
    source = output.copies[0].extent.source
    return next(file.header for file in model.files if file.source is source), output.size


def _metadata(heads: Sequence[tuple[Header, int]]) -> tuple[KV, ...]:
    kvs = (header.kvs for header, _ in heads)
    return next((found for found in kvs if find_kv(found, ARCHITECTURE_KEY)), heads[0][0].kvs)


# --- judging ---------------------------------------------------------------------------------------------------------


@record
class _Verdict:
    """The findings for which a plan is refused, those that were hidden before, and notes on the rest."""

    refused: tuple[Finding, ...] = ()
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@record
class _Before:
    """The state of the inputs: places of errors, those of the input with the metadata, and engines that load an input.

    `warnings` are places of warnings.
    """

    errors: frozenset[Place]
    first: frozenset[Place]
    able: tuple[str, ...]
    warnings: frozenset[Place]


def _judged(heads: Sequence[tuple[Header, int]], inputs: Sequence[Model], engines: tuple[str, ...]) -> _Verdict:
    from gguftool.analysis.lint.heads import planned  # the rules and their facts take 0.1 s: only for changed heads

    name = inputs[0].files[0].source.name  # commands that findings print start from the input with the metadata
    target = planned.head_target(name, [planned.HeadOf(header=header, size=size) for header, size in heads])
    # The rules on vocabularies take a second on large ones, and would find nothing new in the same one.
    without: tuple[str, ...] = (_VOCABULARY,) if _same_vocabulary(_metadata(heads), inputs[0].kvs) else ()
    if alignment_of(_metadata(heads)) == inputs[0].alignment:
        without += ("S09",)  # where the data starts follows from the head's length; the alignment is the input's own
    found = planned.judge_head(target, engines, without)
    errors, warnings = planned.errors_among(found), _noted(planned.warnings_among(found))
    if not errors and not warnings:
        return _Verdict()
    before = _before(inputs, engines, without)
    judged = before.able or engines
    places = planned.places_of(errors)
    new = planned.only_at(errors, frozenset(place for place in places - before.errors if place[1] in ("", *judged)))
    shown = tuple(each for each in new if _was_hidden(each, before.first - places))
    refused = tuple(each for each in new if each not in shown)
    able = planned.able_engines(errors, judged)
    if before.able and not able and not new:  # each input loads somewhere, and the output nowhere
        refused = planned.only_at(errors, frozenset(place for place in places if place[1] in ("", *judged)))
    notes = [f"hidden until now: {planned.in_words(each)}" for each in shown]
    fresh = planned.only_at(warnings, planned.places_of(warnings) - before.warnings)
    notes += [f"warning {planned.in_words(each)}" for each in fresh]
    if not able and not new and not refused:
        notes.append(_staying(errors))
    return _Verdict(refused=refused, lines=tuple(map(planned.in_words, refused)), notes=tuple(notes))


def _same_vocabulary(kvs: Sequence[KV], others: Sequence[KV]) -> bool:
    """Whether everything that rules on vocabularies look at is the same in both."""
    ours, theirs = (
        [(kv.key, kv.type, kv.raw) for kv in some if kv.key.startswith(_OF_VOCABULARIES)] for some in (kvs, others)
    )
    return ours == theirs


def _noted(warnings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(each for each in warnings if each.code.startswith(_NOTED))


def _staying(errors: Sequence[Finding]) -> str:
    codes = listed(sorted({each.code for each in errors}))
    return f"errors of the input remain ({codes}); check lists them"


def _was_hidden(finding: Finding, mended: frozenset[Place]) -> bool:
    """Whether `finding` was hidden until an error about keys was fixed."""
    for code, engine, _ in mended:
        if engine and finding.engines and engine not in finding.engines:
            continue
        if finding.code.startswith(_HIDDEN_BY.get(code, ())):
            return True
    return False


def _before(inputs: Sequence[Model], engines: tuple[str, ...], without: tuple[str, ...]) -> _Before:
    """Check the inputs, each by itself; if none is complete, also all of them together."""
    from gguftool.analysis.lint.heads import planned

    name = inputs[0].files[0].source.name

    complete = [model.is_complete and bool(model.kvs) for model in inputs]
    findings = [
        planned.judge_head(planned.head_target(name, planned.head_of_model(model)), engines) for model in inputs
    ]
    whole = [each for each, is_whole in zip(findings, complete, strict=True) if is_whole]
    if not whole:
        together = [replace(head, shard=None) for model in inputs for head in planned.head_of_model(model)]
        whole = [planned.judge_head(planned.head_target(name, together), engines, without)]
        findings = [*whole, *findings]
    able = {engine for each in whole for engine in planned.able_engines(planned.errors_among(each), engines)}
    return _Before(
        errors=planned.places_of(planned.errors_among(each for all_of in findings for each in all_of)),
        first=planned.places_of(planned.errors_among(findings[0])),
        able=tuple(engine for engine in engines if engine in able),
        warnings=planned.places_of(planned.warnings_among(each for all_of in findings for each in all_of)),
    )
