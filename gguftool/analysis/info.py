"""Info: a model on one screen, only from its head: what it is, its size, what it needs, and what will not run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gguftool.analysis.kv_cache import KVCache, attention_layers, kv_cache
from gguftool.analysis.label import Label, label_of
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.names import KnownNames, known_names
from gguftool.format.ggml import TYPES, type_name
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import ValueType
from gguftool.model.hparams import number, numbers, text
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, as_model, as_models
from gguftool.model.roles import Place, tensor_places
from gguftool.record import record
from gguftool.storage.sources.locate import base_name

CONTEXTS = (4096, 32768, 131072)  # contexts to show the cache for, besides the one that the model was trained with
_MOST_CONTEXT = 1 << 40
_TOKENS, _TOKENIZER, _PRE = "tokenizer.ggml.tokens", "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TEMPLATE = "tokenizer.chat_template"
_NO_TOKENIZER = ("no_vocab", "none")
_BYTE_PAIRS = ("gpt2", "hybriddna", "whitespace")  # tokenizers that have a pre-tokenizer


@record
class LayerGroup:
    """Layers of one stack that consist of the same tensors; bytes are those of all the layers."""

    stack: str
    layers: tuple[int, ...]
    tensors: int
    parameters: int
    nbytes: int
    types: tuple[str, ...]


@record
class ContextMemory:
    """Memory for a context of `context` tokens: bytes of the KV cache in F16, and with the weights."""

    context: int
    kv_cache: int
    total: int


@record
class EngineGap:
    """Why an engine, as of the release `judged_by`, does not run the model."""

    engine: str
    judged_by: str
    reasons: tuple[str, ...]


@record
class Info:
    """A model on one screen; sizes in bytes. What the head does not say is None, or an empty tuple.

    `heads` and `kv_heads` have one number, or the distinct numbers of an array by layer. `memory` is what llama.cpp
    takes without its compute buffers. `experts_used` counts those for each token. `gaps` names engines that will not
    run the model.
    """

    model: str
    kind: str
    name: str | None
    architecture: str | None
    parameters: int
    tensors: int
    label: Label
    files: int
    file_bytes: int
    context_length: int | None
    embedding_length: int | None
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    experts: int | None
    experts_used: int | None
    tokenizer: str | None
    pre_tokenizer: str | None
    tokens: int | None
    chat_template: bool
    layers: tuple[LayerGroup, ...]
    memory: tuple[ContextMemory, ...]
    gaps: tuple[EngineGap, ...]
    missing: tuple[str, ...]
    remarks: tuple[str, ...]


@record
class Infos:
    """Several models, in the order given."""

    models: tuple[Info, ...]


def infos(models: ModelLike | Sequence[ModelLike]) -> Infos:
    """Describe several models; `open_models` says how neighbouring paths are pooled and which errors are raised."""
    return Infos(models=tuple(map(info, as_models(models))))


def info(model: ModelLike) -> Info:
    """Describe `model` by its head, sizes in bytes. Raises the errors of `open_model` for a path."""
    model = as_model(model)
    places = tensor_places(model.tensors)
    tensors = tuple(model.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in tensors)
    context = number(model, "context_length")
    tokens = model.get(_TOKENS)
    return Info(
        model=base_name(model.name) or model.name,
        kind=text(model, "general.type") or "model",
        name=text(model, "general.name") or None,
        architecture=text(model, ARCHITECTURE_KEY) or None,
        parameters=sum(tensor.info.elements for tensor in tensors),
        tensors=len(tensors),
        label=label_of(model, places),
        files=len(model.files),
        file_bytes=sum(source.size for source in model.sources),
        context_length=context,
        embedding_length=number(model, "embedding_length"),
        heads=_different(numbers(model, "attention.head_count")),
        kv_heads=_different(numbers(model, "attention.head_count_kv")),
        experts=number(model, "expert_count"),
        experts_used=number(model, "expert_used_count"),
        tokenizer=text(model, _TOKENIZER) or None,
        pre_tokenizer=text(model, _PRE) or None,
        tokens=tokens.count if tokens is not None and tokens.type is ValueType.ARRAY else None,
        chat_template=model.get(_TEMPLATE) is not None,
        layers=_layers(model, places),
        memory=tuple(_memory(kv_cache(model, attention_layers(places)), context, nbytes)),
        gaps=tuple(_gaps(model, tensors)),
        missing=model.missing,
        remarks=model.remarks,
    )


def _different(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values), reverse=True))


# --- layers ----------------------------------------------------------------------------------------------------------


def _layers(model: Model, places: Mapping[str, Place]) -> tuple[LayerGroup, ...]:
    """Group the layers of each stack by the names of their tensors, in order of first occurrence."""
    layers: dict[tuple[str, int], list[Tensor]] = {}
    for name, tensor in model.tensors.items():
        place = places[name]
        if place.layer is not None:
            layers.setdefault((place.stack, place.layer), []).append(tensor)
    groups: dict[tuple[str, frozenset[str]], dict[int, list[Tensor]]] = {}
    for (stack, layer), tensors in layers.items():
        bases = frozenset(tensor.info.name[len(f"{stack}.{layer}.") :] for tensor in tensors)
        groups.setdefault((stack, bases), {})[layer] = tensors
    return tuple(_group(stack, alike) for (stack, _), alike in groups.items())


def _group(stack: str, layers: Mapping[int, Sequence[Tensor]]) -> LayerGroup:
    tensors = [tensor for alike in layers.values() for tensor in alike]
    sizes: dict[int, int] = {}
    for tensor in tensors:
        sizes[tensor.info.type] = sizes.get(tensor.info.type, 0) + tensor.nbytes
    return LayerGroup(
        stack=stack,
        layers=tuple(sorted(layers)),
        tensors=len(tensors),
        parameters=sum(tensor.info.elements for tensor in tensors),
        nbytes=sum(sizes.values()),
        types=tuple(type_name(kind) for kind in sorted(sizes, key=sizes.__getitem__, reverse=True)),
    )


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory(cache: KVCache | None, trained: int | None, nbytes: int) -> Iterator[ContextMemory]:
    if cache is None:
        return
    most = trained if trained is not None and 0 < trained <= _MOST_CONTEXT else CONTEXTS[0]
    for context in sorted({*(tokens for tokens in CONTEXTS if tokens < most), most}):
        size = cache.nbytes(context)
        yield ContextMemory(context=context, kv_cache=size, total=nbytes + size)


# --- engines ---------------------------------------------------------------------------------------------------------


def _gaps(model: Model, tensors: Sequence[Tensor]) -> Iterator[EngineGap]:
    kinds = sorted({tensor.info.type for tensor in tensors})
    for engine in ENGINES:
        names = known_names(engine)
        lacking = [type_name(kind) for kind in kinds if kind not in TYPES or engine not in TYPES[kind].engines]
        reasons = [f"tensor type {', '.join(lacking)}"] if lacking else []
        if names is not None:
            reasons += _unknown_names(model, names)
        if reasons:
            yield EngineGap(engine=engine, judged_by=names.shown if names else engine, reasons=tuple(reasons))


def _unknown_names(model: Model, names: KnownNames) -> Iterator[str]:
    """Yield names in the metadata that the engine's release does not know; `check` reports them as K01 and V01."""
    architecture = text(model, ARCHITECTURE_KEY)
    if not architecture or text(model, "general.type") not in ("", "model"):
        return
    if architecture not in names.architectures:
        yield f"architecture {architecture}"
    tokenizer, pre = text(model, _TOKENIZER), text(model, _PRE)
    if tokenizer and tokenizer not in (*names.tokenizers, *_NO_TOKENIZER):
        yield f"tokenizer {tokenizer}"
    elif tokenizer in _BYTE_PAIRS and pre and pre not in names.pre_tokenizers:
        yield f"pre-tokenizer {pre}"
