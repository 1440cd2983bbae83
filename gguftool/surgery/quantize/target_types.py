"""The target type of each tensor: the type in the recipe, or the one that llama-quantize would write instead.

An explicit rule holds for every tensor that it matches, including embeddings and the output; only a preset gives these
types of their own.  A rule is followed as far as the engine can: some tensors are never quantized, rows may not divide
into the type's blocks, and some types cannot be used for some tensors.  Every difference from the rule is reported with
the tensor's name.
"""

from __future__ import annotations

from gguftool.errors import Notes
from gguftool.format.engine_facts.embeddings import EMBEDDINGS
from gguftool.format.engine_facts.fallback import explain_fallback, fallback_type, keeps_type, rows_fallback
from gguftool.format.ggml import TYPES, TypeTraits, find_type, type_alias, type_name
from gguftool.format.recipe import Recipe, RecipeRule
from gguftool.model.model import Model, Tensor
from gguftool.model.preset import PresetMix, preset_types
from gguftool.model.scales import owner_of
from gguftool.record import record
from gguftool.surgery.selection import report_idle_rules


@record
class EngineRules:
    """The engine to follow; `mix`: the preset for tensors that no rule matches, default: they stay as they are."""

    engine: str
    mix: PresetMix | None = None


def target_types(model: Model, recipe: Recipe, rules: EngineRules, notes: Notes) -> dict[str, int]:
    """Map each tensor of `model` to its target type id: its own type if no rule matches, or none can be followed.

    Differences from the recipe go to `notes`, as remarks or problems.
    """
    assigned = recipe.assign(model.tensors)
    report_idle_rules(recipe, assigned, notes)
    chooser = _Chooser(rules=rules, notes=notes)
    ruled = {name for name, rule in assigned.items() if rule is not None}
    mixed = {} if rules.mix is None else preset_types(model, rules.mix, ruled, rules.engine)
    targets = {}
    for name, rule in assigned.items():
        tensor = model.tensors[name]
        if owner_of(model.tensors, name) is not None:  # a scale follows its weight, whatever the rule
            targets[name] = tensor.info.type
        elif rule is not None:
            targets[name] = chooser.target(tensor, rule)
        else:
            targets[name] = chooser.mixed(tensor, mixed[name]) if name in mixed else tensor.info.type
    left = len(assigned) - len(ruled)
    if left and rules.mix is None:
        notes.remark("matched by no rule, kept as they are", "1 tensor" if left == 1 else f"{left:,} tensors")
    return targets


@record
class _Chooser:
    """Applies recipe rules to tensors by an engine's `rules`, and reports to `notes`."""

    rules: EngineRules
    notes: Notes

    def target(self, tensor: Tensor, rule: RecipeRule) -> int:
        """The type id that `rule` leads to; after a problem, the tensor's own."""
        name, own, engine, notes = tensor.info.name, tensor.info.type, self.rules.engine, self.notes
        traits = None if rule.type_id is None else TYPES.get(rule.type_id)
        if rule.label is not None:
            notes.problem(f"the rule takes the input {rule.target}: quantize makes types, merge takes inputs", name)
        elif traits is None or not traits.in_files:
            notes.problem(f"'{rule.target}' is not a type that can be made", name)
        elif _keeps(tensor, traits, engine):
            if traits.id != own:
                notes.remark(f"wanted {traits.alias}, kept as {type_alias(own)}, as {engine} does", name)
        elif engine not in traits.engines:
            notes.problem(f"{engine} has no {traits.alias}; --engine {traits.engines[0]} has it", name)
        else:
            return self._written(tensor, traits)
        return own

    def mixed(self, tensor: Tensor, wanted: str) -> int:
        """The type id that the preset's type `wanted` leads to; after a problem, the tensor's own."""
        traits = find_type(wanted)
        own = TYPES.get(tensor.info.type)
        if traits is None or not tensor.info.elements or (own is not None and own.kind == "integer"):
            return tensor.info.type
        return self._written(tensor, traits)

    def _written(self, tensor: Tensor, traits: TypeTraits) -> int:
        """The type that llama-quantize writes: a fallback if rows do not divide by blocks or cannot be interleaved."""
        name, engine = tensor.info.name, self.rules.engine
        for _ in range(3):  # an interleaved type, its base, and that one's fallback
            if tensor.info.dims[0] % traits.block_size == 0 and _packs(tensor, traits):
                return traits.id
            fallen, reason = self._fallback(tensor, traits)
            found = find_type(fallen) if fallen else None
            if found is None:
                self.notes.problem(reason, name)
                return tensor.info.type
            self.notes.remark(f"{reason}, as {engine} does", name)
            traits = found
        return traits.id

    def _fallback(self, tensor: Tensor, traits: TypeTraits) -> tuple[str | None, str]:
        """The name of the type to use instead of `traits`, and the reason; or None, and the problem."""
        name, dims, engine = tensor.info.name, tensor.info.dims, self.rules.engine
        if dims[0] % traits.block_size:
            fallen = fallback_type(traits.name, dims[0], engine)
            blocks = f"rows of {dims[0]:,} are not whole blocks of {traits.alias}"
            if fallen is None:
                return None, f"{blocks}: {explain_fallback(traits.name, dims[0], engine)}"
            return fallen, f"{blocks}, made {fallen.lower()}"
        fallen = rows_fallback(traits.name)
        if fallen is None:
            return None, f"it cannot be made into {traits.alias}"
        rows = f"{dims[1] if len(dims) > 1 else 1:,} rows"
        why = "embeddings are looked up by single rows" if name in EMBEDDINGS else f"{rows} do not divide"
        return fallen, f"{traits.alias} packs {traits.interleaved_rows} rows together, {why}; made {fallen}"


def _keeps(tensor: Tensor, traits: TypeTraits, engine: str) -> bool:
    """Whether llama-quantize leaves the tensor as it is; only floats may become F32, which every engine runs."""
    if not tensor.info.elements:
        return True
    own = TYPES.get(tensor.info.type)
    return keeps_type(tensor.info.name, tensor.info.dims, type_name(tensor.info.type), engine) and not (
        traits.name == "F32" and own is not None and own.is_plain_float
    )


def _packs(tensor: Tensor, traits: TypeTraits) -> bool:
    """Whether the rows of each expert divide by the number of rows that the type interleaves."""
    if traits.interleaved_rows == 1:
        return True
    dims = tensor.info.dims
    return tensor.info.name not in EMBEDDINGS and len(dims) > 1 and dims[1] % traits.interleaved_rows == 0
