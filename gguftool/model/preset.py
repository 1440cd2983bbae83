"""Apply a preset to a model: the type that llama-quantize would choose for each tensor under a name such as Q4_K_M."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gguftool.errors import PlanError
from gguftool.format.engine_facts.embeddings import OUTPUT, TOKEN_EMBD
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.format.engine_facts.presets import ik_llama_cpp, ik_models, llama_cpp
from gguftool.format.engine_facts.presets.mix import ModelFacts
from gguftool.format.ftypes import FType
from gguftool.format.kv import INTEGERS, ValueType, find_kv
from gguftool.model.model import Model
from gguftool.record import record


@record
class PresetMix:
    """A preset, and the options that change its types; `pure`: one type for all tensors; `imatrix`: one is given."""

    preset: FType
    imatrix: bool
    pure: bool = False


def preset_types(model: Model, chosen: PresetMix, ruled: Collection[str], engine: str) -> dict[str, str]:
    """Map names of tensors to type names, without tensors that stay as they are or match explicit rules (`ruled`).

    Raises `PlanError` if the llama-quantize of `engine` would stop, for example without an architecture.
    """
    shapes = {name: tensor.info.dims for name, tensor in model.tensors.items()}
    if not _is_tied(model) and OUTPUT not in shapes and TOKEN_EMBD in shapes:
        shapes[OUTPUT] = shapes[TOKEN_EMBD]
    try:
        if engine == IK_LLAMA_CPP:
            types = ik_llama_cpp.mix(chosen.preset, shapes, _ik_facts(model, imatrix=chosen.imatrix), ruled)
        else:
            types = llama_cpp.mix(chosen.preset, shapes, _facts(model, imatrix=chosen.imatrix), ruled)
    except ValueError as error:
        raise PlanError(f"cannot be made {chosen.preset.name}: {error}", source=model.name) from error
    return dict.fromkeys(types, chosen.preset.tensor_type) if chosen.pure else types


def _is_tied(model: Model) -> bool:
    """Whether the output is the token embeddings; in a set with gaps, assume that it is in a missing shard."""
    return OUTPUT not in model.tensors and model.is_complete


def _facts(model: Model, *, imatrix: bool) -> ModelFacts:
    found = find_kv(model.kvs, "general.architecture")
    if found is None or found.type is not ValueType.STRING:
        raise ValueError("it has no general.architecture, which presets depend on; --tensor PATTERN=TYPE works")
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
        is_70b=llama_cpp.is_70b(architecture, layers, one_to_one=heads == shared, experts=experts),
        imatrix=imatrix,
    )


def _ik_facts(model: Model, *, imatrix: bool) -> ModelFacts:
    """The facts that ik_llama.cpp uses; without numbers that it can read it continues, and its mix is arbitrary."""
    facts = _facts(model, imatrix=imatrix)
    name = facts.architecture
    missing = [key for key in ik_models.needed_keys(name) if find_kv(model.kvs, key) is None]
    if missing:
        raise ValueError(
            f"it has no {' and no '.join(missing)}, which {IK_LLAMA_CPP} uses; --tensor PATTERN=TYPE works"
        )
    width = _number(model, f"{name}.embedding_length")
    heads = _number(model, f"{name}.attention.head_count")
    rotated = _number(model, f"{name}.rope.dimension_count")
    head = _number(model, f"{name}.attention.key_length", width // heads if heads else 0)
    if ik_models.rotates_whole_heads(name) and heads and rotated and rotated != head:
        raise ValueError(
            f"{name}.rope.dimension_count is {rotated:,}, but {IK_LLAMA_CPP} expects the {head:,} of a head; "
            "--tensor PATTERN=TYPE works"
        )
    one_to_one = heads == _number(model, f"{name}.attention.head_count_kv", heads)
    is_70b = ik_models.is_70b(name, facts.layers, one_to_one=one_to_one, experts=facts.experts)
    is_8b = ik_models.is_8b(name, facts.layers, width=width, experts=facts.experts)
    return replace(
        facts,
        is_70b=is_70b,
        is_llama3=(is_70b or is_8b) and ik_models.has_many_tokens(_tokens(model, name)),
        tied=_is_tied(model),
    )


def _tokens(model: Model, architecture: str) -> int:
    listed = find_kv(model.kvs, "tokenizer.ggml.tokens")
    count = listed.count if listed is not None and listed.type is ValueType.ARRAY else 0
    return _number(model, f"{architecture}.vocab_size", count)


def _number(model: Model, key: str, default: int = 0) -> int:
    """The number under `key`; for an array, which has one for each layer, the first."""
    found = find_kv(model.kvs, key)
    if found is None:
        return default
    value = found.value(1) if found.type is ValueType.ARRAY else found.value()
    if isinstance(value, list):
        value = value[0] if value else default
    return int(value) if found.type in INTEGERS or isinstance(value, int) else default
