"""Which tensors can be fused, and who reads the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.format.engine_facts.engines import ENGINES, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.model.opening import open_model
from gguftool.model.remap.fusing import FUSIONS, STACKS, is_fusible, qkv_rows, reads_fused, reads_parts, scales_problem
from tests.support.scaled_models import f32, floats, write


def test_the_order_of_the_parts() -> None:
    assert FUSIONS["qkv"].parts_of(3, ".weight") == tuple(f"blk.3.attn_{part}.weight" for part in "qkv")
    assert FUSIONS["qkv"].fused_of(3, ".bias") == "blk.3.attn_qkv.bias"
    assert FUSIONS["gate_up"].parts == ("ffn_gate_exps", "ffn_up_exps")
    assert FUSIONS["gate_up"].suffixes == {".weight": 1, ".bias": 0}


@pytest.mark.parametrize(
    ("kind", "architecture", "mainline", "ik"),
    [
        ("gate_up", "deepseek2", True, True),
        ("gate_up", "qwen3moe", False, True),
        ("gate_up", "qwen35moe", True, True),
        ("gate_up", "gpt-oss", False, True),
        ("gate_up", "gemma4", True, True),
        ("qkv", "llama", True, False),
        ("qkv", "qwen3moe", True, False),
        ("qkv", "qwen35", True, False),
        ("qkv", "phi2", True, True),
        ("qkv", "phi3", True, True),
        ("qkv", "falcon", True, True),
        ("qkv", "no-such-architecture", None, None),
    ],
)
def test_who_reads_the_fused_form(kind: str, architecture: str, mainline: bool | None, ik: bool | None) -> None:
    assert reads_fused(kind, architecture, LLAMA_CPP) is mainline
    assert reads_fused(kind, architecture, IK_LLAMA_CPP) is ik


def test_who_reads_the_parts() -> None:
    assert reads_parts("qkv", "llama", IK_LLAMA_CPP)
    assert reads_parts("qkv", "falcon", LLAMA_CPP) is False
    assert reads_parts("qkv", "no-such-architecture", LLAMA_CPP) is None


@pytest.mark.parametrize(("kind", "engine", "count"), [("qkv", LLAMA_CPP, 100), ("gate_up", IK_LLAMA_CPP, 20)])
def test_counts_of_architectures(kind: str, engine: str, count: int) -> None:
    facts = head_facts(engine)
    assert facts is not None
    assert engine in ENGINES
    assert sum(bool(reads_fused(kind, name, engine)) for name in facts.architectures) >= count


def test_who_reads_experts_one_by_one() -> None:
    assert (reads_parts("experts", "llama", LLAMA_CPP), reads_parts("experts", "llama", IK_LLAMA_CPP)) == (False, True)
    assert reads_fused("experts", "llama", LLAMA_CPP)
    assert reads_fused("experts", "llama", IK_LLAMA_CPP)
    assert reads_parts("experts", "qwen3moe", IK_LLAMA_CPP) is False
    assert set(STACKS.values()) == {"ffn_gate", "ffn_up", "ffn_down"}


def test_linear_attention_has_an_attn_qkv_of_another_kind() -> None:
    assert not is_fusible("qkv", ["attn_qkv.weight", "attn_gate.weight", "ssm_conv1d.weight"])
    assert is_fusible("qkv", ["attn_qkv.weight", "attn_output.weight"])
    assert is_fusible("gate_up", ["ssm_conv1d.weight"])


def head(**keys: int | list[int]) -> tuple[KV, ...]:
    kvs = [make_kv("general.architecture", ValueType.STRING, "llama")]
    for name, value in keys.items():
        key = f"llama.{name.replace('__', '.')}"
        if isinstance(value, list):
            kvs.append(make_kv(key, ValueType.ARRAY, value, element=ValueType.UINT32))
        else:
            kvs.append(make_kv(key, ValueType.UINT32, value))
    return tuple(kvs)


@pytest.mark.parametrize(
    ("keys", "layer", "rows", "split"),
    [
        ({"embedding_length": 64, "attention__head_count": 4}, 0, 192, (64, 64, 64)),
        ({"embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}, 0, 128, (64, 32, 32)),
        ({"attention__head_count": 4, "attention__head_count_kv": [2, 1], "attention__key_length": 8,
          "attention__value_length": 16}, 1, 56, (32, 8, 16)),
        ({"attention__head_count": 4, "attention__head_count_kv": 2, "attention__key_length": 8,
          "attention__value_length": 8}, 0, 96, (64, 16, 16)),
        ({"attention__head_count": 4, "attention__head_count_kv": 2, "attention__key_length": 8,
          "attention__value_length": 8, "attention__key_length_swa": 4, "attention__value_length_swa": 4}, 0, 64,
         (32, 16, 16)),
        ({"embedding_length": 64, "attention__head_count": 4}, 0, 100, None),
        ({"embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 0}, 0, 64, None),
        ({}, 0, 192, None),
    ],
)  # fmt: skip
def test_rows_of_queries_keys_and_values(
    keys: dict[str, int | list[int]], layer: int, rows: int, split: tuple[int, int, int] | None
) -> None:
    assert qkv_rows(head(**keys), layer, rows) == split


def test_rows_that_two_layouts_explain_are_not_guessed() -> None:
    """Four heads of 16 for the queries with a gate and two of 8, or without and with a wider window: 96 rows both."""
    kvs = head(
        attention__head_count=4, attention__head_count_kv=2, attention__key_length=8, attention__value_length=8,
        attention__key_length_swa=12, attention__value_length_swa=12,
    )  # fmt: skip
    assert qkv_rows(kvs, 0, 96) is None


PARTS = ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"]


@pytest.mark.parametrize(
    ("scales", "fits"), [([], True), ([2.0, 2.0, 2.0], True), ([2.0, 2.0, 3.0], False), ([2.0], False)]
)
def test_parts_with_scales_fuse_only_if_all_are_equal(tmp_path: Path, scales: list[float], fits: bool) -> None:
    names = [part.replace(".weight", ".scale") for part in PARTS]
    tensors = [floats(part, (32, 4)) for part in PARTS]
    tensors += [f32(name, (1,), [scale]) for name, scale in zip(names, scales, strict=False)]
    model = open_model(write(tmp_path / "m.gguf", *tensors))
    assert (scales_problem("qkv", model.tensors, PARTS) == "") is fits


def test_experts_with_scales_are_left_alone(tmp_path: Path) -> None:
    parts = ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"]
    scales = [f32(part.replace(".weight", ".scale"), (2,), [1.0, 1.0]) for part in parts]
    model = open_model(write(tmp_path / "m.gguf", *(floats(part, (32, 4, 2)) for part in parts), *scales))
    assert "leave this layer" in scales_problem("gate_up", model.tensors, parts)
