"""What `alter` does to tensors and metadata, and what it refuses, on small models that nobody runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import gguftool
from gguftool.errors import PlanError
from gguftool.format.kv import ValueType, make_kv
from gguftool.model.model import Model
from gguftool.record import replace
from gguftool.storage.plan import Plan
from gguftool.surgery.alter.alteration import Alteration
from gguftool.surgery.alter.plan import plan_alter
from tests.support import builders as b
from tests.support.counted_work import LINEAR, calls_of, growth
from tests.support.mix_models import write
from tests.support.nginx import Nginx
from tests.support.shuffled_models import ShuffledModel

MAINLINE = ("llama.cpp",)


def tiny(folder: Path, name: str, *more: b.Tensor, drop: str = "", **keys: int) -> Path:
    """One of the tiny models, without tensors that have `drop` in their name, with keys of its own changed."""
    path = folder / f"{name}.gguf"
    path.write_bytes(ShuffledModel(name, ("Q4_K", "Q8_0"), -1, "<", more, drop, tuple(keys.items())).data())
    return path


def planned(model: Path, donors: Mapping[str, Any] | None = None, **operations: Any) -> Plan:
    return plan_alter(model, Alteration(**operations), model.with_name("out.gguf"), donors)


def altered(model: Path, donors: Mapping[str, Any] | None = None, **operations: Any) -> Model:
    plan = planned(model, donors, **operations)
    plan.outputs[0].path.unlink(missing_ok=True)
    write(plan)
    return gguftool.open_model(plan.outputs[0].path)


def problems(model: Path, donors: Mapping[str, Any] | None = None, **operations: Any) -> str:
    with pytest.raises(PlanError) as caught:
        planned(model, donors, **operations)
    return str(caught.value)


def own(model: Model, key: str) -> Any:
    return model[f"{model['general.architecture']}.{key}"]


# --- MTP -------------------------------------------------------------------------------------------------------------


def test_a_head_moves_to_the_end_of_a_longer_trunk(tmp_path: Path) -> None:
    source = tiny(tmp_path, "qwen35")
    longer = altered(source, layers="0-3,0-", drop=(":mtp",))
    made = altered(Path(longer.name).rename(tmp_path / "longer.gguf"), {"d": source}, take=(("d", ":mtp"),))
    assert (own(made, "block_count"), own(made, "nextn_predict_layers")) == (13, 1)
    theirs = gguftool.open_model(source).tensors
    assert made.tensors["blk.12.nextn.eh_proj.weight"].raw() == theirs["blk.8.nextn.eh_proj.weight"].raw()
    assert list(made.tensors)[-1] == "blk.12.nextn.shared_head_norm.weight"


def test_layers_for_mtp_stay_at_the_end(tmp_path: Path) -> None:
    made = altered(tiny(tmp_path, "deepseek2"), layers="0,2,1,2")
    assert "blk.4.nextn.eh_proj.weight" in made.tensors
    assert (own(made, "block_count"), own(made, "nextn_predict_layers")) == (5, 1)


def test_keys_that_promise_an_absent_head_are_mended(tmp_path: Path) -> None:
    made = altered(tiny(tmp_path, "qwen35", drop="blk.8."), drop=(":mtp",))
    assert (own(made, "block_count"), own(made, "nextn_predict_layers")) == (8, 0)


def test_a_promise_that_would_skip_the_last_layer_is_mended(tmp_path: Path) -> None:
    """The count of layers was lowered, and the count of MTP layers forgotten."""
    made = altered(tiny(tmp_path, "qwen35", drop="blk.8.", block_count=8), drop=(":mtp",))
    assert (own(made, "block_count"), own(made, "nextn_predict_layers")) == (8, 0)


def test_a_head_that_nobody_promises_is_dropped(tmp_path: Path) -> None:
    made = altered(tiny(tmp_path, "qwen35", nextn_predict_layers=0), drop=(":mtp",))
    assert (own(made, "block_count"), "blk.8.attn_q.weight" in made.tensors) == (8, False)


def test_the_head_alone_is_a_companion(tmp_path: Path) -> None:
    made = altered(tiny(tmp_path, "qwen35"), keep=(":mtp",))
    rest = [name for name in made.tensors if not name.startswith("blk.8.")]
    assert rest == ["token_embd.weight", "output_norm.weight", "output.weight"]
    assert own(made, "block_count") == 9


def test_a_companion_of_mtp_layers_alone_has_no_trunk(tmp_path: Path) -> None:
    """As Gemma 4's assistant: all its layers are for MTP, and it is no damaged file."""
    source = tiny(tmp_path, "llama", nextn_predict_layers=4)
    made = altered(source, rename=(("^output_norm", "output_norm"),), set=(("general.name", "x"),))
    assert own(made, "nextn_predict_layers") == 4
    assert "the model has no layers to list" in problems(source, layers="0")


