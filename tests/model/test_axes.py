"""The table of axes against what both engines ask for, in the words of their sources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguftool.errors import PlanError
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.heads import TensorFact, head_facts
from gguftool.format.header import TensorInfo
from gguftool.model.axes import AxisKind, axis_of, is_known, tensor_axes, unknown_with_axis
from gguftool.model.opening import open_model
from tests.support import builders as b

# Names in the engines' sources that count experts, tokens or layers.
COUNTS = {
    AxisKind.EXPERTS: re.compile(r"n_(?:chunk_)?expert"),
    AxisKind.VOCABULARY: re.compile(r"n_(?:draft_|target_)?vocab(?:_draft|_out)?"),
    AxisKind.LAYERS: re.compile(r"n_embd_\w+ \* n_layer"),
}


def asked_for() -> Iterator[tuple[str, TensorFact]]:
    """Every tensor that an engine asks for, with its architecture."""
    for engine in ENGINES:
        facts = head_facts(engine)
        assert facts is not None
        for name, architecture in facts.architectures.items():
            yield from ((name, tensor) for tensor in architecture.tensors)


def counted(tensor: TensorFact, kind: AxisKind) -> int | None:
    """The axis that counts `kind` by the source's own words."""
    return next((axis for axis, dim in enumerate(tensor.dims) if COUNTS[kind].fullmatch(dim)), None)


def in_table(architecture: str, tensor: TensorFact, kind: AxisKind) -> int | None:
    axes = tensor_axes(tensor.name.replace("%d", "3"), architecture)
    return counted(tensor, kind) if axes.expert is not None else axes.of(kind)


@pytest.mark.parametrize(
    ("kind", "at_least"), [(AxisKind.EXPERTS, 400), (AxisKind.VOCABULARY, 400), (AxisKind.LAYERS, 5)]
)
def test_every_axis_that_the_engines_name_is_in_the_table(kind: AxisKind, at_least: int) -> None:
    named = [(name, tensor) for name, tensor in asked_for() if counted(tensor, kind) is not None]
    assert len(named) >= at_least
    wrong = [(name, one) for name, one in named if in_table(name, one, kind) != counted(one, kind)]
    assert wrong == []


@pytest.mark.parametrize("kind", list(COUNTS))
def test_the_table_has_no_axis_that_the_engines_deny(kind: AxisKind) -> None:
    wrong = []
    for name, tensor in asked_for():
        axis = in_table(name, tensor, kind)
        if axis is None or "?" in tensor.dims[axis : axis + 1] or len(tensor.dims) < 2:
            continue
        if axis >= len(tensor.dims) or (tensor.dims[axis] != "unknown" and axis != counted(tensor, kind)):
            wrong.append((name, tensor.name, tensor.dims, axis))
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("blk.0.attn_q.weight", 1),
        ("blk.0.attn_q.bias", 0),
        ("blk.0.attn_output.weight", 0),
        ("blk.0.attn_k_b.weight", 2),
        ("blk.0.attn_norm.weight", None),
    ],
)
def test_axes_of_heads(name: str, axis: int | None) -> None:
    assert tensor_axes(name, "llama").heads == axis


def test_a_tensor_of_one_expert_has_its_number_in_its_name() -> None:
    assert tensor_axes("blk.0.ffn_up.12.weight", "llama").expert == 12
    assert tensor_axes("blk.0.ffn_up.weight", "llama").expert is None


def test_numbers_that_stand_for_others_cannot_be_cut() -> None:
    for name in ("blk.0.ffn_gate_tid2eid.weight", "masked_embd_ordering"):
        axes = tensor_axes(name, "deepseek4")
        assert axes.holds
        assert axes.reason
    assert "inside rows" in tensor_axes("per_layer_token_embd.weight", "gemma3n").reason


def test_an_architecture_may_mean_something_else_by_a_name() -> None:
    assert tensor_axes("output.weight", "llama").vocabulary == 1
    assert tensor_axes("output.weight", "wavtokenizer-dec").vocabulary is None
    assert tensor_axes("per_layer_token_embd.weight", "qwen4exp").vocabulary is None


