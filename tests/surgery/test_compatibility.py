"""Tensors on which engines abort are not brought into a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.errors import PlanError
from gguftool.format.recipe import parse_recipe
from gguftool.model.layout import OutputOptions
from gguftool.surgery.quantize.options import QuantizeOptions
from gguftool.surgery.quantize.plan import plan_quantize
from gguftool.surgery.swap import plan_swap
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.mix_models import merge_plan
from tests.support.scaled_models import NORM, UP, WIDTH, f32, floats

ABORTS = "llama.cpp and ik_llama.cpp would abort on the output; --anyway writes it"


def model(path: Path, norm: b.Tensor, weight: b.Tensor) -> str:
    kvs = [b.KV("general.architecture", b.STR, "llama"), b.KV("llama.block_count", b.U32, 1)]
    path.write_bytes(b.gguf(kvs, [floats("token_embd.weight"), norm, weight]))
    return str(path)


@pytest.fixture
def good(tmp_path: Path) -> str:
    return model(tmp_path / "good.gguf", f32(NORM, (WIDTH,), [1.0] * WIDTH), floats(UP))


def bad(tmp_path: Path, kind: str) -> str:
    weight = b.tensor(UP, kind, (WIDTH, 4)) if kind == "I32" else floats(UP)
    return model(tmp_path / "bad.gguf", b.tensor(NORM, "F16" if kind == "I32" else kind, (WIDTH,)), weight)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_a_norm_that_is_not_f32_is_refused_by_swap_and_merge(tmp_path: Path, good: str, kind: str) -> None:
    other, out = bad(tmp_path, kind), tmp_path / "o.gguf"
    with pytest.raises(PlanError, match=ABORTS):
        plan_swap(good, other, [NORM], out)
    with pytest.raises(PlanError, match=f"{ABORTS}.*{kind}.*{NORM}"):
        merge_plan([f"good={good}", f"bad={other}"], out, "norm=@bad\n.*=@good")


def test_an_integer_weight_is_refused_and_anyway_lets_it_pass_with_a_warning(tmp_path: Path, good: str) -> None:
    other, out = bad(tmp_path, "I32"), tmp_path / "o.gguf"
    with pytest.raises(PlanError, match="I32, with which engines cannot multiply"):
        plan_swap(good, other, [UP], out)
    plan = plan_swap(good, other, [UP], out, OutputOptions(anyway=True))
    assert any("abort on I32, with which engines cannot multiply: blk.0.ffn_up.weight" in note for note in plan.remarks)


def test_what_a_model_has_already_is_copied_with_a_warning(tmp_path: Path) -> None:
    other, out = bad(tmp_path, "F16"), tmp_path / "o.gguf"
    plans = [
        merge_plan([other], out),
        plan_quantize(other, parse_recipe("ffn=q8_0"), out, QuantizeOptions()),
        plan_swap(other, other, [UP], out),
    ]
    for plan in plans:
        assert any(
            f"abort on F16, and engines take norms, biases and scales only in F32: {NORM}" in note
            for note in plan.remarks
        )


@pytest.mark.parametrize("command", ["swap", "merge"])
def test_a_command_refuses_and_anyway_writes_what_check_calls_an_error(tmp_path: Path, good: str, command: str) -> None:
    other, out = bad(tmp_path, "F16"), tmp_path / "o.gguf"
    (tmp_path / "r.recipe").write_text(f"{NORM}=@bad\n.*=@good\n")
    words: list[object] = {
        "swap": ["swap", good, "--from", other, "--tensor", NORM],
        "merge": ["merge", f"good={good}", f"bad={other}", "--recipe", tmp_path / "r.recipe"],
    }[command]
    refused = run_gguftool(*words, "-o", out)
    assert refused.returncode == 2
    assert ABORTS.encode() in refused.stderr
    assert not out.exists()
    done = run_gguftool(*words, "-o", out, "--anyway")
    assert done.returncode == 0, done.stderr
    assert b"abort on F16" in done.stderr
    checked = run_gguftool("check", out)
    assert checked.returncode == 1
    assert b"T06" in checked.stdout
