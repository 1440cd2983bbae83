"""Check a recipe against a model: what it would do and what is wrong with it, before anything is fetched or written.

A rule's type is what the user wants. The type that a tensor would get is predicted as llama-quantize decides it: norms,
routers and 1-D tensors stay as they are in the model, and a row length that is not a multiple of the type's block size
makes the type fall back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from gguftool.analysis.lint.rules import Finding, Severity
from gguftool.analysis.recipe_head import judge_prediction
from gguftool.format.engine_facts.embeddings import EMBEDDINGS
from gguftool.format.engine_facts.engines import ENGINES, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.fallback import explain_fallback, fallback_type, keeps_type, rows_fallback
from gguftool.format.ftypes import no_such_type
from gguftool.format.ggml import TYPES, TypeTraits, find_type, nbytes, type_name
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.pattern import compile_pattern
from gguftool.format.recipe import Recipe, RecipeRule
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, as_model
from gguftool.model.preset import PresetMix, preset_types
from gguftool.model.scales import SCALED_ARCHITECTURES, owner_of, scales_of
from gguftool.record import record, replace


@record
class RecipeFinding:
    """One finding; `line` is the rule's, or None if it is about tensors."""

    code: str
    severity: Severity
    message: str
    line: int | None = None
    tensors: tuple[str, ...] = ()


@record
class RecipeRuleUse:
    """A rule and the number of tensors that it takes; `matches` also counts those that earlier rules took."""

    line: int
    pattern: str
    target: str
    locked: bool
    tensors: int
    matches: int


@record
class TypeShare:
    """All tensors that would get one type; bytes without padding."""

    type: str
    tensors: int
    elements: int
    nbytes: int


@record
class RecipeReport:
    """The prediction: `nbytes` of tensor data and `bits_per_weight`, and the same for the model.

    `findings` are about the recipe; `head` has the findings of `check` about the predicted head that the model does not
    have. Fallbacks are those of `engine`: llama.cpp, or ik_llama.cpp if the recipe has a type that only it knows.
    `unpredicted` names tensors of unknown target type (no rule, a label, an unknown type); they count with their size
    in the model. `preset` gives types to tensors that no rule matches; None without one.
    """

    recipe: str
    model: str
    engine: str
    tensors: int
    elements: int
    nbytes: int
    bits_per_weight: float
    model_nbytes: int
    model_bits_per_weight: float
    types: tuple[TypeShare, ...]
    rules: tuple[RecipeRuleUse, ...]
    findings: tuple[RecipeFinding, ...]
    head: tuple[Finding, ...]
    unpredicted: tuple[str, ...]
    preset: str | None = None

    def reaches(self, threshold: Severity) -> bool:
        """Whether a finding is at or above `threshold`."""
        found = (*(each.severity for each in self.findings), *(each.severity for each in self.head))
        return any(severity >= threshold for severity in found)


@record
class _Fate:
    """The prediction for one tensor: its rule, the type that the rule wants, and the type it gets (None: unknown)."""

    tensor: Tensor
    rule: RecipeRule | None
    wanted: TypeTraits | None
    kept: bool
    type_id: int | None

    @property
    def name(self) -> str:
        return self.tensor.info.name

    @property
    def ne0(self) -> int:
        return self.tensor.info.dims[0] if self.tensor.info.dims else 1

    @property
    def rows(self) -> int:
        return self.tensor.info.dims[1] if len(self.tensor.info.dims) > 1 else 1

    @property
    def nbytes(self) -> int:
        if self.kept or self.type_id is None:
            return self.tensor.nbytes
        size = nbytes(self.type_id, self.tensor.info.dims)
        return self.tensor.nbytes if size is None else size


def check(recipe: Recipe, model: ModelLike, mix: PresetMix | None = None, engine: str | None = None) -> RecipeReport:
    """Try `recipe` on every tensor of `model`, sizes in bytes; unknown types are findings if it was parsed leniently.

    Tensors that no rule matches get the types of `mix`, as in `quantize` by the rules of `engine`. Raises the errors of
    `open_model` for a path, and `PlanError` if the preset cannot be applied; problems of the recipe are findings.
    """
    model = as_model(model)
    engines = (engine,) if engine else (LLAMA_CPP,) if mix else ()
    engine = engine or (LLAMA_CPP if mix else _engine_of(recipe))
    assigned = recipe.assign(model.tensors)
    fates = _fates(model, assigned, engine, mix)
    uses = _uses(recipe, assigned)
    elements = sum(fate.tensor.info.elements for fate in fates)
    size = sum(fate.nbytes for fate in fates)
    model_size = sum(fate.tensor.nbytes for fate in fates)
    return RecipeReport(
        recipe=recipe.name,
        model=model.name,
        engine=engine,
        tensors=len(fates),
        elements=elements,
        nbytes=size,
        bits_per_weight=_bits(size, elements),
        model_nbytes=model_size,
        model_bits_per_weight=_bits(model_size, elements),
        types=_shares(fates),
        rules=uses,
        findings=tuple(_findings(recipe, fates, uses, assigned)),
        head=judge_prediction(model, {fate.name: fate.type_id for fate in fates}, engines),
        unpredicted=tuple(fate.name for fate in fates if fate.type_id is None),
        preset=None if mix is None else mix.preset.name,
    )


