"""What `alter` makes of quantized models says in real llama.cpp what it should.

Two judges: operations that only move weights must leave every log probability as it was; the others are done a second
time with NumPy on dequantized weights, and the altered file, dequantized, must predict what that model predicts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import gguftool as api
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.surgery.alter.alteration import Alteration
from gguftool.surgery.alter.plan import plan_alter
from tests.e2e.engine import SAME, STEP, Prediction, logprobs_in_batches
from tests.support import numpy_surgery as surgery
from tests.support.numpy_surgery import Surgery
from tests.support.tiny_models import (
    MODELS,
    TinyModel,
    deepseek2,
    eagle3,
    first_order,
    llama,
    quantization,
    qwen3moe,
    read,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Predict = Callable[..., list[Prediction]]
Make = Callable[..., Path]

NO_SYNC = api.Options(sync=False)
TYPES = {"q4_K": "q8_0", "iq4_xs": "q5_1"}  # of matrices with rows of whole blocks of 256: of those with narrower rows
ORDERS = {0: (3, 0, 7, 1, 6, 2, 5, 4), 1: (7, 6, 5, 4, 3, 2, 1, 0), 2: (0, 2, 1, 3, 4, 6, 5, 7)}
GROUPED = (2, 0, 3, 1, 7, 4, 6, 5)  # within groups of four
BY_LAYER = {1: GROUPED, 2: GROUPED[::-1][4:] + GROUPED[::-1][:4], 3: tuple(range(8))}


def quantize(source: Path, output: Path, types: Sequence[tuple[str, str]]) -> Path:
    recipe = api.parse_recipe("\n".join(f"^{re.escape(name)}$={kind}" for name, kind in types))
    options = api.QuantizeOptions(requantize=True)
    api.execute(api.plan_quantize(source, recipe, output, options), NO_SYNC)
    return output


def dequantize(path: Path) -> Path:
    """Write the model at `path` as F32 beside it, unless it is there."""
    output = path.with_name(f"f32-{path.name}")
    names = [(name, "f32") for name in api.open_model(path).tensors]
    return output if output.exists() else quantize(path, output, names)


def alter(path: Path, alteration: Alteration, output: Path, donors: Mapping[str, Path] | None = None) -> Path:
    opened = {label: api.open_model(donor) for label, donor in (donors or {}).items()}
    api.execute(plan_alter(api.open_model(path), alteration, output, donors=opened), NO_SYNC)
    return output


def mainline(**operations: object) -> Alteration:
    """An alteration for llama.cpp; ik_llama.cpp does not read all that it reads."""
    return Alteration(engines=(LLAMA_CPP,), **operations)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A tiny model quantized to a type, made once."""
    folder, made = tmp_path_factory.mktemp("quantized"), {}

    def make(name: str, wide: str = "q4_K", model: TinyModel | None = None) -> Path:
        if (name, wide) not in made:
            model = model or MODELS[name]()
            floats = model.write(folder / f"{name}-f32.gguf")
            types = quantization(model, wide, TYPES[wide])
            made[name, wide] = quantize(floats, folder / f"{name}-{wide}.gguf", types)
        return made[name, wide]

    return make


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
    "experts with exp_probs_b by layer": (
        "deepseek2",
        Alteration(experts=BY_LAYER),
        lambda model: surgery.experts(model, BY_LAYER),
    ),
    "qkv of llama": ("llama", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv of qwen3moe": ("qwen3moe", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv of gemma3": ("gemma3", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "qkv of qwen35": ("qwen35", mainline(fuse=("qkv",)), surgery.fuse_qkv),
    "gate_up of deepseek2": ("deepseek2", mainline(fuse=("gate_up",)), surgery.fuse_gate_up),
    "gate_up and experts": (
        "deepseek2",
        mainline(fuse=("gate_up",), experts=",".join(map(str, GROUPED))),
        lambda model: surgery.fuse_gate_up(surgery.experts(model, GROUPED)),
    ),
    "no MTP of deepseek2": ("deepseek2", Alteration(drop=(":mtp",)), surgery.drop_mtp),
    "no MTP of qwen35": ("qwen35", Alteration(drop=(":mtp",)), surgery.drop_mtp),
}


@pytest.mark.parametrize("wide", TYPES)
@pytest.mark.parametrize("case", SAME_MODEL)
def test_weights_that_only_move_leave_every_logprob(
    case: str, wide: str, quantized: Make, tmp_path: Path, predict: Predict
) -> None:
    name, alteration, oracle = SAME_MODEL[case]
    source = quantized(name, wide)
    altered = alter(source, alteration, tmp_path / "altered.gguf")
    before, after = predict(source, altered)
    assert before.distance(after) < SAME
    assert_weights(altered, oracle(read(source)))


@pytest.mark.parametrize("case", SAME_MODEL)
def test_they_leave_batches_in_another_release(case: str, quantized: Make, tmp_path: Path) -> None:
    """Many tokens at once, which other code computes than one."""
    name, alteration, _ = SAME_MODEL[case]
    source = quantized(name)
    altered = alter(source, alteration, tmp_path / "altered.gguf")
    before, after = logprobs_in_batches(source), logprobs_in_batches(altered)
    assert before.shape == (4 * 31, 288)
    assert abs(before - after).max() < 1.1 * STEP


def assert_weights(path: Path, expected: TinyModel) -> None:
    """Assert that a file has the tensors of `expected`, and their numbers to the last bit."""
    found = read(path)
    assert set(found.weights) == set(expected.weights)
    different = [
        name
        for name, array in found.weights.items()
        if array.shape != expected.weights[name].shape or array.tobytes() != expected.weights[name].tobytes()
    ]
    assert different == []


# --- MTP dropped and taken back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek2", "qwen35"])
def test_an_mtp_layer_taken_back_drafts_again(name: str, quantized: Make, tmp_path: Path, predict: Predict) -> None:
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


@pytest.mark.parametrize("name", ["deepseek2", "qwen35"])
def test_an_mtp_layer_of_another_type_is_grafted(name: str, quantized: Make, tmp_path: Path, predict: Predict) -> None:
    """Into a model that never had one, from a donor that is all there or a companion."""
    knowing = first_order(MODELS[name]())
    source = quantized(f"{name} without", "q4_K", surgery.drop_mtp(knowing))
    donor = quantized(f"{name} with", "iq4_xs", knowing)
    ends = ("token_embd.weight", "output.weight", "output_norm.weight")
    companion = alter(donor, Alteration(keep=(":mtp", *ends)), tmp_path / "companion.gguf")
    grafted = alter(source, Alteration(take=(("d", ":mtp"),)), tmp_path / "grafted.gguf", {"d": donor})
    other = alter(source, Alteration(take=(("d", ":mtp"),)), tmp_path / "other.gguf", {"d": companion})
    before, *after = predict(source, grafted, other)
    assert [before.distance(each) for each in after] == [0, 0]
    for drafting in (*predict(grafted, mtp=True), *predict(source, mtp=True, draft=companion)):
        assert drafting.text == before.text
        assert drafting.accepted > drafting.drafted * 0.5  # of a layer in a wrong place, none
    layer = {
        each: array
        for each, array in read(donor).weights.items()
        if surgery.layer_of(each) == surgery.trunk_layers(knowing)
    }
    assert_weights(grafted, knowing.with_weights({**read(source).weights, **layer}))


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
    "deepseek2: fewer tokens": (
        "deepseek2",
        Alteration(vocab="!97,200-"),
        lambda model: surgery.vocabulary(model, (*range(97), *range(98, 200))),
    ),
}


