"""An altered imatrix is that of the altered model: llama-imatrix finds the same, and llama-quantize uses it so."""

from __future__ import annotations

from pathlib import Path

import numpy as np  # noqa: TID253 - weights are arrays
import pytest

import gguftool as api
from gguftool import Alteration
from tests.e2e.altering import NO_SYNC, alter, mainline
from tests.e2e.engine import CORPUS, run_tool
from tests.support.tiny_models import MODELS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ORDERS = {0: (3, 0, 7, 1, 6, 2, 5, 4), 1: (7, 6, 5, 4, 3, 2, 1, 0), 2: (0, 2, 1, 3, 4, 6, 5, 7)}

SAME_MODEL: dict[str, tuple[str, Alteration]] = {
    "experts": ("qwen3moe", Alteration(experts=ORDERS)),
    "experts in groups": ("deepseek2", Alteration(experts="2,0,3,1,7,4,6,5")),
    "qkv": ("llama", mainline(fuse=("qkv",))),
    "qkv of a hybrid": ("qwen35", mainline(fuse=("qkv",))),
    "gate_up": ("deepseek2", mainline(fuse=("gate_up",))),
    "no MTP": ("qwen35", Alteration(drop=(":mtp",))),
}
ANOTHER_MODEL: dict[str, tuple[str, Alteration]] = {
    "experts pruned": ("qwen3moe", Alteration(experts={0: (7, 1, 2), 1: (0, 1, 4), 2: (3, 2, 6)})),
    "experts pruned and fused": ("deepseek2", mainline(experts="0-2,4-6", fuse=("gate_up",))),
    "layers": ("llama", mainline(layers="0,2,1,1,3", fuse=("qkv",))),
    "layers before MTP": ("deepseek2", Alteration(layers="0-,1-")),
    "fewer tokens": ("gemma3", Alteration(vocab="0-199")),
    "layers and experts": ("qwen3moe", Alteration(layers="2,0", experts="6,1,2")),
}


def imatrix_of(model: Path) -> Path:
    """Let llama-imatrix make the imatrix of `model` from the corpus."""
    (model.parent / "corpus.txt").write_text(CORPUS)
    output = model.with_suffix(".imatrix.gguf")
    options = ("-c", 64, "--chunks", 4, "-t", 1, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
    run_tool("llama-imatrix", "-m", model, "-f", "corpus.txt", "-o", output, *options, folder=model.parent)
    return output


def alter_imatrix(imatrix: Path, alteration: Alteration, model: Path, output: Path) -> Path:
    parsed = api.open_imatrix(imatrix)
    api.execute(api.plan_alter_imatrix(imatrix, parsed, alteration, output, model=model), NO_SYNC)
    return output


def engine_quantize(model: Path, imatrix: Path) -> Path:
    output = model.with_name(f"q-{model.name}")
    run_tool("llama-quantize", "--pure", "--imatrix", imatrix, model, output, "Q4_K_S", 1, folder=model.parent)
    return output


def different(one: Path, other: Path) -> list[str]:
    """The names of the tensors that two models of the same tensors do not share to the byte."""
    found, wanted = api.open_model(one).tensors, api.open_model(other).tensors
    assert set(found) == set(wanted)
    return [name for name, tensor in found.items() if tensor.raw() != wanted[name].raw()]


@pytest.mark.parametrize("case", SAME_MODEL)
def test_llama_imatrix_finds_the_same(case: str, tmp_path: Path) -> None:
    name, alteration = SAME_MODEL[case]
    source = MODELS[name]().write(tmp_path / "model.gguf")
    altered = alter(source, alteration, tmp_path / "altered.gguf")
    wanted = api.open_imatrix(imatrix_of(altered))
    found = api.open_imatrix(alter_imatrix(imatrix_of(source), alteration, source, tmp_path / "found.imatrix.gguf"))
    unused = set(found.entries) - set(wanted.entries)  # of the parts that were fused; nothing asks for them
    assert all(
        part.rsplit(".", 2)[1] in ("attn_q", "attn_k", "attn_v", "ffn_gate_exps", "ffn_up_exps") for part in unused
    )
    assert set(wanted.entries) <= set(found.entries)
    for each, entry in wanted.entries.items():
        np.testing.assert_array_equal(found.entries[each].counts, entry.counts)
        np.testing.assert_allclose(found.entries[each].sums, entry.sums, rtol=1e-4)


@pytest.mark.parametrize("case", [*SAME_MODEL, *ANOTHER_MODEL])
def test_llama_quantize_gives_rows_the_same_bytes(case: str, tmp_path: Path) -> None:
    """Altered and then quantized is quantized and then altered."""
    name, alteration = {**SAME_MODEL, **ANOTHER_MODEL}[case]
    source = MODELS[name]().write(tmp_path / "model.gguf")
    imatrix = imatrix_of(source)
    altered_imatrix = alter_imatrix(imatrix, alteration, source, tmp_path / "altered.imatrix.gguf")
    one = engine_quantize(alter(source, alteration, tmp_path / "altered.gguf"), altered_imatrix)
    other = alter(engine_quantize(source, imatrix), alteration, tmp_path / "other.gguf")
    assert different(one, other) == []
    assert {tensor.info.type for tensor in api.open_model(one).tensors.values()} > {0}


@pytest.mark.parametrize("case", ["experts", "experts in groups", "qkv", "gate_up", "layers"])
def test_the_old_imatrix_gives_other_bytes(case: str, tmp_path: Path) -> None:
    """Were it not so, the tests above would prove nothing."""
    name, alteration = {**SAME_MODEL, **ANOTHER_MODEL}[case]
    source = MODELS[name]().write(tmp_path / "model.gguf")
    imatrix = imatrix_of(source)
    one = engine_quantize(alter(source, alteration, tmp_path / "altered.gguf"), imatrix)
    other = alter(engine_quantize(source, imatrix), alteration, tmp_path / "other.gguf")
    assert different(one, other) != []
