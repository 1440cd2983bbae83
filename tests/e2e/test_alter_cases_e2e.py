"""Single cases of `alter` in real llama.cpp: forms, names, files and scales, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np  # noqa: TID253 - models are arrays
import pytest

import gguftool as api
from gguftool import Alteration
from tests.e2e.altering import Predict, Quantized, alter, assert_agrees, mainline
from tests.e2e.engine import SAME
from tests.support import numpy_surgery as surgery
from tests.support.tiny_models import MODELS, TinyModel, deepseek2, llama, qwen3moe, read, with_merges

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_matrices_of_single_experts_are_joined(quantized: Quantized, tmp_path: Path, predict: Predict) -> None:
    apart = quantized("apart", "q4_K", surgery.split_experts(qwen3moe()))
    joined = alter(apart, Alteration(fuse=("experts",)), tmp_path / "joined.gguf")
    assert_agrees(joined, surgery.join_experts(read(apart)), predict)
    assert joined.read_bytes() == quantized("qwen3moe").read_bytes()


def test_an_output_that_is_the_embedding_is_dropped(quantized: Quantized, tmp_path: Path, predict: Predict) -> None:
    tied = quantized("gemma3")
    twice = alter(tied, Alteration(), tmp_path / "twice.gguf")
    assert twice.read_bytes() == tied.read_bytes()
    model = MODELS["gemma3"]()
    untied = model.with_weights({**model.weights, "output.weight": model.weights["token_embd.weight"]})
    source = untied.write(tmp_path / "untied.gguf")
    dropped = alter(source, Alteration(drop=(":tied",)), tmp_path / "dropped.gguf")
    assert "output.weight" not in read(dropped).weights
    before, after = predict(source, dropped)
    assert before.distance(after) == 0


# --- vocabularies of byte pairs ---------------------------------------------------------------------------------------


def test_merges_go_with_their_tokens(tmp_path: Path, predict: Predict) -> None:
    model = with_merges(llama())
    kept = (*range(98), *range(287, 98, -3))
    altered = alter(model.write(tmp_path / "model.gguf"), Alteration(vocab=kept), tmp_path / "altered.gguf")
    assert_agrees(altered, surgery.vocabulary(model, kept), predict)


# --- names, files and the command line --------------------------------------------------------------------------------


def test_tensors_under_other_names_are_renamed(tmp_path: Path, predict: Predict) -> None:
    model = llama()
    foreign = model.with_weights({f"model.{name}": array for name, array in model.weights.items()})
    source = foreign.write(tmp_path / "foreign.gguf")
    renamed = alter(source, Alteration(rename=((r"^model\.(.+)$", r"\1"),)), tmp_path / "renamed.gguf")
    before, after = predict(model.write(tmp_path / "model.gguf"), renamed)
    assert before.distance(after) == 0


def test_what_no_engine_reads_is_dropped(tmp_path: Path, predict: Predict) -> None:
    model = qwen3moe()
    surplus = model.with_weights({**model.weights, "blk.0.made_up.weight": np.ones((3, 256), np.float32)})
    dropped = alter(surplus.write(tmp_path / "surplus.gguf"), Alteration(drop=(":unused",)), tmp_path / "dropped.gguf")
    before, after = predict(model.write(tmp_path / "model.gguf"), dropped)
    assert before.distance(after) == 0
    assert set(read(dropped).weights) == set(model.weights)


def test_shards_are_altered_into_shards(
    quantized: Quantized, tmp_path: Path, tool: Callable[..., str], predict: Predict
) -> None:
    source = quantized("deepseek2")
    tool("split", source, tmp_path / "in" / "m", "--max-tensors", 9, "--no-sync")
    operations = ("--experts", "0-2,4-6", "--fuse", "gate_up", "--engine", "llama.cpp", "--no-sync")
    tool("alter", tmp_path / "in", *operations, "-o", tmp_path / "out" / "m", "--max-size", "400K")
    tool("alter", source, *operations, "-o", tmp_path / "one.gguf")
    shards = sorted((tmp_path / "out").iterdir())
    assert len(shards) > 2
    one, several = predict(tmp_path / "one.gguf", shards[0])
    assert one.distance(several) == 0


# --- scales of experts and of parts -----------------------------------------------------------------------------------


def scaled(model: TinyModel, *parts: float) -> TinyModel:
    """`model` with a scale for each expert, and the scales `parts` of q, k and v."""
    weights: dict[str, Any] = {}
    for name, array in model.weights.items():
        weights[name] = array
        stem = name.removesuffix(".weight")
        if stem.endswith("_exps"):
            weights[f"{stem}.scale"] = np.linspace(0.5, 1.5, len(array), dtype=np.float32)
        for part, scale in zip(("attn_q", "attn_k", "attn_v"), parts, strict=False):
            if stem.endswith(f".{part}"):
                weights[f"{stem}.scale"] = np.array([scale], np.float32)
    return model.with_weights(weights)


def test_scales_go_with_their_experts(tmp_path: Path, predict: Predict) -> None:
    source = scaled(qwen3moe()).write(tmp_path / "model.gguf")
    altered = alter(source, Alteration(experts="3,0,7,1,6,2,5,4"), tmp_path / "altered.gguf")
    before, after = predict(source, altered)
    assert before.distance(after) < SAME
    old = {name: array for name, array in read(source).weights.items() if name.endswith("_exps.scale")}
    forgotten = read(altered)
    forgotten = forgotten.with_weights({**forgotten.weights, **old})
    [wrong] = predict(forgotten.write(tmp_path / "forgotten.gguf"))
    assert before.distance(wrong) > SAME


def test_parts_of_one_scale_are_fused_and_of_several_not(tmp_path: Path, predict: Predict) -> None:
    source = scaled(llama(), 1.5, 1.5, 1.5).write(tmp_path / "model.gguf")
    fused = alter(source, mainline(fuse=("qkv",)), tmp_path / "fused.gguf")
    before, after = predict(source, fused)
    assert before.distance(after) < SAME
    several = scaled(llama(), 1.5, 1.0, 1.0).write(tmp_path / "several.gguf")
    with pytest.raises(api.PlanError, match="scale"):
        alter(several, mainline(fuse=("qkv",)), tmp_path / "other.gguf")


# --- what would not compute the same ----------------------------------------------------------------------------------


def test_groups_that_do_not_divide_are_refused(quantized: Quantized, tmp_path: Path) -> None:
    source = quantized("four groups", "q4_K", deepseek2(groups=4))
    with pytest.raises(api.PlanError, match="group"):
        alter(source, Alteration(experts="0-5"), tmp_path / "altered.gguf")
    with pytest.raises(api.PlanError, match="group"):
        alter(quantized("deepseek2"), Alteration(experts="0-5"), tmp_path / "altered.gguf")
    assert list(tmp_path.iterdir()) == []


def test_gate_up_is_not_fused_for_an_engine_that_does_not_read_it(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(api.PlanError, match="gate_up"):
        alter(quantized("qwen3moe"), mainline(fuse=("gate_up",)), tmp_path / "altered.gguf")


def test_an_output_of_its_own_is_not_dropped(quantized: Quantized, tmp_path: Path) -> None:
    for what in (":tied", "output.weight"):
        with pytest.raises(api.PlanError, match="token_embd"):
            alter(quantized("llama"), Alteration(drop=(what,)), tmp_path / "altered.gguf")


@pytest.mark.parametrize(
    ("name", "layers"), [("qwen35", "0-2"), ("qwen35", "3,7"), ("gpt-oss", "1,3"), ("lfm2moe", "1,3")]
)
def test_layers_of_both_kinds_are_left(name: str, layers: str, quantized: Quantized, tmp_path: Path) -> None:
    """With one kind alone llama.cpp ends at an assertion."""
    with pytest.raises(api.PlanError, match="layer"):
        alter(quantized(name), mainline(layers=layers), tmp_path / "altered.gguf")


def test_layers_out_of_phase_are_refused_for_an_engine_that_reads_no_list(quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(api.PlanError, match="ik_llama"):
        alter(quantized("qwen35"), Alteration(layers="0-2,1-"), tmp_path / "altered.gguf")