def assert_agrees(altered: Path, oracle: TinyModel, predict: Predict) -> Prediction:
    """Assert that `altered` runs, and predicts as `oracle` does when both are F32; return what the F32 predict."""
    assert_weights(altered, oracle)
    expected = oracle.write(altered.with_name("oracle.gguf"))
    found, wanted, _ = predict(dequantize(altered), expected, altered)
    assert found.distance(wanted) < SAME
    return found


@pytest.mark.parametrize("case", ANOTHER_MODEL)
def test_an_altered_model_is_the_one_that_numpy_makes(
    case: str, quantized: Make, tmp_path: Path, predict: Predict
) -> None:
    name, alteration, oracle = ANOTHER_MODEL[case]
    source = quantized(name)
    altered = alter(source, alteration, tmp_path / "altered.gguf")
    found = assert_agrees(altered, oracle(read(source)), predict)
    [before] = predict(dequantize(source))
    assert found.distance(before) > SAME


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_added(name: str, quantized: Make, tmp_path: Path, predict: Predict) -> None:
    source = quantized(name)
    altered = alter(source, Alteration(vocab="+16"), tmp_path / "altered.gguf")
    old, found = read(source), read(altered)
    names = found.kvs["tokenizer.ggml.tokens"].value.items
    assert len(set(names)) == len(names) == 304
    assert_agrees(altered, surgery.vocabulary(old, range(288), names[288:]), predict)