def _engine_of(recipe: Recipe) -> str:
    """Choose the engine with a llama-quantize that can make the recipe: llama.cpp if it has all types."""
    types = [TYPES[rule.type_id] for rule in recipe.rules if rule.type_id in TYPES]
    return next((name for name in ENGINES if all(name in traits.engines for traits in types)), IK_LLAMA_CPP)


def _bits(size: int, elements: int) -> float:
    return round(size * 8 / elements, 4) if elements else 0.0


def _fates(
    model: Model, assigned: Mapping[str, RecipeRule | None], engine: str, mix: PresetMix | None
) -> tuple[_Fate, ...]:
    if mix is None:
        fates = tuple(_fate(tensor, assigned[name], engine) for name, tensor in model.tensors.items())
        return _without_folded_scales(model, fates)
    ruled = {name for name, rule in assigned.items() if rule is not None}
    mixed = preset_types(model, mix, ruled, engine)
    fates = tuple(
        _mixed(tensor, None if owner_of(model.tensors, name) else mixed.get(name), engine)
        if assigned[name] is None
        else _fate(tensor, assigned[name], engine)
        for name, tensor in model.tensors.items()
    )
    return _without_folded_scales(model, fates)


def _without_folded_scales(model: Model, fates: tuple[_Fate, ...]) -> tuple[_Fate, ...]:
    """Leave out the scales of weights that get another type: `quantize` multiplies them in."""
    architecture = model.get(ARCHITECTURE_KEY)
    if architecture is not None and architecture.value() in SCALED_ARCHITECTURES:
        return fates
    made = {fate.name for fate in fates if fate.type_id not in (None, fate.tensor.info.type)}
    folded = {scale for name in made for scale in scales_of(model.tensors, name)}
    return tuple(fate for fate in fates if fate.name not in folded)


def _mixed(tensor: Tensor, preset_type: str | None, engine: str) -> _Fate:
    """Predict a tensor to which a preset gives `preset_type`, or which it leaves as it is."""
    own = TYPES.get(tensor.info.type)
    wanted = find_type(preset_type or "")
    if wanted is None or not tensor.info.elements or (own is not None and own.kind == "integer"):
        return _Fate(tensor=tensor, rule=None, wanted=None, kept=True, type_id=tensor.info.type)
    fate = _Fate(tensor=tensor, rule=None, wanted=wanted, kept=False, type_id=None)
    written = _written(fate, wanted, engine)
    return replace(fate, type_id=None if written is None else written.id)


def _fate(tensor: Tensor, rule: RecipeRule | None, engine: str) -> _Fate:
    info = tensor.info
    wanted = None if rule is None or rule.type_id is None else TYPES.get(rule.type_id)
    kept = rule is not None and keeps_type(info.name, info.dims, type_name(info.type), engine)
    fate = _Fate(tensor=tensor, rule=rule, wanted=wanted, kept=kept, type_id=info.type if kept else None)
    if kept or wanted is None:
        return fate
    written = _written(fate, wanted, engine)
    return _Fate(tensor=tensor, rule=rule, wanted=wanted, kept=False, type_id=None if written is None else written.id)


def _written(fate: _Fate, wanted: TypeTraits, engine: str) -> TypeTraits | None:
    """Find the type that a tensor gets if its rule wants `wanted`; None if the engine has no correct one."""
    if _cannot_interleave(fate, wanted):
        base = find_type(rows_fallback(wanted.name) or "")
        if base is None:
            return None
        wanted = base
    if fate.ne0 % wanted.block_size == 0:
        return wanted
    fallback = fallback_type(wanted.name, fate.ne0, engine)
    return None if fallback is None else find_type(fallback)


def _cannot_interleave(fate: _Fate, wanted: TypeTraits) -> bool:
    if wanted.interleaved_rows == 1:
        return False
    return fate.rows % wanted.interleaved_rows != 0 or fate.name in EMBEDDINGS


def _shares(fates: Sequence[_Fate]) -> tuple[TypeShare, ...]:
    """Sum up the tensors by type, the largest sum first; unknown types are under '?'."""
    groups: dict[str, list[_Fate]] = {}
    for fate in fates:
        groups.setdefault("?" if fate.type_id is None else type_name(fate.type_id), []).append(fate)
    shares = (
        TypeShare(
            type=name,
            tensors=len(group),
            elements=sum(fate.tensor.info.elements for fate in group),
            nbytes=sum(fate.nbytes for fate in group),
        )
        for name, group in groups.items()
    )
    return tuple(sorted(shares, key=lambda share: -share.nbytes))


