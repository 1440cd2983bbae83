"""What `alter` makes of quantized models says in real llama.cpp what it should.

Two judges: operations that only move weights must leave every log probability as it was; the others are done a second
time with NumPy on dequantized weights, and the altered file, dequantized, must predict what that model predicts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool import Alteration
from tests.e2e.altering import TYPES, Predict, Quantized, alter, assert_agrees, assert_weights, dequantize, mainline
from tests.e2e.engine import SAME, STEP, logprobs_in_batches
from tests.support import numpy_surgery as surgery
from tests.support.numpy_surgery import Surgery
from tests.support.tiny_models import MODELS, read, with_other_layers

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ORDERS = {0: (3, 0, 7, 1, 6, 2, 5, 4), 1: (7, 6, 5, 4, 3, 2, 1, 0), 2: (0, 2, 1, 3, 4, 6, 5, 7)}
GROUPED = (2, 0, 3, 1, 7, 4, 6, 5)  # within groups of four
BY_LAYER = {1: GROUPED, 2: GROUPED[::-1][4:] + GROUPED[::-1][:4], 3: tuple(range(8))}


# --- the same model in another form -----------------------------------------------------------------------------------

SAME_MODEL: dict[str, tuple[str, Alteration, Surgery]] = {
    "experts in another order": (
        "qwen3moe",
        Alteration(experts=",".join(map(str, ORDERS[0]))),
        lambda model: surgery.experts(model, ORDERS[0]),
    ),
    "experts in another order in each layer": (
        "qwen3moe",
        Alteration(experts=ORDERS),
        lambda model: surgery.experts(model, ORDERS),
    ),
    "experts with exp_probs_b": (
        "deepseek2",
        Alteration(experts=",".join(map(str, GROUPED))),
        lambda model: surgery.experts(model, GROUPED),
    ),
    "groups of experts in another order": (
        "deepseek2",
        Alteration(experts="5,4,7,6,1,0,2,3"),
        lambda model: surgery.experts(model, (5, 4, 7, 6, 1, 0, 2, 3)),
    ),
    "experts with exp_probs_b by layer": (
        "deepseek2",
        Alteration(experts=BY_LAYER),
        lambda model: surgery.experts(model, BY_LAYER),
    ),
    "qkv of llama": ("llama", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv of qwen3moe": ("qwen3moe", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv of gemma3": ("gemma3", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv of qwen35": ("qwen35", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv with biases": ("gpt-oss", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv of lfm2moe": ("lfm2moe", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "experts with biases": (
        "gpt-oss",
        Alteration(experts=",".join(map(str, ORDERS[0]))),
        lambda model: surgery.experts(model, ORDERS[0]),
    ),
    "experts with gate_up of qwen35moe": (
        "qwen35moe",
        mainline(fuse=("gate_up",), experts=",".join(map(str, ORDERS[0]))),
        lambda model: surgery.fuse_gate_up(surgery.experts(model, ORDERS[0])),
    ),
    "experts of lfm2moe": (
        "lfm2moe",
        Alteration(experts=",".join(map(str, ORDERS[0]))),
        lambda model: surgery.experts(model, ORDERS[0]),
    ),
    "gate_up of deepseek2": ("deepseek2", mainline(fuse=("gate_up",)), surgery.fuse_gate_up),
    "gate_up and experts": (
        "deepseek2",
        mainline(fuse=("gate_up",), experts=",".join(map(str, GROUPED))),
        lambda model: surgery.fuse_gate_up(surgery.experts(model, GROUPED)),
    ),
    "no MTP of deepseek2": ("deepseek2", Alteration(drop=(":mtp",)), surgery.drop_mtp),
    "no MTP of qwen35": ("qwen35", Alteration(drop=(":mtp",)), surgery.drop_mtp),
}


def limit(name: str, alteration: Alteration) -> float:
    """How far the log probabilities of a quantized model and its other form may lie apart.

    A softmax over experts in another order differs in the last bit. What comes next may then be rounded to other 8 bits
    before it is multiplied with a quantized matrix: no fault of the file, and not seen with floats.
    """
    return 1e-3 if alteration.experts and name in ("qwen3moe", "qwen35moe", "gpt-oss") else SAME


@pytest.mark.parametrize("wide", TYPES)
@pytest.mark.parametrize("case", SAME_MODEL)
def test_weights_that_only_move_leave_every_logprob(
    case: str, wide: str, quantized: Quantized, tmp_path: Path, predict: Predict
) -> None:
    name, alteration, oracle = SAME_MODEL[case]
    source = quantized(name, wide)
    altered = alter(source, alteration, tmp_path / "altered.gguf")
    before, after = predict(source, altered)
    assert before.distance(after) < limit(name, alteration)
    assert_weights(altered, oracle(read(source)))
    if limit(name, alteration) > SAME:
        before, after = predict(dequantize(source), dequantize(altered))
        assert before.distance(after) < SAME


@pytest.mark.parametrize("case", SAME_MODEL)
def test_they_leave_batches_in_another_release(case: str, quantized: Quantized, tmp_path: Path) -> None:
    """Many tokens at once, which other code computes than one."""
    name, alteration, _ = SAME_MODEL[case]
    source = quantized(name)
    altered = alter(source, alteration, tmp_path / "altered.gguf")
    before, after = logprobs_in_batches(source), logprobs_in_batches(altered)
    assert before.shape == (4 * 31, 288)
    assert abs(before - after).max() < limit(name, alteration) + 1.1 * STEP


# --- another model, as NumPy makes it ---------------------------------------------------------------------------------

PRUNED = (0, 1, 2, 4, 5, 6)  # three of each group
ANOTHER_MODEL: dict[str, tuple[str, Alteration, Surgery]] = {
    "experts pruned": (
        "qwen3moe",
        Alteration(experts="!1,6"),
        lambda model: surgery.experts(model, (0, 2, 3, 4, 5, 7)),
    ),
    "experts pruned and reordered by layer": (
        "qwen3moe",
        Alteration(experts={0: (7, 1, 2), 1: (0, 1, 4), 2: (3, 2, 6)}),
        lambda model: surgery.experts(model, {0: (7, 1, 2), 1: (0, 1, 4), 2: (3, 2, 6)}),
    ),
    "experts pruned, with exp_probs_b and groups": (
        "deepseek2",
        Alteration(experts="0-2,4-6"),
        lambda model: surgery.experts(model, PRUNED),
    ),
    "experts pruned and gate_up fused": (
        "deepseek2",
        mainline(experts="0-2,4-6", fuse=("gate_up",)),
        lambda model: surgery.fuse_gate_up(surgery.experts(model, PRUNED)),
    ),
    "llama: a layer twice": (
        "llama",
        Alteration(layers="0-2,1-"),
        lambda model: surgery.layers(model, (0, 1, 2, 1, 2, 3)),
    ),
    "llama: a layer less": ("llama", Alteration(layers="!1"), lambda model: surgery.layers(model, (0, 2, 3))),
    "llama: layers in another order": (
        "llama",
        Alteration(layers="0,2,1,3"),
        lambda model: surgery.layers(model, (0, 2, 1, 3)),
    ),
    "qwen3moe: a layer twice": (
        "qwen3moe",
        Alteration(layers="0-1,1-"),
        lambda model: surgery.layers(model, (0, 1, 1, 2)),
    ),
    "gemma3: windows in phase": (
        "gemma3",
        Alteration(layers="0-5,0-"),
        lambda model: surgery.layers(model, (*range(6), *range(8))),
    ),
    "gemma3: windows out of phase": (
        "gemma3",
        mainline(layers="0,3-"),
        lambda model: surgery.layers(model, (0, 3, 4, 5, 6, 7)),
    ),
    "deepseek2: without the dense layer": (
        "deepseek2",
        Alteration(layers="1-"),
        lambda model: surgery.layers(model, (1, 2)),
    ),
    "deepseek2: layers twice before MTP": (
        "deepseek2",
        Alteration(layers="0-,1-"),
        lambda model: surgery.layers(model, (0, 1, 2, 1, 2)),
    ),
    "qwen35: four layers twice": (
        "qwen35",
        Alteration(layers="0-3,0-"),
        lambda model: surgery.layers(model, (0, 1, 2, 3, *range(8))),
    ),
    "qwen35: two layers twice": (
        "qwen35",
        mainline(layers="0-2,1-"),
        lambda model: surgery.layers(model, (0, 1, 2, *range(1, 8))),
    ),
    "gpt-oss: windows out of phase, experts pruned": (
        "gpt-oss",
        mainline(layers="1-", experts="!0"),
        lambda model: surgery.layers(surgery.experts(model, range(1, 8)), (1, 2, 3)),
    ),
    "qwen35moe: layers out of phase, experts pruned": (
        "qwen35moe",
        mainline(layers="0,2-,3", experts="5,1,2"),
        lambda model: surgery.layers(surgery.experts(model, (5, 1, 2)), (0, 2, 3, 3)),
    ),
    "lfm2moe: layers by list, experts pruned": (
        "lfm2moe",
        mainline(layers="0,2,1,2,3", experts="5,1,2"),
        lambda model: surgery.layers(surgery.experts(model, (5, 1, 2)), (0, 2, 1, 2, 3)),
    ),
    "llama: fewer tokens": ("llama", Alteration(vocab="0-263"), lambda model: surgery.vocabulary(model, range(264))),
    "gemma3: fewer tokens, embeddings tied": (
        "gemma3",
        Alteration(vocab="0-263"),
        lambda model: surgery.vocabulary(model, range(264)),
    ),
    "qwen35: tokens in another order": (
        "qwen35",
        Alteration(vocab=(*range(98), *range(287, 97, -2))),
        lambda model: surgery.vocabulary(model, (*range(98), *range(287, 97, -2))),
    ),
    "qwen3moe: everything": (
        "qwen3moe",
        mainline(fuse=("qkv",), layers="2,0,1,0", experts="6,1,2,0,5", vocab="0-199"),
        lambda model: surgery.vocabulary(
            surgery.layers(surgery.experts(surgery.fuse_qkv(model), (6, 1, 2, 0, 5)), (2, 0, 1, 0)), range(200)
        ),
    ),
    "deepseek2: everything": (
        "deepseek2",
        mainline(drop=(":mtp",), fuse=("gate_up",), layers="0,2,1,2", experts="3,1,4,6", vocab="0-199"),
        lambda model: surgery.vocabulary(
            surgery.layers(surgery.experts(surgery.fuse_gate_up(surgery.drop_mtp(model)), (3, 1, 4, 6)), (0, 2, 1, 2)),
            range(200),
        ),
    ),
    "deepseek2: fewer tokens": (
        "deepseek2",
        Alteration(vocab="!97,200-"),
        lambda model: surgery.vocabulary(model, (*range(97), *range(98, 200))),
    ),
}


@pytest.mark.parametrize("case", ANOTHER_MODEL)
def test_an_altered_model_is_the_one_that_numpy_makes(
    case: str, quantized: Quantized, tmp_path: Path, predict: Predict
) -> None:
    name, alteration, oracle = ANOTHER_MODEL[case]
    source = quantized(name)
    altered = alter(source, alteration, tmp_path / "altered.gguf")
    found = assert_agrees(altered, oracle(read(source)), predict)
    [before] = predict(dequantize(source))
    assert found.distance(before) > SAME


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_added(name: str, quantized: Quantized, tmp_path: Path, predict: Predict) -> None:
    source = quantized(name)
    altered = alter(source, Alteration(vocab="+16"), tmp_path / "altered.gguf")
    old, found = read(source), read(altered)
    names = found.kvs["tokenizer.ggml.tokens"].value.items
    assert len(set(names)) == len(names) == 304
    assert_agrees(altered, surgery.vocabulary(old, range(288), names[288:]), predict)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("llama", "0,b:1,1,b:2,2,b:3"),
        ("qwen35moe", "0,b:1,1,b:2,2,b:3"),
        ("lfm2moe", "b:0,0,b:1,b:2,3"),
        ("deepseek2", "b:0,1,b:1,b:2,2"),
    ],
)
def test_layers_of_two_models_are_mixed(
    name: str, layers: str, quantized: Quantized, tmp_path: Path, predict: Predict
) -> None:
    first = quantized(name)
    second = quantized(f"other {name}", "q6_K", with_other_layers(MODELS[name]()))
    altered = alter(first, mainline(layers=layers), tmp_path / "altered.gguf", {"b": second})
    one, other = read(first), read(second)
    chosen = [(other if part.startswith("b:") else one, int(part[-1])) for part in layers.split(",")]
    assert_agrees(altered, surgery.mixed(one, other, chosen), predict)