def test_layers_of_two_models_are_mixed(quantized: Make, tmp_path: Path, predict: Predict) -> None:
    first, second = quantized("llama"), quantized("other llama", "iq4_xs", llama(seed="other"))
    altered = alter(first, Alteration(layers="0,b:1-2,3"), tmp_path / "altered.gguf", {"b": second})
    assert_agrees(altered, surgery.with_layers_of(read(first), read(second), (1, 2)), predict)


def test_matrices_of_single_experts_are_joined(quantized: Make, tmp_path: Path, predict: Predict) -> None:
    apart = quantized("apart", "q4_K", surgery.split_experts(qwen3moe()))
    joined = alter(apart, Alteration(fuse=("experts",)), tmp_path / "joined.gguf")
    assert_agrees(joined, surgery.join_experts(read(apart)), predict)
    assert joined.read_bytes() == quantized("qwen3moe").read_bytes()


def test_an_output_that_is_the_embedding_is_dropped(quantized: Make, tmp_path: Path, predict: Predict) -> None:
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


# --- what would not compute the same ----------------------------------------------------------------------------------


def test_groups_that_do_not_divide_are_refused(quantized: Make, tmp_path: Path) -> None:
    source = quantized("four groups", "q4_K", deepseek2(groups=4))
    with pytest.raises(api.PlanError, match="group"):
        alter(source, Alteration(experts="0-5"), tmp_path / "altered.gguf")
    with pytest.raises(api.PlanError, match="group"):
        alter(quantized("deepseek2"), Alteration(experts="0-5"), tmp_path / "altered.gguf")
    assert list(tmp_path.iterdir()) == []


def test_gate_up_is_not_fused_for_an_engine_that_does_not_read_it(quantized: Make, tmp_path: Path) -> None:
    with pytest.raises(api.PlanError, match="gate_up"):
        alter(quantized("qwen3moe"), mainline(fuse=("gate_up",)), tmp_path / "altered.gguf")


def test_an_output_of_its_own_is_not_dropped(quantized: Make, tmp_path: Path) -> None:
    for what in (":tied", "output.weight"):
        with pytest.raises(api.PlanError, match="token_embd"):
            alter(quantized("llama"), Alteration(drop=(what,)), tmp_path / "altered.gguf")


def test_layers_out_of_phase_are_refused_for_an_engine_that_reads_no_list(quantized: Make, tmp_path: Path) -> None:
    with pytest.raises(api.PlanError, match="ik_llama"):
        alter(quantized("qwen35"), Alteration(layers="0-2,1-"), tmp_path / "altered.gguf")
