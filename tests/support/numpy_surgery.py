"""What `alter` does to quantized bytes, done to F32 weights with NumPy: the oracle of its tests.

Written for the tiny models alone, and by name: what it knows of architectures is what these need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np  # noqa: TID253 - models are arrays
from numpy.typing import NDArray  # noqa: TID253

from tests.support import builders as b
from tests.support.tiny_models import TinyModel

Array = NDArray[np.float32]

_BY_EXPERT = re.compile(r"\.(ffn_(gate|up|down|gate_up)_exps|ffn_gate_inp|exp_probs_b)\.(weight|bias)$")
_BY_TOKEN = re.compile(r"(^|\.)(token_embd|output|embed_tokens|shared_head_head)\.weight$")
_SPECIAL = ("bos", "eos", "unknown")


def layer_of(name: str) -> int | None:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def trunk_layers(model: TinyModel) -> int:
    """How many layers run in every forward pass: those of MTP come behind them."""
    return int(model.own("block_count")) - int(model.own("nextn_predict_layers", 0))


def experts(model: TinyModel, kept: Sequence[int] | Mapping[int, Sequence[int]]) -> TinyModel:
    """Keep these experts in this order, the same in all layers or by layer; a layer that is not named keeps its own."""
    chosen: list[Sequence[int]] = []

    def of(name: str, array: Array) -> Array:
        layer = layer_of(name)
        if layer is None or not _BY_EXPERT.search(name):
            return array
        every = range(len(array))
        chosen.append(kept.get(layer, every) if isinstance(kept, Mapping) else kept)
        return array[list(chosen[-1])]

    altered = model.with_weights({name: of(name, array) for name, array in model.weights.items()})
    (count,) = {len(numbers) for numbers in chosen}
    return altered.with_own("expert_count", b.U32, count)


def fuse(model: TinyModel, parts: Sequence[str], whole: str) -> TinyModel:
    """Put the rows of `parts` of each layer one behind the other; the last axis but one is that of the rows."""

    def fused() -> Iterator[tuple[str, Array]]:
        for name, array in model.weights.items():
            *stems, role, end = ["", *name.split(".")]
            stem = ".".join(stems[1:])
            rows = [model.weights[each] for part in parts if (each := f"{stem}.{part}.{end}") in model.weights]
            if role not in parts or len(rows) < len(parts):
                yield name, array
            elif role == parts[0]:
                yield f"{stem}.{whole}.{end}", np.concatenate(rows, -2 if end == "weight" else -1)

    return model.with_weights(dict(fused()))


def fuse_qkv(model: TinyModel, order: Sequence[str] = ("attn_q", "attn_k", "attn_v")) -> TinyModel:
    return fuse(model, order, "attn_qkv")


def fuse_gate_up(model: TinyModel, order: Sequence[str] = ("ffn_gate_exps", "ffn_up_exps")) -> TinyModel:
    return fuse(model, order, "ffn_gate_up_exps")


def join_experts(model: TinyModel) -> TinyModel:
    """Stack matrices of one expert each, as files of 2023 have them."""
    weights: dict[str, Array] = {}
    for name, array in model.weights.items():
        found = re.match(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight$", name)
        if found is None:
            weights[name] = array
        elif found[2] == "0":
            parts = [model.weights[f"{found[1]}.{expert}.weight"] for expert in range(model.own("expert_count"))]
            weights[f"{found[1]}_exps.weight"] = np.stack(parts)
    return model.with_weights(weights)


def split_experts(model: TinyModel) -> TinyModel:
    """The reverse of `join_experts`."""
    weights: dict[str, Array] = {}
    for name, array in model.weights.items():
        stem = name.removesuffix("_exps.weight")
        parts = {name: array} if stem == name else {f"{stem}.{one}.weight": part for one, part in enumerate(array)}
        weights |= parts
    return model.with_weights(weights)


def drop_mtp(model: TinyModel) -> TinyModel:
    return _renumbered(model, range(trunk_layers(model)), mtp=False)


def layers(model: TinyModel, chosen: Sequence[int]) -> TinyModel:
    """Keep these trunk layers in this order, with repeats; MTP layers stay at the end."""
    return _renumbered(model, chosen, mtp=True)


def mixed(model: TinyModel, other: TinyModel, chosen: Sequence[tuple[TinyModel, int]]) -> TinyModel:
    """Take the trunk layers of `model` and `other` that `chosen` lists; all else is that of `model`."""
    altered = layers(model, [number for _, number in chosen])
    weights = dict(altered.weights)
    for new, (giver, number) in enumerate(chosen):
        if giver is other:
            prefix = f"blk.{number}."
            names = [name for name in other.weights if name.startswith(prefix)]
            weights |= {f"blk.{new}.{name.removeprefix(prefix)}": other.weights[name] for name in names}
    return altered.with_weights(weights)


def _renumbered(model: TinyModel, chosen: Sequence[int], mtp: bool) -> TinyModel:
    trunk = trunk_layers(model)
    behind = list(range(trunk, model.own("block_count"))) if mtp else []
    order = [*chosen, *behind]
    weights = {name: array for name, array in model.weights.items() if layer_of(name) is None}
    for new, old in enumerate(order):
        prefix = f"blk.{old}."
        weights |= {
            f"blk.{new}.{name.removeprefix(prefix)}": array
            for name, array in model.weights.items()
            if name.startswith(prefix)
        }
    altered = model.with_weights(weights).with_own("block_count", b.U32, len(order))
    if model.own("nextn_predict_layers"):
        altered = altered.with_own("nextn_predict_layers", b.U32, len(behind))
    if model.own("leading_dense_block_count"):
        dense = sum(old < model.own("leading_dense_block_count") for old in chosen)
        altered = altered.with_own("leading_dense_block_count", b.U32, dense)
    return _with_layer_arrays(altered, model, order)


def _with_layer_arrays(altered: TinyModel, model: TinyModel, order: Sequence[int]) -> TinyModel:
    """Say of every layer what it is, also where the input leaves that to its number."""
    linear = ("attention.recurrent_layers", [layer % 4 != 3 and layer < trunk_layers(model) for layer in order])
    by_number = {
        "gemma3": ("attention.sliding_window_pattern", [layer % 6 != 5 for layer in order]),
        "gpt-oss": ("attention.sliding_window_pattern", [layer % 2 == 0 for layer in order]),
        "qwen35": linear,
        "qwen35moe": linear,
    }
    if model.architecture in by_number:
        key, kinds = by_number[model.architecture]
        return altered.with_own(key, b.ARR, b.Array(b.BOOL, [int(kind) for kind in kinds]))
    heads = model.own("attention.head_count_kv")
    if isinstance(heads, list):
        listed = b.Array(b.U32, [heads[layer] for layer in order])
        return altered.with_own("attention.head_count_kv", b.ARR, listed)
    return altered


def vocabulary(model: TinyModel, kept: Sequence[int], padding: Sequence[str] = ()) -> TinyModel:
    """Keep these tokens in this order, and add unused ones of the names `padding` that have the row of the last."""

    def of(name: str, array: Array) -> Array:
        if not _BY_TOKEN.search(name):
            return array
        return array[[*kept, *[kept[-1]] * len(padding)]]

    altered = model.with_weights({name: of(name, array) for name, array in model.weights.items()})
    count = len(padding)
    added: dict[str, list[Any]] = {"tokens": [*padding], "scores": [0.0] * count, "token_type": [5] * count}
    for key, more in added.items():
        if f"tokenizer.ggml.{key}" not in model.kvs:
            continue
        items = model.kvs[f"tokenizer.ggml.{key}"].value
        chosen = b.Array(items.element, [items.items[index] for index in kept] + more)
        altered = altered.with_key(f"tokenizer.ggml.{key}", b.ARR, chosen)
    merges = model.kvs.get("tokenizer.ggml.merges")
    if merges is not None:
        there = set(altered.kvs["tokenizer.ggml.tokens"].value.items)
        left = [merge for merge in merges.value.items if {*merge.split(" "), merge.replace(" ", "")} <= there]
        altered = altered.with_key("tokenizer.ggml.merges", b.ARR, b.Array(b.STR, left))
    for name in _SPECIAL:
        key = f"tokenizer.ggml.{name}_token_id"
        altered = altered.with_key(key, b.U32, list(kept).index(model.kvs[key].value))
    return altered


Surgery = Callable[[TinyModel], TinyModel]
