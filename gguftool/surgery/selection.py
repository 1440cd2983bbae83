"""Select tensors: by patterns of their names, and for each tensor of a merge the input that it comes from.

Without a recipe, each tensor must be in exactly one input.  With a recipe, the input is searched in this order: one
that has the tensor in exactly the recipe's type; one that is labelled with that type; for tensors that no engine
quantizes, any input, if all agree on the type; and if the user allows it, one that has the type to which
llama-quantize would have fallen back.  All but the first cause a remark.  The scales of a weight (`model/scales.py`)
come from the input that gives the weight, whatever the recipe says.  Problems are collected and reported at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gguftool.errors import Notes, PlanError, grouped, listed, printable
from gguftool.format.ggml import TYPES, find_type, type_alias, type_name
from gguftool.format.pattern import BadPatternError, compile_pattern, near_tensor
from gguftool.model.model import Model
from gguftool.model.scales import owner_of, scales_of
from gguftool.record import record
from gguftool.surgery.inputs import Input, find_inputs
from gguftool.surgery.metadata import SelectedTensor

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe, RecipeRule


_HINTS = 4  # rules without a match that are compared with all names, for a typo


def select_tensors(patterns: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """Select those of `names` that any of `patterns` matches, in the order of `names`.

    A pattern that equals a name means only that tensor; any other is a regular expression, searched unanchored. A
    string is one pattern.
    Raises one `PlanError` that lists every pattern that matches nothing or is not valid.
    """
    chosen: set[str] = set()
    problems = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        try:
            found = {pattern} if pattern in names else set(filter(compile_pattern(pattern).search, names))
        except BadPatternError as error:
            problems.append(f"'{printable(pattern)}' {error}")
            continue
        if not found:
            problems.append(f"'{printable(pattern)}' matches no tensor{near_tensor(pattern, names)}")
        chosen |= found
    if problems:
        raise PlanError("; ".join(problems))
    return tuple(name for name in names if name in chosen)


# --- for each tensor of a merge, an input -----------------------------------------------------------------------------


@record
class SelectionOptions:
    """`strict`: take exact types only; `allow_fallback`: also the type that llama-quantize would fall back to."""

    strict: bool = False
    allow_fallback: bool = False


@record
class Selection:
    """The tensor selected for every name; if there are `problems`, some names are missing.

    Scales are missing, too, if the input that gives the weight has none.
    """

    chosen: Mapping[str, SelectedTensor]
    remarks: tuple[str, ...]
    problems: tuple[str, ...]


def select_inputs(
    names: Sequence[str], inputs: Sequence[Input], recipe: Recipe | None, options: SelectionOptions
) -> Selection:
    """Select for each of `names` the input that gives the tensor; problems are collected, not raised."""
    notes = Notes()
    rules = None if recipe is None else recipe.assign(names)
    chosen: dict[str, SelectedTensor] = {}
    owners = scale_owners(names, [source.model for source in inputs])
    for name in names:
        if name in owners:
            continue
        holders = [source for source in inputs if name in source.model.tensors]
        if rules is None:
            choice = _only(name, holders, notes)
        else:
            choice = _by_rule(name, rules[name], holders, inputs, options, notes)
        if choice is not None:
            chosen[name] = SelectedTensor(tensor=choice.model.tensors[name], model=choice.model)
    for name, weight in owners.items():
        rule = None if rules is None else rules[name]
        if weight in chosen and not _tears(name, weight, chosen[weight].model, rule, inputs, notes):
            scale = _scale(name, weight, chosen[weight].model, inputs, notes)
            if scale is not None:
                chosen[name] = scale
    if recipe is not None and rules is not None:
        report_idle_rules(recipe, rules, notes, [name for one in inputs for name in one.model.tensors])
    return Selection(chosen=chosen, remarks=grouped(notes.remarks), problems=grouped(notes.problems))


def scale_owners(names: Iterable[str], models: Iterable[Model]) -> dict[str, str]:
    """Map those of `names` that are scales in one of `models` to the names of their weights."""
    found: dict[str, str] = {}
    known = set(names)
    for model in models:
        for name in model.tensors:
            if name in known and name not in found and (weight := owner_of(model.tensors, name)) in known:
                found[name] = str(weight)
    return found


def scales_remark(added: Sequence[str], dropped: Sequence[str]) -> tuple[str, ...]:
    """The remark that counts the scales that come or go with their weights, if there are any."""
    parts = ((added, "added"), (dropped, "left out"))
    counts = [f"{len(names):,} {verb} ({listed(list(names), 4)})" for names, verb in parts if names]
    return (f"scales go with their weights: {', '.join(counts)}",) if counts else ()


def with_scales(names: Sequence[str], models: Sequence[Model]) -> tuple[str, ...]:
    """`names`, and after each weight those of its scales that only some of `models` have."""
    known, found = set(names), []
    for name in names:
        found.append(name)
        more = (scale for model in models for scale in scales_of(model.tensors, name))
        found += [scale for scale in dict.fromkeys(more) if scale not in known]
    return tuple(found)


def _scale(name: str, weight: str, source: Model, inputs: Sequence[Input], notes: Notes) -> SelectedTensor | None:
    """The scale `name` that goes with `weight` from `source`, or None if `source` has none for it."""
    own = scales_of(source.tensors, weight).get(name)
    if own is not None or source.is_complete:
        return None if own is None else SelectedTensor(tensor=own, model=source)
    holders = [each for each in inputs if name in each.model.tensors]
    parts = [each.model for each in holders if weight not in each.model.tensors]
    if len(parts) == 1:  # parts of one model: the scale may be in another part than its weight
        return SelectedTensor(tensor=parts[0].tensors[name], model=parts[0])
    if type_name(source.tensors[weight].info.type) == "NVFP4":
        where = listed([each.name for each in holders])
        notes.problem(
            f"its weight comes from {source.name}, which is incomplete and lacks it; not taken from {where}", name
        )
    return None


def _tears(
    name: str, weight: str, source: Model, rule: RecipeRule | None, inputs: Sequence[Input], notes: Notes
) -> bool:
    """Whether a rule for the scale `name` would take it from another input than its `weight`, which is a problem."""
    if rule is None or rule.matches(weight):
        return False
    scale = scales_of(source.tensors, weight).get(name)
    if rule.label is not None:
        try:
            torn = all(each.model is not source for each in find_inputs(inputs, rule.label))
        except PlanError as error:
            notes.problem(error.message, name)
            return True
    else:
        torn = scale is not None and rule.type_id is not None and scale.info.type != rule.type_id
    if torn:
        notes.problem(
            f"line {rule.line} ({printable(rule.pattern)}={printable(rule.target)}) takes it from another input than "
            f"its weight, which comes from {source.name}: delete that line; scales need no rule",
            name,
        )
    return torn


def _only(name: str, holders: Sequence[Input], notes: Notes) -> Input | None:
    if len(holders) == 1:
        return holders[0]
    if not holders:
        notes.problem("in no input", name)
    else:
        where = listed([holder.name for holder in holders])
        notes.problem(f"in several inputs ({where}); choose one with --recipe", name)
    return None


def _by_rule(
    name: str,
    rule: RecipeRule | None,
    holders: Sequence[Input],
    inputs: Sequence[Input],
    options: SelectionOptions,
    notes: Notes,
) -> Input | None:
    if not holders:
        notes.problem("in no input", name)
    elif rule is None:
        notes.problem("matched by no rule of the recipe", name)
    elif rule.label is not None:
        return _by_label(name, rule.label, inputs, notes)
    elif rule.type_id is not None:
        return _by_type(name, rule.type_id, holders, options, notes)
    else:
        notes.problem(f"'{printable(rule.target)}' in line {rule.line} is not a type", name)
    return None


def _by_label(name: str, label: str, inputs: Sequence[Input], notes: Notes) -> Input | None:
    try:
        labelled = find_inputs(inputs, label)
    except PlanError as error:
        notes.problem(error.message, name)
        return None
    having = [picked for picked in labelled if name in picked.model.tensors]
    if len(having) > 1:
        notes.remark(f"{len(having)} inputs are labelled @{printable(label)}, taken from {having[0].name}", name)
    if having:
        return having[0]
    notes.problem(f"not in the input @{printable(label)} ({listed([picked.name for picked in labelled])})", name)
    return None


def _by_type(
    name: str, type_id: int, holders: Sequence[Input], options: SelectionOptions, notes: Notes
) -> Input | None:
    wanted = type_alias(type_id)
    exact = _holding(name, type_id, holders)
    if exact:
        if len(exact) > 1:
            notes.remark(f"{wanted} in {len(exact)} inputs, taken from {exact[0].name}", name)
        return exact[0]
    second = _second_best(name, type_id, holders)
    if second is not None:
        source, why = second
        found = type_alias(source.model.tensors[name].info.type)
        if options.strict:
            notes.problem(f"no input has it as {wanted}; {why} has {found}, which --strict forbids", name)
            return None
        notes.remark(f"wanted {wanted}, taken as {found} from {why}", name)
        return source
    if options.allow_fallback:
        fallen = _fallen_back(name, type_id, holders)
        if fallen is not None:
            found = type_alias(fallen.model.tensors[name].info.type)
            notes.remark(f"wanted {wanted}, but its rows are too short; taken as the fallback {found}", name)
            return fallen
    there = listed(sorted({type_alias(holder.model.tensors[name].info.type) for holder in holders}))
    notes.problem(f"no input has it as {wanted}; the inputs have {there}", name)
    return None


def _holding(name: str, type_id: int, holders: Iterable[Input]) -> list[Input]:
    return [holder for holder in holders if holder.model.tensors[name].info.type == type_id]


def _second_best(name: str, type_id: int, holders: Sequence[Input]) -> tuple[Input, str] | None:
    """An input labelled with the type; or any input, if no engine quantizes the tensor and all have the same type.

    The second item describes the input in words. None if there is neither.
    """
    from gguftool.format.engine_facts.fallback import keeps_type

    for given in (True, False):
        for holder in holders:
            if holder.is_labelled(type_id, given=given):
                return holder, f"the input labelled {type_alias(type_id)} ({holder.name})"
    types = {holder.model.tensors[name].info.type for holder in holders}
    info = holders[0].model.tensors[name].info
    if len(types) == 1 and keeps_type(name, info.dims, type_name(info.type)):
        return holders[0], "every input (no engine quantizes it)"
    return None


def _fallen_back(name: str, type_id: int, holders: Sequence[Input]) -> Input | None:
    """The input that has the type to which an engine's llama-quantize falls back if rows are too short for `type_id`.

    None if no input has it.
    """
    from gguftool.format.engine_facts.fallback import fallback_type

    dims, traits = holders[0].model.tensors[name].info.dims, TYPES.get(type_id)
    if traits is None or not dims:
        return None
    for engine in traits.engines:
        fallen = fallback_type(traits.name, dims[0], engine)
        found = find_type(fallen) if fallen else None
        having = _holding(name, found.id, holders) if found else []
        if having:
            return having[0]
    return None


def report_idle_rules(
    recipe: Recipe, rules: Mapping[str, RecipeRule | None], notes: Notes, elsewhere: Collection[str] = ()
) -> None:
    """Report rules of `recipe` that decide nothing; `rules` maps each tensor to its rule.

    `elsewhere`: tensors of the inputs, also those that the model with the metadata does not list.

    A rule that matches no tensor is a problem; if earlier rules take all the tensors that it matches, a remark.
    """
    used = {id(rule) for rule in rules.values()}
    hints = iter(range(_HINTS))
    for rule in recipe.rules:
        if id(rule) in used:
            continue
        line = f"line {rule.line}: {rule.pattern}={rule.target}"
        if any(rule.matches(name) for name in rules):
            notes.remark("every tensor that this rule matches is taken by an earlier rule", line)
        elif any(rule.matches(name) for name in elsewhere):
            notes.problem(
                "this rule matches only tensors that the model with the metadata does not have "
                "(--kv-from names the model that says which tensors there are)",
                line,
            )
        else:
            near = "" if next(hints, None) is None else near_tensor(rule.pattern, rules.keys())
            notes.problem("this rule matches no tensor", line + near)
