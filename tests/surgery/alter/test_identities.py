"""What is taken apart and put together again is the file that it was, byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import gguftool
from gguftool.surgery.alter.alteration import Alteration
from gguftool.surgery.alter.plan import plan_alter
from tests.support.mix_models import write
from tests.support.shuffled_models import ShuffledModel, models

MTP = ("deepseek2", "qwen35")
EXPERTS = ("deepseek2", "qwen3moe")
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def altered(model: Path, name: str, **operations: object) -> Path:
    """Alter `model`; what one engine does not read is no reason not to write it here."""
    options = gguftool.OutputOptions(anyway=True)
    donors = operations.pop("donors", None)
    output = model.with_name(name)
    output.unlink(missing_ok=True)
    write(plan_alter(model, Alteration(output=options, **operations), output, donors))  # type: ignore[arg-type]
    return output


def written(folder: Path, model: ShuffledModel) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(model.data())
    return path


@few
@given(model=models())
def test_all_layers_are_the_model(folder: Path, model: ShuffledModel) -> None:
    assert altered(written(folder, model), "o.gguf", layers="0-").read_bytes() == model.data()


@few
@given(model=models(EXPERTS))
def test_all_experts_are_the_model(folder: Path, model: ShuffledModel) -> None:
    assert altered(written(folder, model), "o.gguf", experts="0-").read_bytes() == model.data()


@few
@given(model=models(("llama", "gemma3")))
def test_all_tokens_are_the_model(folder: Path, model: ShuffledModel) -> None:
    assert altered(written(folder, model), "o.gguf", vocab="0-").read_bytes() == model.data()


@few
@given(model=models(("llama", "qwen3moe", "gemma3")))
def test_q_k_v_fused_and_unfused_are_the_model(folder: Path, model: ShuffledModel) -> None:
    there = altered(written(folder, model), "t.gguf", fuse=("qkv",))
    assert any("attn_qkv" in name for name in gguftool.open_model(there).tensors)
    assert altered(there, "o.gguf", unfuse=("qkv",)).read_bytes() == model.data()


@few
@given(model=models(EXPERTS))
def test_gate_and_up_fused_and_unfused_are_the_model(folder: Path, model: ShuffledModel) -> None:
    there = altered(written(folder, model), "t.gguf", fuse=("gate_up",))
    assert any("gate_up" in name for name in gguftool.open_model(there).tensors)
    assert altered(there, "o.gguf", unfuse=("gate_up",)).read_bytes() == model.data()


@few
@given(model=models(EXPERTS))
def test_experts_unstacked_and_stacked_are_the_model(folder: Path, model: ShuffledModel) -> None:
    there = altered(written(folder, model), "t.gguf", unfuse=("experts",))
    assert "blk.1.ffn_up.7.weight" in gguftool.open_model(there).tensors
    assert altered(there, "o.gguf", fuse=("experts",)).read_bytes() == model.data()


@few
@given(model=models(("qwen3moe",)))
def test_several_fusions_and_back_are_the_model(folder: Path, model: ShuffledModel) -> None:
    there = altered(written(folder, model), "t.gguf", fuse=("qkv", "gate_up"))
    half = altered(there, "h.gguf", unfuse=("qkv",))
    assert altered(half, "o.gguf", unfuse=("gate_up",)).read_bytes() == model.data()


@few
@given(model=models(MTP))
def test_layers_for_mtp_dropped_and_taken_back_are_the_model(folder: Path, model: ShuffledModel) -> None:
    path = written(folder, model)
    there = altered(path, "t.gguf", drop=(":mtp",))
    assert not any("nextn" in name for name in gguftool.open_model(there).tensors)
    assert altered(there, "o.gguf", take=(("d", ":mtp"),), donors={"d": path}).read_bytes() == model.data()


@few
@given(model=models(("llama", "gemma3")))
def test_any_tensors_dropped_and_taken_back_are_the_model(folder: Path, model: ShuffledModel) -> None:
    path = written(folder, model)
    there = altered(path, "t.gguf", drop=(r"norm\.weight", r"ffn_up"))
    assert altered(there, "o.gguf", take=(("d", "norm|ffn_up"),), donors={"d": path}).read_bytes() == model.data()


@few
@given(model=models(("llama", "qwen3moe")))
def test_renamed_and_back_are_the_model(folder: Path, model: ShuffledModel) -> None:
    there = altered(written(folder, model), "t.gguf", rename=((r"^blk\.(\d+)\.", r"model.blk.\1."),))
    assert "model.blk.0.attn_q.weight" in gguftool.open_model(there).tensors
    assert altered(there, "o.gguf", rename=((r"^model\.", ""),)).read_bytes() == model.data()