def info(name: str, *dims: int) -> TensorInfo:
    return TensorInfo(name=name, dims=dims, type=0, offset=0)


def test_an_axis_of_another_length_than_the_count_is_an_error_that_names_both() -> None:
    router = info("blk.0.ffn_gate_inp.weight", 32, 6)
    assert axis_of(router, "qwen3moe", AxisKind.EXPERTS, 6) == 1
    with pytest.raises(PlanError, match=r"blk\.0\.ffn_gate_inp\.weight.* 6 .*8 experts"):
        axis_of(router, "qwen3moe", AxisKind.EXPERTS, 8)


def test_an_axis_that_the_tensor_lacks_has_length_1() -> None:
    with pytest.raises(PlanError, match="1 entries, not one for each of the 8 experts"):
        axis_of(info("blk.0.ffn_up_exps.weight", 32, 8), "qwen3moe", AxisKind.EXPERTS, 8)


def test_each_layer_may_have_several_rows() -> None:
    projection = info("per_layer_model_proj.weight", 64, 12)
    assert axis_of(projection, "gemma4", AxisKind.LAYERS, 4) == 1
    for layers in (5, 0):
        with pytest.raises(PlanError, match="layers that the metadata counts"):
            axis_of(projection, "gemma4", AxisKind.LAYERS, layers)
    with pytest.raises(PlanError, match="experts"):
        axis_of(info("blk.0.ffn_gate_inp.weight", 32, 16), "qwen3moe", AxisKind.EXPERTS, 8)


def test_chunks_of_experts_and_the_vocabularies_of_drafts() -> None:
    assert tensor_axes("blk.0.ffn_up_chexps.weight", "grovemoe").chunks
    assert not tensor_axes("blk.0.ffn_up_exps.weight", "grovemoe").chunks
    drafts = ("d2t", "output.weight", "markov_w1.weight", "markov_w2.weight", "token_embd.weight")
    assert [tensor_axes(name, "dflash").draft for name in drafts] == [True, True, False, True, False]


def test_a_scale_of_one_number_has_no_experts() -> None:
    assert axis_of(info("blk.0.ffn_up_exps.scale", 8), "qwen3moe", AxisKind.EXPERTS, 8) == 0
    assert axis_of(info("blk.0.ffn_up_exps.scale", 1), "qwen3moe", AxisKind.EXPERTS, 8) is None


def test_only_names_that_nobody_knows_stop_a_run(tmp_path: Path) -> None:
    tensors = [
        b.tensor("token_embd.weight", "F32", (32, 8)),
        b.tensor("blk.0.attn_norm.weight", "F32", (32,)),
        b.tensor("blk.0.ffn_up_exps.weight", "F32", (32, 8, 8)),
        b.tensor("blk.0.ffn_up_exps.input_scale", "F32", (8,)),
        b.tensor("blk.0.ffn_novel_exps.weight", "F32", (32, 8, 8)),
        b.tensor("blk.0.novel.weight", "F32", (32, 16)),
        b.tensor("blk.0.attn_q.scale", "F32", (1,)),
        b.tensor("blk.0.attn_q.novel", "F32", (8,)),
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf([b.KV("general.architecture", b.STR, "qwen3moe")], tensors))
    model = open_model(path)
    assert unknown_with_axis(model, AxisKind.EXPERTS, 8) == ("blk.0.ffn_novel_exps.weight", "blk.0.attn_q.novel")
    assert unknown_with_axis(model, AxisKind.VOCABULARY, 16) == ("blk.0.novel.weight",)
    assert unknown_with_axis(model, AxisKind.LAYERS, 8) == ()


def test_every_tensor_that_an_engine_asks_for_is_known() -> None:
    assert all(is_known(tensor.name.replace("%d", "3"), name) for name, tensor in asked_for())
