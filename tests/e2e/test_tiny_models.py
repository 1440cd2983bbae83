"""The tiny models run in real llama.cpp, and mistakes of surgery show in what they predict.

No line of gguftool runs here.  The mistakes are those that load and compute something else: were they not seen, the
tests of `alter` would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np  # noqa: TID253 - models are arrays
import pytest

from tests.e2e.engine import SAME, EngineError, Prediction
from tests.support import builders as b
from tests.support import numpy_surgery as surgery
from tests.support.numpy_surgery import Surgery
from tests.support.tiny_drafts import eagle3, first_order
from tests.support.tiny_models import (
    MODELS,
    TinyModel,
    deepseek2,
    gemma3,
    llama,
    qwen3moe,
    read,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Predict = Callable[..., list[Prediction]]

SWAPPED = (5, 4, 7, 6, 1, 0, 2, 3)  # the groups of four swapped, too


def old_bias(model: TinyModel) -> TinyModel:
    """Experts in another order, but for `exp_probs_b`."""
    altered = surgery.experts(model, SWAPPED)
    old = {name: array for name, array in model.weights.items() if "exp_probs_b" in name}
    return altered.with_weights({**altered.weights, **old})


def old_router(model: TinyModel) -> TinyModel:
    altered = surgery.experts(model, SWAPPED)
    old = {name: array for name, array in model.weights.items() if "ffn_gate_inp" in name}
    return altered.with_weights({**altered.weights, **old})


def old_biases(model: TinyModel) -> TinyModel:
    altered = surgery.experts(model, SWAPPED)
    old = {name: array for name, array in model.weights.items() if name.endswith("_exps.bias")}
    return altered.with_weights({**altered.weights, **old})


def promised_mtp(model: TinyModel) -> TinyModel:
    """The tensors of MTP dropped, but still promised: llama.cpp skips the last layer of the trunk."""
    return surgery.drop_mtp(model).with_own("nextn_predict_layers", b.U32, 1)


def untied(model: TinyModel) -> TinyModel:
    return model.with_weights({name: array for name, array in model.weights.items() if name != "output.weight"})


def value_first(model: TinyModel) -> TinyModel:
    return surgery.fuse_qkv(model, ("attn_v", "attn_q", "attn_k"))


def up_first(model: TinyModel) -> TinyModel:
    return surgery.fuse_gate_up(model, ("ffn_up_exps", "ffn_gate_exps"))


MISTAKES: list[tuple[str, Surgery]] = [
    ("deepseek2", old_bias),
    ("deepseek2", old_router),
    ("qwen3moe", old_router),
    ("llama", value_first),
    ("gemma3", value_first),
    ("deepseek2", up_first),
    ("deepseek2", promised_mtp),
    ("qwen35", promised_mtp),
    ("llama", untied),
    ("gpt-oss", old_biases),
]

IDENTITIES: list[tuple[str, Surgery]] = [
    ("deepseek2", lambda model: surgery.experts(model, SWAPPED)),
    ("qwen3moe", lambda model: surgery.experts(model, SWAPPED)),
    ("llama", surgery.fuse_qkv),
    ("gemma3", surgery.fuse_qkv),
    ("deepseek2", surgery.fuse_gate_up),
    ("qwen35moe", surgery.fuse_gate_up),
    ("gpt-oss", surgery.fuse_qkv),
    ("deepseek2", surgery.drop_mtp),
    ("qwen35", surgery.drop_mtp),
]


def _pair(name: str, change: Surgery, folder: Path) -> tuple[Path, Path]:
    model = MODELS[name]()
    return model.write(folder / "model.gguf"), change(model).write(folder / "changed.gguf")


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{name}-{make.__name__}" for name, make in MISTAKES])
def test_a_mistake_loads_and_shows(name: str, mistake: Surgery, tmp_path: Path, predict: Predict) -> None:
    right, wrong = predict(*_pair(name, mistake, tmp_path))
    assert right.distance(wrong) > 0.01


@pytest.mark.parametrize(("name", "change"), IDENTITIES)
def test_the_same_done_right_shows_nothing(name: str, change: Surgery, tmp_path: Path, predict: Predict) -> None:
    before, after = predict(*_pair(name, change, tmp_path))
    assert before.distance(after) < SAME


@pytest.mark.parametrize("name", ["deepseek2", "qwen35", "qwen35moe"])
def test_mtp_layers_run(name: str, tmp_path: Path, predict: Predict) -> None:
    path = first_order(MODELS[name]()).write(tmp_path / "model.gguf")
    [plain], [drafting] = predict(path), predict(path, mtp=True)
    assert (plain.drafted, drafting.text) == (0, plain.text)
    assert drafting.accepted > drafting.drafted * 0.9


def test_a_draft_is_right(tmp_path: Path, predict: Predict) -> None:
    target, draft = first_order(llama()).write(tmp_path / "target.gguf"), eagle3().write(tmp_path / "draft.gguf")
    [plain], [drafting] = predict(target), predict(target, draft=draft)
    assert drafting.text == plain.text
    assert drafting.accepted > drafting.drafted * 0.9


def test_a_draft_head_with_its_list_in_another_order_shows(tmp_path: Path, predict: Predict) -> None:
    target, draft = first_order(llama()).write(tmp_path / "target.gguf"), eagle3()
    heads = []
    for name, listed in (("right", np.arange(288)[::-1]), ("wrong", np.arange(288))):
        rows = {"output.weight": draft.weights["output.weight"][::-1], "d2t": listed}
        head = draft.with_weights({**draft.weights, **rows})
        heads += predict(target, draft=head.write(tmp_path / f"{name}.gguf"))
    right, wrong = heads
    assert right.accepted > 5 * wrong.accepted


def test_windows_out_of_phase_show(tmp_path: Path, predict: Predict) -> None:
    model = surgery.layers(gemma3(), (0, 3, 4, 5, 6, 7))
    forgotten = {key: kv for key, kv in model.kvs.items() if "pattern" not in key}
    right, wrong = predict(
        model.write(tmp_path / "right.gguf"), replace(model, kvs=forgotten).write(tmp_path / "wrong.gguf")
    )
    assert right.distance(wrong) > 0.01


def test_every_part_of_a_model_shows(tmp_path: Path, predict: Predict) -> None:
    """Each layer and each token row changes what is predicted: none could be lost unseen."""
    model = llama()
    halved = [
        model.with_weights({**model.weights, name: array * np.float32(0.5)}).write(tmp_path / f"{number}.gguf")
        for number, (name, array) in enumerate(model.weights.items())
        if name.startswith("blk.") and "norm" not in name
    ]
    original, *others = predict(model.write(tmp_path / "model.gguf"), *halved)
    assert min(original.distance(other) for other in others) > SAME


@pytest.mark.parametrize("name", MODELS)
def test_files_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    path = model.write(tmp_path / "model.gguf")
    assert read(path).write(tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    assert {each: array.tolist() for each, array in read(path).weights.items()} == {
        each: array.tolist() for each, array in model.weights.items()
    }


def test_the_engine_says_which_model_it_refuses(tmp_path: Path, predict: Predict) -> None:
    good = qwen3moe().write(tmp_path / "good.gguf")
    refused = surgery.fuse_gate_up(qwen3moe()).write(tmp_path / "fused.gguf")
    with pytest.raises(EngineError, match=r"fused\.gguf: Failed"):  # why is in the log, which may be cut short
        predict(good, refused)
    aborting = surgery.experts(deepseek2(groups=4), range(6)).write(tmp_path / "groups.gguf")
    with pytest.raises(EngineError, match=r"groups\.gguf(?s:.*)n_expert % hparams\.n_expert_groups"):
        predict(good, aborting)
