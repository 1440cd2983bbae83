"""Cook: make the file that a recipe describes from the inputs at hand.

If the inputs have every tensor in the type that the recipe wants, or no input has plain floats, it is a merge.
Otherwise the input with plain floats is quantized, and tensors that other inputs already have are taken from them.
Merge and quantize make the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gguftool.cooking.making.gather import open_cook_inputs
from gguftool.cooking.making.published import check_published
from gguftool.errors import PlanError
from gguftool.format.engine_facts.fallback import keeps_type
from gguftool.format.ggml import TYPES, type_name
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.pattern import literal
from gguftool.format.recipe import Recipe, RecipeRule, spelling
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, StrPath
from gguftool.model.scales import owner_of
from gguftool.record import record, replace
from gguftool.storage.plan import Plan
from gguftool.surgery.inputs import Input
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.metadata import PROVENANCE_PREFIX
from gguftool.surgery.quantize.options import QuantizeOptions
from gguftool.surgery.quantize.plan import Decision, decide, plan_decision

RECIPE_KEY = f"{PROVENANCE_PREFIX}recipe"


@record
class Cooked:
    """How a recipe is carried out: the plan, and, if something is quantized, the decision and options behind it."""

    plan: Plan
    decision: Decision | None = None
    options: QuantizeOptions = QuantizeOptions()


def plan_cook(
    recipe: Recipe,
    sources: Input | ModelLike | Sequence[Input | ModelLike],
    output: StrPath,
    merge: MergeOptions | None = None,
    quantize: QuantizeOptions | None = None,
) -> Cooked:
    """Plan the file `output` that `recipe` describes, from `sources`: models, labelled names, names with ``{QTYPE}``.

    `merge` and `quantize` are the options for either case.  Shards that a name with ``{QTYPE}`` stands for are compared
    with their maps and signatures.  Raises as `plan_merge`, `plan_quantize`, `open_cook_inputs` and
    `check_published` do.
    """
    inputs, gathered = open_cook_inputs(sources, recipe)
    remarks = check_published(gathered) if gathered else ()
    cooked = _planned(recipe, inputs, Path(output), merge or MergeOptions(), quantize or QuantizeOptions())
    return replace(cooked, plan=replace(cooked.plan, remarks=(*cooked.plan.remarks, *remarks))) if remarks else cooked


def _planned(
    recipe: Recipe, inputs: Sequence[Input], output: Path, merge: MergeOptions, quantize: QuantizeOptions
) -> Cooked:
    source = _source(inputs)
    if source is None or not any(_lacking(recipe, inputs, source, quantize)):
        full = _with_agreed(recipe, inputs)
        return Cooked(plan=plan_merge(inputs, output, replace(merge, recipe=full)))
    if merge.kv_from is not None:
        raise PlanError(f"a quantized model has the metadata of {source.name}: leave out --kv-from")
    others = tuple(one.model for one in inputs if one.model is not source)
    options = replace(quantize, reuse=others)
    decision = decide(source, recipe, options)
    return Cooked(plan=plan_decision(decision, output, options), decision=decision, options=options)


def _source(inputs: Sequence[Input]) -> Model | None:
    """The complete input with the most bits per weight: missing tensors are made from it."""
    whole = [one.model for one in inputs if one.model.is_complete and one.model.get(ARCHITECTURE_KEY) is not None]
    return max(whole, key=_bits, default=None)


def _bits(model: Model) -> float:
    elements = sum(tensor.info.elements for tensor in model.tensors.values())
    return sum(tensor.nbytes for tensor in model.tensors.values()) / elements if elements else 0.0


def _lacking(recipe: Recipe, inputs: Sequence[Input], source: Model, options: QuantizeOptions) -> Iterator[str]:
    """The tensors that no input has in the type of their rule, and that can be made from `source`."""
    for name, rule in recipe.assign(source.tensors).items():
        tensor = source.tensors[name]
        if rule is None or rule.type_id is None or owner_of(source.tensors, name) is not None:
            continue
        if keeps_type(name, tensor.info.dims, type_name(tensor.info.type), options.engine):
            continue
        if not _is_there(name, rule.type_id, inputs) and (options.requantize or _is_plain(tensor)):
            yield name


def _is_there(name: str, type_id: int, inputs: Sequence[Input]) -> bool:
    return any(name in one.model.tensors and one.model.tensors[name].info.type == type_id for one in inputs)


def _is_plain(tensor: Tensor) -> bool:
    traits = TYPES.get(tensor.info.type)
    return traits is not None and traits.is_plain_float


def _with_agreed(recipe: Recipe, inputs: Sequence[Input]) -> Recipe:
    """`recipe`, plus rules for tensors that it leaves out but that have the same type in all inputs, such as norms.

    `plan` and llama-quantize's own recipes leave out tensors that are never quantized.
    """
    kinds: dict[str, set[int]] = {}
    for one in inputs:
        for name, tensor in one.model.tensors.items():
            kinds.setdefault(name, set()).add(tensor.info.type)
    rules = recipe.assign(kinds)
    more = tuple(
        RecipeRule(pattern=f"^{literal(name)}$", target=spelling(type_id), type_id=type_id)
        for name, rule in rules.items()
        if rule is None and len(kinds[name]) == 1
        for type_id in kinds[name]
    )
    return Recipe(rules=(*recipe.rules, *more), name=recipe.name)
