"""Which type each tensor is to get: what a recipe says, made into what an engine's llama-quantize would write.

A rule is followed as far as the engine can: some tensors are never quantized, rows may not divide into the type's
blocks, and some types cannot stand in some places.  Whatever differs from the rule is noted, with the tensors' names.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguftool.format.engine_facts.embeddings import EMBEDDINGS, default_type
from gguftool.format.engine_facts.fallback import explain_fallback, fallback_type, keeps_type, rows_fallback
from gguftool.format.ggml import TYPES, TypeTraits, find_type, type_alias, type_name
from gguftool.format.recipe import Recipe, RecipeRule
from gguftool.model.model import Model, Tensor
from gguftool.record import record
from gguftool.surgery.selection import Notes

# A pattern that finds all of these speaks for the model as a whole, as the type on llama-quantize's command line does.
_PROBES = ("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.7.ffn_down_exps.weight")


@record
class Rules:
    """`engine` whose rules hold; `pure`: no types of their own for the embeddings and the output."""

    engine: str
    pure: bool = False


def wanted_types(model: Model, recipe: Recipe, rules: Rules, notes: Notes) -> dict[str, int]:
    """Return the type id that each tensor of `model` is to have: its own where no rule matches, or none may."""
    assigned = recipe.assign(model.tensors)
    notes.idle_rules(recipe, assigned)
    wanted = {}
    for name, rule in assigned.items():
        tensor = model.tensors[name]
        if rule is None:
            wanted[name] = tensor.info.type
        else:
            wanted[name] = _wanted(tensor, rule, model.tensors, rules, notes)
    left = sum(rule is None for rule in assigned.values())
    if left:
        notes.remark("matched by no rule, kept as they are", "1 tensor" if left == 1 else f"{left:,} tensors")
    return wanted


def _wanted(tensor: Tensor, rule: RecipeRule, tensors: Mapping[str, Tensor], rules: Rules, notes: Notes) -> int:
    """Return the type that `rule` comes to; where that is a problem, it is noted, and the source's own returned."""
    name, own = tensor.info.name, tensor.info.type
    traits = None if rule.type_id is None else TYPES.get(rule.type_id)
    if rule.label is not None:
        notes.problem(f"the rule takes the input {rule.target}: quantize makes types, merge takes inputs", name)
    elif traits is None or not traits.in_files:
        notes.problem(f"'{rule.target}' is no type that can be made", name)
    elif _keeps(tensor, traits, rules.engine):
        if traits.id != own:
            notes.remark(f"wanted {traits.alias}, kept as {type_alias(own)}, as {rules.engine} does", name)
    elif rules.engine not in traits.engines:
        notes.problem(f"{rules.engine} has no {traits.alias}; --engine {traits.engines[0]} has", name)
    else:
        return _written(tensor, _by_default(name, traits, tensor, rule, tensors, rules, notes), rules, notes)
    return own


def _keeps(tensor: Tensor, traits: TypeTraits, engine: str) -> bool:
    """Whether a tensor stays as it is: llama-quantize leaves it alone; but floats may be made F32, which all run."""
    if not tensor.info.elements:
        return True
    own = TYPES.get(tensor.info.type)
    return keeps_type(tensor.info.name, tensor.info.dims, type_name(tensor.info.type), engine) and not (
        traits.name == "F32" and own is not None and own.is_plain_float
    )


def _by_default(
    name: str,
    traits: TypeTraits,
    tensor: Tensor,
    rule: RecipeRule,
    tensors: Mapping[str, Tensor],
    rules: Rules,
    notes: Notes,
) -> TypeTraits:
    """Return the engine's own type for embeddings and output, where the rule speaks for all tensors alike."""
    if rules.pure or not all(map(rule.matches, _PROBES)):
        return traits
    found = default_type(name, traits, tensor.info.dims[0], rules.engine, tied="output.weight" not in tensors)
    if found.id != traits.id:
        said = (
            f"{found.alias}, as {rules.engine} takes it beside {traits.alias}; --pure or a rule of its own changes that"
        )
        notes.remark(said, name)
    return found


def _written(tensor: Tensor, traits: TypeTraits, rules: Rules, notes: Notes) -> int:
    """Return what llama-quantize writes where rows do not divide by the blocks, or cannot be packed together."""
    name, dims, engine = tensor.info.name, tensor.info.dims, rules.engine
    for _ in range(3):  # a repack, its base, and that one's fallback
        if dims[0] % traits.block_size:
            fallen = fallback_type(traits.name, dims[0], engine)
            if fallen is None:
                said = explain_fallback(traits.name, dims[0], engine)
                notes.problem(f"rows of {dims[0]:,} are no whole blocks of {traits.alias}: {said}", name)
                return tensor.info.type
            said = f"rows of {dims[0]:,} are no whole blocks of {traits.alias}, made {fallen.lower()}"
        elif not _packs(tensor, traits):
            fallen = rows_fallback(traits.name)
            rows = f"{dims[1] if len(dims) > 1 else 1:,} rows"
            why = "embeddings are looked up by single rows" if name in EMBEDDINGS else f"{rows} do not divide"
            said = f"{traits.alias} packs {traits.interleaved_rows} rows together, {why}; made {fallen}"
        else:
            return traits.id
        found = find_type(fallen) if fallen else None
        if found is None:
            notes.problem(f"{traits.alias} cannot be made of it", name)
            return tensor.info.type
        notes.remark(f"{said}, as {engine} does", name)
        traits = found
    return traits.id


def _packs(tensor: Tensor, traits: TypeTraits) -> bool:
    """Whether the rows of each expert divide by those that the type packs together."""
    if traits.interleaved_rows == 1:
        return True
    dims = tensor.info.dims
    return tensor.info.name not in EMBEDDINGS and len(dims) > 1 and dims[1] % traits.interleaved_rows == 0