def _uses(recipe: Recipe, assigned: Mapping[str, RecipeRule | None]) -> tuple[RecipeRuleUse, ...]:
    taken: dict[int, int] = {}
    for rule in assigned.values():
        taken[id(rule)] = taken.get(id(rule), 0) + 1
    return tuple(
        RecipeRuleUse(
            line=rule.line,
            pattern=rule.pattern,
            target=rule.target,
            locked=rule.locked,
            tensors=taken.get(id(rule), 0),
            matches=len(_matched(rule, assigned)),
        )
        for rule in recipe.rules
    )


def _matched(rule: RecipeRule, names: Iterable[str]) -> list[str]:
    search = compile_pattern(rule.pattern).search
    return [name for name in names if search(name)]


# --- findings --------------------------------------------------------------------------------------------------------


def _findings(
    recipe: Recipe,
    fates: Sequence[_Fate],
    uses: Sequence[RecipeRuleUse],
    assigned: Mapping[str, RecipeRule | None],
) -> Iterator[RecipeFinding]:
    yield from _unmatched(fates)
    yield from _unknown_types(recipe)
    for rule, use in zip(recipe.rules, uses, strict=True):
        if not use.tensors:
            yield _unused(rule, use, assigned)
    yield from _undivided_rows(fates)
    yield from _undivided_interleave(fates)
    yield from _kept(fates)


def _unmatched(fates: Sequence[_Fate]) -> Iterator[RecipeFinding]:
    names = tuple(fate.name for fate in fates if fate.rule is None and fate.wanted is None and not fate.kept)
    if names:
        yield RecipeFinding(
            code="unmatched-tensor",
            severity=Severity.ERROR,
            message=f"no rule matches {len(names):,} of {len(fates):,} tensors",
            tensors=names,
        )


def _unknown_types(recipe: Recipe) -> Iterator[RecipeFinding]:
    for rule in recipe.rules:
        if rule.type_id is None and rule.label is None:
            yield RecipeFinding(
                code="unknown-type", severity=Severity.ERROR, message=no_such_type(rule.target), line=rule.line
            )


def _unused(rule: RecipeRule, use: RecipeRuleUse, assigned: Mapping[str, RecipeRule | None]) -> RecipeFinding:
    if not use.matches:
        message = f"'{rule.pattern}' matches no tensor"
        return RecipeFinding(code="dead-rule", severity=Severity.WARNING, message=message, line=rule.line)
    names = tuple(_matched(rule, assigned))
    lines = sorted({taker.line for name in names if (taker := assigned[name]) is not None})
    before = f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:10]))}{', ...' * (len(lines) > 10)}"
    return RecipeFinding(
        code="shadowed-rule",
        severity=Severity.WARNING,
        message=f"'{rule.pattern}' never applies: {before} took every tensor that it matches",
        line=rule.line,
        tensors=names,
    )


def _undivided_rows(fates: Sequence[_Fate]) -> Iterator[RecipeFinding]:
    """For each type with blocks that do not divide the rows, report what each engine would write."""
    groups: dict[tuple[TypeTraits, int], list[str]] = {}
    for fate in fates:
        if fate.wanted is not None and not fate.kept and fate.ne0 % fate.wanted.block_size:
            groups.setdefault((fate.wanted, fate.ne0), []).append(fate.name)
    for (wanted, ne0), names in groups.items():
        fallbacks = "; ".join(
            explain_fallback(wanted.name, ne0, engine) for engine in ENGINES if engine in wanted.engines
        )
        message = (
            f"{_count(names)} with rows of {ne0:,} elements cannot be {wanted.alias} (blocks of {wanted.block_size}): "
            f"{fallbacks}"
        )
        yield RecipeFinding(code="row-fallback", severity=Severity.WARNING, message=message, tensors=tuple(names))


def _undivided_interleave(fates: Sequence[_Fate]) -> Iterator[RecipeFinding]:
    groups: dict[TypeTraits, list[str]] = {}
    for fate in fates:
        if fate.wanted is not None and not fate.kept and _cannot_interleave(fate, fate.wanted):
            groups.setdefault(fate.wanted, []).append(fate.name)
    for wanted, names in groups.items():
        base = find_type(rows_fallback(wanted.name) or "")
        message = (
            f"{_count(names)} cannot be {wanted.alias}, which packs {wanted.interleaved_rows} rows together (their "
            f"number is not a multiple, or they are looked up one by one): {IK_LLAMA_CPP} falls back to "
            f"{base.alias if base else 'nothing'}"
        )
        yield RecipeFinding(
            code="interleave-fallback", severity=Severity.WARNING, message=message, tensors=tuple(names)
        )


def _kept(fates: Sequence[_Fate]) -> Iterator[RecipeFinding]:
    names = tuple(
        fate.name
        for fate in fates
        if fate.kept and fate.rule is not None and fate.rule.label is None and fate.rule.type_id != fate.type_id
    )
    if names:
        message = f"{_count(names)} keep the model's type whatever the rule says: norms, routers and 1-D tensors"
        yield RecipeFinding(code="kept-type", severity=Severity.INFO, message=message, tensors=names)


def _count(names: Sequence[str], what: str = "tensor") -> str:
    return f"{len(names):,} {what}{'' if len(names) == 1 else 's'}"
