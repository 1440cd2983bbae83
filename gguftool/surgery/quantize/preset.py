"""A preset applied to a model: the type that llama-quantize would ask for each tensor under a name such as Q4_K_M."""

from __future__ import annotations

from collections.abc import Collection

from gguftool.errors import PlanError
from gguftool.format.engine_facts.presets.llama_cpp import is_70b, mix
from gguftool.format.engine_facts.presets.mix import ModelFacts
from gguftool.format.ftypes import FType
from gguftool.format.kv import INTEGERS, ValueType, find_kv
from gguftool.model.model import Model
from gguftool.record import record


@record
class PresetMix:
    """A preset and what decides beside the model; `pure`: one type for all tensors; `imatrix`: one is given."""

    preset: FType
    imatrix: bool
    pure: bool = False


def preset_types(model: Model, chosen: PresetMix, ruled: Collection[str]) -> dict[str, str]:
    """Map names of tensors to type names, without those that stay as they are or that explicit rules took (`ruled`).

    Raises `PlanError` where llama-quantize stops, as for a model without an architecture.
    """
    shapes = {name: tensor.info.dims for name, tensor in model.tensors.items()}
    try:
        types = mix(chosen.preset, shapes, _facts(model, imatrix=chosen.imatrix), ruled)
    except ValueError as error:
        raise PlanError(f"cannot be made {chosen.preset.name}: {error}", source=model.name) from error
    return dict.fromkeys(types, chosen.preset.tensor_type) if chosen.pure else types


def _facts(model: Model, *, imatrix: bool) -> ModelFacts:
    found = find_kv(model.kvs, "general.architecture")
    if found is None or found.type is not ValueType.STRING:
        raise ValueError("it has no general.architecture, by which a preset decides; --tensor PATTERN=TYPE works")
    architecture = found.value()
    layers = _number(model, f"{architecture}.block_count")
    heads = _number(model, f"{architecture}.attention.head_count")
    shared = _number(model, f"{architecture}.attention.head_count_kv", heads)
    experts = _number(model, f"{architecture}.expert_count")
    return ModelFacts(
        architecture=architecture,
        layers=layers,
        gqa=heads // shared if shared else 0,
        experts=experts,
        is_70b=is_70b(architecture, layers, one_to_one=heads == shared, experts=experts),
        imatrix=imatrix,
    )


def _number(model: Model, key: str, default: int = 0) -> int:
    """The number under `key`; of an array, which has one for each layer, the first."""
    found = find_kv(model.kvs, key)
    if found is None:
        return default
    value = found.value(1) if found.type is ValueType.ARRAY else found.value()
    if isinstance(value, list):
        value = value[0] if value else default
    return int(value) if found.type in INTEGERS or isinstance(value, int) else default