def test_a_second_head_is_refused(tmp_path: Path) -> None:
    source = tiny(tmp_path, "qwen35")
    assert "already in the model; --drop :mtp" in problems(source, {"d": source}, take=(("d", ":mtp"),))


def test_a_head_from_a_server_costs_its_ranges_and_the_heads_of_files(
    nginx: Callable[[Path], Nginx], tmp_path: Path
) -> None:
    (tmp_path / "served").mkdir()
    source = tiny(tmp_path / "served", "qwen35", *(b.tensor(f"blk.{n}.x", "F16", (1 << 20, 4)) for n in range(4)))
    trunk = altered(source, drop=(":mtp", r"\.x$"))
    path = Path(trunk.name).rename(tmp_path / "trunk.gguf")
    server = nginx(tmp_path / "served")
    donor = gguftool.open_model(server.url("qwen35.gguf"))
    assert server.sent <= 1 << 20
    server.forget()
    plan = plan_alter(path, Alteration(take=(("d", ":mtp"),)), tmp_path / "out.gguf", {"d": donor})
    assert server.sent == 0
    write(plan)
    head = [tensor for name, tensor in donor.tensors.items() if name.startswith("blk.8.")]
    assert server.sent == sum(tensor.padded_extent.length for tensor in head)
    made = gguftool.open_model(tmp_path / "out.gguf")
    local = gguftool.open_model(source)
    assert all(made.tensors[one.name].raw() == local.tensors[one.name].raw() for one in head)


# --- take, drop, keep, rename ----------------------------------------------------------------------------------------


