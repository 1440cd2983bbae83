"""MTP layers and draft heads that `alter` cuts and grafts draft in real llama.cpp as they did."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool import Alteration
from tests.e2e.altering import Predict, Quantized, alter, assert_weights
from tests.support import numpy_surgery as surgery
from tests.support.tiny_drafts import eagle3, first_order
from tests.support.tiny_models import MODELS, llama, read

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


# --- MTP dropped and taken back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek2", "qwen35", "qwen35moe"])
def test_an_mtp_layer_taken_back_drafts(name: str, quantized: Quantized, tmp_path: Path, predict: Predict) -> None:
    source = quantized(name)
    trunk = alter(source, Alteration(drop=(":mtp",)), tmp_path / "trunk.gguf")
    back = alter(trunk, Alteration(take=(("d", ":mtp"),)), tmp_path / "back.gguf", {"d": source})
    before, without, after = predict(source, trunk, back)
    assert max(before.distance(without), before.distance(after)) == 0
    assert read(trunk).own("nextn_predict_layers", 0) == 0
    [mtp_before, mtp_after] = predict(source, back, mtp=True)
    assert (mtp_after.text, mtp_after.drafted) == (mtp_before.text, mtp_before.drafted)
    assert mtp_after.drafted > 0
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["deepseek2", "qwen35", "qwen35moe"])
def test_a_grafted_mtp_layer_drafts(name: str, quantized: Quantized, tmp_path: Path, predict: Predict) -> None:
    """Into a model that never had one, from a donor that is all there or a companion."""
    knowing = first_order(MODELS[name]())
    source = quantized(f"{name} without", "q4_K", surgery.drop_mtp(knowing))
    donor = quantized(f"{name} with", "q6_K", knowing)
    ends = ("token_embd.weight", "output.weight", "output_norm.weight")
    companion = alter(donor, Alteration(keep=(":mtp", *ends)), tmp_path / "companion.gguf")
    grafted = alter(source, Alteration(take=(("d", ":mtp"),)), tmp_path / "grafted.gguf", {"d": donor})
    other = alter(source, Alteration(take=(("d", ":mtp"),)), tmp_path / "other.gguf", {"d": companion})
    before, *after = predict(source, grafted, other)
    assert [before.distance(each) for each in after] == [0, 0]
    for drafting in (*predict(grafted, mtp=True), *predict(source, mtp=True, draft=companion)):
        assert drafting.text == before.text
        assert drafting.accepted > drafting.drafted / 4  # of a layer of random weights, none
    layer = {
        each: array
        for each, array in read(donor).weights.items()
        if surgery.layer_of(each) == surgery.trunk_layers(knowing)
    }
    assert_weights(grafted, knowing.with_weights({**read(source).weights, **layer}))


# --- draft heads ------------------------------------------------------------------------------------------------------


def test_a_cut_draft_head_drafts_as_before(tmp_path: Path, predict: Predict) -> None:
    """Every other token from the end, and those that are needed: `d2t` says which; two cuts are one."""
    target, draft = first_order(llama()).write(tmp_path / "target.gguf"), eagle3().write(tmp_path / "draft.gguf")
    [before] = predict(target, draft=draft)
    needed = sorted({*before.tokens, *range(1, 288, 2)}, reverse=True)
    cut = alter(draft, Alteration(vocab=needed), tmp_path / "cut.gguf")
    again = alter(cut, Alteration(vocab=sorted(set(before.tokens))), tmp_path / "again.gguf")
    assert read(cut).weights["output.weight"].shape[0] == len(needed) < 200
    for head in (cut, again):
        [after] = predict(target, draft=head)
        assert (after.text, after.drafted, after.accepted) == (before.text, before.drafted, before.accepted)
    assert before.accepted > 0