def test_scales_go_with_their_weights(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama", b.tensor("blk.0.ffn_up.scale", "F32", (1,)))
    left = altered(source, drop=("blk.0.ffn_up.weight",), output=gguftool.OutputOptions(anyway=True))
    assert not any("ffn_up" in name for name in left.tensors if name.startswith("blk.0."))
    part = Path(left.name).rename(tmp_path / "part.gguf")
    assert "blk.0.ffn_up.scale" in altered(part, {"d": source}, take=(("d", "blk.0.ffn_up.weight"),)).tensors


def test_an_encoder_goes_with_its_keys(tmp_path: Path) -> None:
    encoder = [b.tensor(f"{part}.x.weight", "F32", (4,)) for part in ("v", "mm", "a")]
    source = tiny(tmp_path, "llama", *encoder, **{"vision.block_count": 27})
    made = altered(source, drop=(":vision",))
    assert not any(name.startswith(("v.", "mm.", "a.")) for name in made.tensors)
    assert "llama.vision.block_count" not in made
    assert "llama.vision.block_count: 27 (removed)" in planned(source, drop=(":vision",)).remarks


def test_an_output_is_dropped_only_if_it_is_the_embedding(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    assert "differs from token_embd.weight" in problems(source, drop=(":tied",))
    assert "it differs from token_embd.weight" in problems(source, drop=("output.weight",))
    embedding = gguftool.open_model(source).tensors["token_embd.weight"]
    twin = b.Tensor("output.weight", embedding.info.dims, embedding.info.type, embedding.raw())
    tied = tiny(tmp_path, "llama", twin, drop="output.weight")
    assert "output.weight" not in altered(tied, drop=(":tied",)).tensors
    assert "output.weight" not in altered(tied, drop=("^output.weight",)).tensors


def test_what_no_engine_asks_for_is_unused(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama", b.tensor("mtp.proj.weight", "F32", (4,)))
    assert len(altered(source, drop=(":unused",)).tensors) == len(gguftool.open_model(source).tensors) - 1
    assert "reads every tensor" in problems(tiny(tmp_path, "qwen3moe"), drop=(":unused",))


def test_a_layer_cannot_be_dropped_by_name(tmp_path: Path) -> None:
    said = problems(tiny(tmp_path, "llama"), drop=(r"^blk\.[12]\.",))
    assert "layers 1-2 would have no tensors left: --layers '!1-2'" in said


def test_renamed_tensors_take_the_keys_that_bear_their_names(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    shape = "comfy.gguf.orig_shape.token_embd.weight"
    first = altered(source, set=((shape, "i32[]:[1, 2]"),))
    path = Path(first.name).rename(tmp_path / "shaped.gguf")
    made = altered(path, rename=(("^token_embd", "embd"),), output=gguftool.OutputOptions(anyway=True))
    assert "comfy.gguf.orig_shape.embd.weight" in made
    assert shape not in made


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (("nothing", "x"), "'nothing' matches no tensor"),
        (("(", "x"), "is not a regular expression"),
        (("a", r"\2"), "refers to a group that does not exist"),
        ((r"blk\.[0-9]", "blk.0"), "several tensors would be called blk.0.attn_norm.weight"),
        (("attn", "x" * 60), "names of at most 63 bytes"),
        (("^output.weight$", ""), "a tensor would have no name"),
    ],
)
def test_renames_that_cannot_be(tmp_path: Path, rename: tuple[str, str], said: str) -> None:
    assert said in problems(tiny(tmp_path, "llama"), rename=(rename,))


@pytest.mark.parametrize(
    ("key", "name", "operation"),
    [
        ("comfy.gguf.orig_shape.x.{}", "x.{}", {"rename": ((r"^x\.", "y."),)}),
        ("clip.vision.{}", "v.{}", {"drop": (":vision",)}),
    ],
)
def test_work_grows_with_the_number_of_names(tmp_path: Path, key: str, name: str, operation: Any) -> None:
    model = gguftool.open_model(tiny(tmp_path, "llama"))
    first = model.tensors["output_norm.weight"]

    def work(count: int) -> None:
        more = {name.format(number): first.named(name.format(number)) for number in range(count)}
        kvs = tuple(make_kv(key.format(number), ValueType.UINT32, number) for number in range(count))
        larger = replace(model, kvs=(*model.kvs, *kvs), tensors={**model.tensors, **more})
        alteration = Alteration(**operation, output=gguftool.OutputOptions(anyway=True))
        plan_alter(larger, alteration, tmp_path / "out.gguf")

    assert growth(work, 500, runs=2) < LINEAR


# --- layers, experts, tokens -----------------------------------------------------------------------------------------


def test_more_layers_than_are_written_cost_no_tensors(tmp_path: Path) -> None:
    source, count = gguftool.open_model(tiny(tmp_path, "llama")), 12_000
    lists = ",".join(["0"] * count)
    said: list[str] = []

    def refused() -> None:
        with pytest.raises(PlanError) as caught:
            plan_alter(source, Alteration(layers=lists), tmp_path / "out.gguf")
        said.append(str(caught.value))

    calls = calls_of(refused)
    assert "gguftool writes at most 4,096" in said[0]
    assert calls < 40 * count  # a layer has 9 tensors, each of which would take more than that


def test_layers_of_two_models(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    ours, theirs = tiny(tmp_path, "llama"), tiny(tmp_path / "b", "llama", drop="norm")
    made = altered(
        ours, {"a": ours, "B-1": theirs}, layers="a:0-1,b_1:3,2-", output=gguftool.OutputOptions(anyway=True)
    )
    assert own(made, "block_count") == 5
    other = gguftool.open_model(theirs).tensors
    assert made.tensors["blk.2.attn_q.weight"].raw() == other["blk.3.attn_q.weight"].raw()
    assert "blk.2.attn_norm.weight" not in made.tensors
    assert "blk.3.attn_norm.weight" in made.tensors


def test_donors_must_have_the_same_widths_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    theirs = tiny(tmp_path / "b", "llama", embedding_length=512, context_length=4)
    said = problems(tiny(tmp_path, "llama"), {"b": theirs}, layers="0,b:1")
    assert "llama.embedding_length is 256, but in b it is 512" in said
    assert "context_length" not in said
    assert "has the architecture qwen3moe, but the input has llama" in problems(
        tiny(tmp_path, "llama"), {"b": tiny(tmp_path, "qwen3moe")}, take=(("b", "router"), ("b", "gate_inp"))
    )
    trimmed = altered(tiny(tmp_path, "llama"), vocab="0-255")
    shorter = Path(trimmed.name).rename(tmp_path / "short.gguf")
    assert "tokenizer.ggml.tokens differs in b" in problems(tiny(tmp_path, "llama"), {"b": shorter}, layers="0,b:1")


def test_ids_by_layer_mean_the_layers_of_the_input(tmp_path: Path) -> None:
    source = tiny(tmp_path, "qwen3moe")
    ids = {0: range(0, 4), 1: range(1, 5), 2: range(2, 6)}
    made = altered(source, layers="2,0", experts=ids)
    old = gguftool.open_model(source).tensors
    for new, number in ((0, 2), (1, 0)):
        for name, axis in (("ffn_up_exps", 2), ("ffn_gate_inp", 1)):
            wanted = old[f"blk.{number}.{name}.weight"].take(axis, ids[number])
            assert made.tensors[f"blk.{new}.{name}.weight"].raw() == wanted.raw()
    assert own(made, "expert_count") == 4


def test_layers_without_ids_keep_all_experts_if_the_others_do(tmp_path: Path) -> None:
    source = tiny(tmp_path, "deepseek2")
    made = altered(source, experts={1: [4, 5, 6, 7, 0, 1, 2, 3]})
    old = gguftool.open_model(source).tensors
    assert (
        made.tensors["blk.1.exp_probs_b.bias"].raw()
        == old["blk.1.exp_probs_b.bias"].take(0, [4, 5, 6, 7, 0, 1, 2, 3]).raw()
    )
    assert made.tensors["blk.2.exp_probs_b.bias"].raw() == old["blk.2.exp_probs_b.bias"].raw()
    said = problems(source, experts={1: [0, 1, 4, 5], 2: [0, 1, 4, 5]})
    assert "no ids for layers 3" in said
    assert "--drop :mtp" in said


def test_experts_one_by_one_are_selected_and_numbered(tmp_path: Path) -> None:
    options = gguftool.OutputOptions(anyway=True)
    made = altered(tiny(tmp_path, "qwen3moe"), unfuse=("experts",), experts="5,2,2", output=options)
    old = gguftool.open_model(tmp_path / "qwen3moe.gguf").tensors["blk.1.ffn_up_exps.weight"]
    for number, expert in enumerate((5, 2, 2)):
        assert made.tensors[f"blk.1.ffn_up.{number}.weight"].raw() == old.take(2, [expert]).raw()
    assert "blk.1.ffn_up.3.weight" not in made.tensors


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        ("0-8", "--experts 0-8: there are 8, 0 to 7"),
        ({0: [0], 1: [0, 1], 2: [0]}, "layers would keep 1, 2 experts"),
        ({0: [9], 1: [0], 2: [0]}, "experts 9 are out of range"),
        ("0-2x", "is not part of a list"),
    ],
)
def test_lists_of_experts_that_cannot_be(tmp_path: Path, experts: Any, said: str) -> None:
    assert said in problems(tiny(tmp_path, "qwen3moe"), experts=experts)


def test_an_unknown_tensor_that_may_count_experts_stops_the_run(tmp_path: Path) -> None:
    source = tiny(tmp_path, "qwen3moe", b.tensor("blk.0.expert_magic.weight", "F32", (4, 8)))
    assert "'blk.0.expert_magic.weight': has a dimension of 8" in problems(source, experts="0-3")


def test_tokens_and_their_rows(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    made, old = altered(source, vocab=[0, 1, 2, 70, 50]), gguftool.open_model(source)
    assert made["tokenizer.ggml.tokens"] == [old["tokenizer.ggml.tokens"][number] for number in (0, 1, 2, 70, 50)]
    assert made.tensors["output.weight"].raw() == old.tensors["output.weight"].take(1, [0, 1, 2, 70, 50]).raw()
    more = altered(source, vocab="+3")
    assert more["tokenizer.ggml.tokens"][-3:] == ["[PAD288]", "[PAD289]", "[PAD290]"]
    assert more["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    assert more.tensors["token_embd.weight"].info.dims == (256, 291)


@pytest.mark.parametrize("vocab", ["+0", "+x", "+99999999999", "0-288", [288], "3-", "0,0,1,2"])
def test_vocabularies_that_cannot_be(tmp_path: Path, vocab: Any) -> None:
    assert problems(tiny(tmp_path, "llama"), vocab=vocab)


def test_the_head_of_a_draft_is_cut_with_a_list_of_its_tokens(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    plan = planned(source, set=(("general.architecture", "eagle3"),), output=gguftool.OutputOptions(anyway=True))
    write(plan)
    draft = (tmp_path / "out.gguf").rename(tmp_path / "draft.gguf")
    anyway = gguftool.OutputOptions(anyway=True)
    made = altered(draft, vocab="9,4,200", output=anyway)
    assert made.tensors["d2t"].numpy().tolist() == [9, 4, 200]
    old = gguftool.open_model(source).tensors["output.weight"]
    assert made.tensors["output.weight"].raw() == old.take(1, [9, 4, 200]).raw()
    assert made.tensors["token_embd.weight"].info.dims == (256, 288)
    again = altered(Path(made.name).rename(tmp_path / "cut.gguf"), vocab="200,9", output=anyway)
    assert again.tensors["d2t"].numpy().tolist() == [200, 9]
    assert again.tensors["output.weight"].raw() == old.take(1, [200, 9]).raw()
    assert "does not score token 5" in problems(tmp_path / "cut.gguf", vocab="5", output=anyway)


# --- fused forms -----------------------------------------------------------------------------------------------------


def test_only_what_has_one_type_is_fused(tmp_path: Path) -> None:
    other = b.tensor("blk.1.attn_v.weight", "Q6_K", (256, 64))
    plan = planned(tiny(tmp_path, "llama", other, drop="blk.1.attn_v"), fuse=("qkv",), engines=MAINLINE)
    assert "--fuse qkv leaves tensors unchanged, their types differ (Q4_K, Q6_K): blk.1.attn_qkv" in plan.remarks


def test_an_engine_that_does_not_read_the_form_refuses_it(tmp_path: Path) -> None:
    said = problems(tiny(tmp_path, "llama"), fuse=("qkv",))
    assert said.startswith("--fuse qkv: models of llama have no attn_qkv in ik_llama.cpp; --engine llama.cpp writes it")
    assert "nothing of that kind" in problems(tiny(tmp_path, "llama"), fuse=("gate_up",))


def test_linear_attention_is_not_unfused(tmp_path: Path) -> None:
    assert "nothing of that kind" in problems(tiny(tmp_path, "qwen35"), unfuse=("qkv",))


def test_layers_of_a_donor_are_fused_like_the_others(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    made = altered(source, {"b": gguftool.open_model(source)}, fuse=("qkv",), layers="0-,b:1", engines=MAINLINE)
    assert made.tensors["blk.4.attn_qkv.weight"].raw() == made.tensors["blk.1.attn_qkv.weight"].raw()


# --- all at once -----------------------------------------------------------------------------------------------------


def test_all_problems_are_one_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        planned(
            tiny(tmp_path, "llama"),
            take=(("d", ":mtp"), ("e", "x")),
            drop=(":mtp",),
            keep=("x",),
            rename=(("(", "x"),),
            fuse=("qkv", "foo"),
            unfuse=("qkv",),
            layers="9",
            experts="0",
            vocab="@no-such-file",
            set=(("new", "1"),),
            remove=("absent",),
            engines=("vllm",),
        )
    said = " ".join(caught.value.problems)
    for part in (
        *("--fuse foo", "--fuse qkv and --unfuse qkv exclude", "--drop and --keep exclude", "--drop :mtp exclude"),
        *("no engine is called vllm", "no input is labelled 'd'", "no input is labelled 'e'", "'x' matches no tensor"),
        *("is not a regular expression", "--layers 9", "counts no experts", "no-such-file", "no key 'absent'"),
    ):
        assert part in said
    assert [path.name for path in tmp_path.iterdir()] == ["llama.gguf"]


def test_every_change_of_metadata_is_a_remark(tmp_path: Path) -> None:
    plan = planned(
        tiny(tmp_path, "qwen3moe"),
        **{
            "layers": "0,2",
            "experts": "0-3",
            "vocab": "0-255",
            "set": (("a.b", "u32:1"),),
            "remove": ("general.name",),
        },
    )
    before = {kv.key: kv.raw for kv in gguftool.open_model(tmp_path / "qwen3moe.gguf").kvs}
    head = gguftool.parse(plan.outputs[0].head, plan.outputs[0].size)
    after = {kv.key: kv.raw for kv in head.kvs}
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert len(changed) > 6
    assert all(any(remark.startswith(f"{key}:") for remark in plan.remarks) for key in changed)


def test_a_set_is_written_and_altered(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    plan = plan_alter(
        source, Alteration(layers="1,0,2-", output=gguftool.OutputOptions(max_size=200_000)), tmp_path / "set"
    )
    write(plan)
    assert len(plan.outputs) > 3
    back = altered(plan.outputs[2].path, layers="1,0,2-")
    ours = gguftool.open_model(source).tensors
    assert {name: tensor.raw() for name, tensor in back.tensors.items()} == {
        name: tensor.raw() for name, tensor in ours.items()
    }


def test_many_names_cost_no_more_than_their_number(tmp_path: Path) -> None:
    layers = [b.tensor(f"blk.{layer}.attn_q.weight", "F32", (1,)) for layer in range(20_000)]
    path = tmp_path / "many.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), layers))
    said = problems(path, fuse=("qkv",), layers="0", drop=("attn_k",), rename=(("nothing", "x"),))
    assert "not all of attn_q, attn_k, attn_v exist: blk.0.attn_qkv" in said


HUGE = (1 << 32) - 1


@pytest.mark.parametrize(
    "operations", [{"experts": "!0"}, {"experts": "0-"}, {"experts": {0: [1]}}, {"experts": {9: [1]}}]
)
def test_a_count_of_experts_that_is_no_count_costs_nothing(tmp_path: Path, operations: dict[str, Any]) -> None:
    said = problems(tiny(tmp_path, "qwen3moe", expert_count=HUGE), **operations)
    assert "counts 4,294,967,295 experts" in said


@pytest.mark.parametrize(
    "operations", [{"layers": "!0"}, {"layers": "1-"}, {"drop": (":mtp",)}, {"take": (("d", ":mtp"),)}]
)
def test_a_count_of_layers_that_is_no_count_costs_nothing(tmp_path: Path, operations: dict[str, Any]) -> None:
    (tmp_path / "d").mkdir()
    donor = tiny(tmp_path / "d", "deepseek2")
    assert problems(tiny(tmp_path, "deepseek2", block_count=HUGE), {"d": donor}, **operations)


def test_a_count_of_heads_that_is_no_count_is_mended(tmp_path: Path) -> None:
    made = altered(tiny(tmp_path, "deepseek2", nextn_predict_layers=HUGE), drop=(":mtp",))
    assert (own(made, "block_count"), own(made, "nextn_predict_layers")) == (3, 0)
    assert not any(name.startswith("blk.3.") for name in made.tensors)


def test_ids_for_a_layer_that_the_metadata_does_not_count(tmp_path: Path) -> None:
    source = tiny(tmp_path, "qwen3moe", block_count=2)
    anyway = gguftool.OutputOptions(anyway=True)
    made = altered(source, experts={0: [1], 1: [2], 2: [3]}, output=anyway)
    assert {made.tensors[f"blk.{layer}.ffn_gate_inp.weight"].info.shape for layer in range(3)} == {(256,)}


def test_tokens_that_are_no_texts_are_not_counted(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    numbers = planned(source, set=(("x", "u32[]:[1, 2]"),))
    head = numbers.outputs[0].head.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.others")
    path = tmp_path / "numbers.gguf"
    path.write_bytes(head + source.read_bytes()[-(numbers.outputs[0].size - len(head)) :])
    assert "no list of tokenizer.ggml.tokens" in problems(path, vocab="0-3")


def test_an_input_is_never_an_output(tmp_path: Path) -> None:
    source = tiny(tmp_path, "llama")
    with pytest.raises(gguftool.ExecuteError):
        write(
            plan_alter(source, Alteration(drop=("output.weight",), output=gguftool.OutputOptions(anyway=True)), source)
        )
