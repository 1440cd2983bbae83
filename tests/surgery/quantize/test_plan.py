"""Quantizing only what a recipe changes: the engines' own bytes, their rules, and bad input."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np  # noqa: TID253 - every test here computes
import pytest

from gguftool.engines.llama_quantize import LlamaQuantize
from gguftool.errors import GGUFToolError, PlanError, SourceError
from gguftool.format.dequantize import encode_floats
from gguftool.format.engine_facts.presets.names import find_preset
from gguftool.format.ggml import type_alias, type_name
from gguftool.format.imatrix import Imatrix, ImatrixEntry
from gguftool.format.kv import ValueType
from gguftool.format.pattern import literal
from gguftool.format.quantizers import best_quantizer
from gguftool.format.recipe import Recipe, make_rule
from gguftool.model.companions import open_imatrix
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.surgery.quantize.native_wheels import how_to_install, this_machine
from gguftool.surgery.quantize.options import QuantizeOptions, Weights
from gguftool.surgery.quantize.plan import TensorOrigin, decide, plan_decision, plan_quantize
from gguftool.surgery.quantize.preview import preview_quantize
from gguftool.surgery.quantize.quantized_source import QuantizedSource
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.mix_models import output_options
from tests.support.paths import FIXTURES, REPO
from tests.support.run_recorder import Told

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
WIDTH = 256


def recipe(**rules: str) -> Recipe:
    """EngineRules by pattern; a name of Python's cannot hold dots, so `_` stands for any character."""
    return Recipe(rules=tuple(make_rule(pattern.replace("_", "."), target) for pattern, target in rules.items()))


def everything(target: str) -> Recipe:
    return Recipe(rules=(make_rule(".*", target),))


def floats(*shape: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensor(name: str, values: np.ndarray[Any, Any], kind: int = F32) -> b.Tensor:
    data = encode_floats(values, {F32: "f32", F16: "f16", BF16: "bf16"}[kind])
    return b.Tensor(name, tuple(reversed(values.shape)), kind, data)


def llama(*more: b.Tensor, kvs: tuple[b.KV, ...] = ()) -> bytes:
    """A small float model with embeddings, an output, norms and one layer."""
    return b.gguf(
        b.llama_kvs(b.KV("general.file_type", b.U32, 0), *kvs),
        (
            tensor("token_embd.weight", floats(4, WIDTH)),
            tensor("blk.0.attn_q.weight", floats(8, WIDTH, seed=1)),
            tensor("blk.0.ffn_norm.weight", floats(WIDTH, seed=2)),
            *more,
            tensor("output.weight", floats(4, WIDTH, seed=4)),
        ),
    )


def opened(folder: Path, data: bytes, name: str = "model.gguf") -> Model:
    (folder / name).write_bytes(data)
    return open_model(folder / name)


def written(folder: Path, model: Model, rules: Recipe, *reuse: Model, **options: Any) -> Model:
    output = output_options(options)
    chosen = QuantizeOptions(reuse=reuse, output=output, **options)
    plan = plan_quantize(model, rules, folder / "out.gguf", chosen)
    execute(plan, Options(sync=False, force=True))
    return open_model(folder / "out.gguf")


def types_of(model: Model) -> dict[str, str]:
    return {name: type_alias(each.info.type) for name, each in model.tensors.items()}


def planned(model: Model, rules: Recipe, **options: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    tool = LlamaQuantize(path=Path("x"), identity="x")
    decision = decide(model, rules, QuantizeOptions(llama_quantize=tool, **options))
    return {step.tensor.info.name: type_alias(step.tensor.info.type) for step in decision.steps}, decision.remarks


def problems_of(model: Model, rules: Recipe, **options: Any) -> str:
    with pytest.raises(PlanError) as caught:
        planned(model, rules, **options)
    return str(caught.value)


# --- the engines' own bytes ---


def zoo_weights() -> Weights:
    return Weights(imatrix=open_imatrix(FIXTURES / "engines" / "zoo" / "zoo-f32-ml.gguf.imatrix.dat"), name="zoo.dat")


def zoo_rules(zoo: Model, *without: str) -> Recipe:
    wanted = {name: type_name(each.info.type) for name, each in zoo.tensors.items()}
    return Recipe(
        rules=tuple(make_rule(f"^{literal(name)}$", kind) for name, kind in wanted.items() if kind not in without)
    )


@pytest.mark.slow
def test_every_mainline_type_of_the_zoo_is_made_to_the_bit(tmp_path: Path) -> None:
    zoo = open_model(FIXTURES / "engines" / "zoo" / "zoo-ml.gguf")
    made = written(
        tmp_path,
        open_model(FIXTURES / "engines" / "zoo" / "zoo-f32-ml.gguf"),
        zoo_rules(zoo, "Q2_0"),
        weights=zoo_weights(),
    )
    same = {name for name, each in made.tensors.items() if each.extent.read() == zoo.tensors[name].extent.read()}
    others = [type_name(zoo.tensors[name].info.type) for name in made.tensors if name not in same]
    assert others == ["Q2_0"]
    assert len(same) == 27


def test_imatrix_keys_are_those_that_llama_quantize_writes(tmp_path: Path) -> None:
    zoo = open_model(FIXTURES / "engines" / "zoo" / "zoo-ml.gguf")
    weights = Weights(imatrix=zoo_weights().imatrix, name="zoo-f32-ml.gguf.imatrix.dat")
    source = open_model(FIXTURES / "engines" / "zoo" / "zoo-f32-ml.gguf")
    made = written(tmp_path, source, recipe(blk_10_="q4_K"), weights=weights)
    ours, theirs = (
        {kv.key: (kv.type, kv.value()) for kv in model.kvs if kv.key.startswith("quantize.")} for model in (made, zoo)
    )
    assert ours == theirs
    assert len(ours) == 4


def tiny_llama_floats() -> dict[str, np.ndarray[Any, Any]]:
    """The F32 weights from which all files of the small llama were made: normal numbers, in the order of the layers."""
    model = open_model(FIXTURES / "engines" / "tiny-llama-BF16.gguf")
    rng = np.random.default_rng(1)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    blocks = [f"blk.{layer}.{part}.weight" for layer in range(2) for part in parts]
    made = {}
    for name in ("token_embd.weight", "output.weight", *blocks):
        info = model.tensors[name].info
        made[name] = (rng.standard_normal(info.elements) * 0.08).astype(np.float32).reshape(-1, info.dims[0])
    return made


def tiny_llama_f32(folder: Path) -> Model:
    """The small llama as the F32 that the BF16 file beside it was rounded from, which is checked."""
    model, values = open_model(FIXTURES / "engines" / "tiny-llama-BF16.gguf"), tiny_llama_floats()
    tensors = []
    for name, each in model.tensors.items():
        data = each.extent.read()
        if name in values:
            assert encode_floats(values[name].ravel(), "bf16") == data
            data = encode_floats(values[name].ravel(), "f32")
        tensors.append(b.Tensor(name, each.info.dims, F32, data))
    return opened(folder, b.gguf(b.llama_kvs(), tensors), "f32.gguf")


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0", "IQ4_XS", "BF16"])
def test_the_small_llama_is_made_as_llama_quantize_made_it(tmp_path: Path, kind: str) -> None:
    theirs = open_model(FIXTURES / "engines" / f"tiny-llama-{kind}.gguf")
    made = written(tmp_path, tiny_llama_f32(tmp_path), everything(kind))
    assert types_of(made) == types_of(theirs)
    assert all(made.tensors[name].extent.read() == each.extent.read() for name, each in theirs.tensors.items())


@pytest.mark.parametrize("kind", [F16, BF16])
def test_half_precision_is_widened_before_it_is_quantized(tmp_path: Path, kind: int) -> None:
    values = floats(8, WIDTH)
    half = tensor("blk.0.attn_q.weight", values, kind)
    from_half = written(tmp_path, opened(tmp_path, b.gguf(b.llama_kvs(), [half])), everything("q4_K"))
    dtype = {F16: "<f2"}.get(kind)
    widened = (
        np.frombuffer(half.data, dtype).astype("f4")
        if dtype
        else (np.frombuffer(half.data, "<u2").astype("u4") << 16).view("f4")
    )
    whole = b.gguf(b.llama_kvs(), [tensor("blk.0.attn_q.weight", widened.reshape(values.shape))])
    first = from_half.tensors["blk.0.attn_q.weight"].extent.read()
    from_whole = written(tmp_path, opened(tmp_path, whole), everything("q4_K"))
    assert from_whole.tensors["blk.0.attn_q.weight"].extent.read() == first


def test_each_expert_has_its_own_weights(tmp_path: Path) -> None:
    experts, weights = floats(3, 40, WIDTH), np.random.default_rng(9).random((3, WIDTH)).astype(np.float32) + 0.1
    name = "blk.0.ffn_up_exps.weight"
    model = opened(tmp_path, b.gguf(b.llama_kvs(), [tensor(name, experts)]))
    entry = ImatrixEntry(name=name, sums=weights * np.float32(4), counts=np.full(3, 4, np.float32))
    given = Weights(imatrix=Imatrix(entries={name: entry}, digest="d"), name="x")
    made = written(tmp_path, model, everything("iq2_xs"), weights=given)
    import libgguf

    wanted = b"".join(
        libgguf.quantize_rows(each, 17, of_it).tobytes() for each, of_it in zip(experts, weights, strict=True)
    )
    assert made.tensors[name].extent.read() == wanted


# --- any part, any number of threads ---


def source_of(folder: Path, target: str, rows: int = 600, width: int = 1024) -> tuple[QuantizedSource, Path]:
    model = opened(folder, b.gguf(b.llama_kvs(), [tensor("blk.0.attn_q.weight", floats(rows, width))]))
    decision = decide(model, everything(target), QuantizeOptions())
    source = decision.steps[0].tensor.padded_extent.source
    assert isinstance(source, QuantizedSource)
    return source, folder / "model.gguf"


def test_any_range_is_the_same_bytes(tmp_path: Path) -> None:
    source, _ = source_of(tmp_path, "q5_K")
    whole = source.read_at(0, source.size)
    assert len(whole) == source.size == 600 * 4 * 176
    for offset, length in ((0, 1), (703, 2), (704, 704), (1000, 200_000), (source.size - 1, 1), (5, 0)):
        assert source.read_at(offset, length) == whole[offset : offset + length]


def test_the_source_says_what_it_depends_on(tmp_path: Path) -> None:
    first, path = source_of(tmp_path, "q4_K")
    other, _ = source_of(tmp_path, "q5_K")
    assert first.identity != other.identity
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed since"):
        first.check_unchanged()


@pytest.mark.slow
def test_threads_make_the_same_file(tmp_path: Path) -> None:
    _, path = source_of(tmp_path, "q4_K", rows=5000)
    plan = plan_quantize(open_model(path), everything("q4_K"), tmp_path / "out.gguf")
    made = []
    for jobs in (1, 2, 7):
        execute(plan, Options(sync=False, force=True, jobs=jobs))
        made.append((tmp_path / "out.gguf").read_bytes())
    assert made[0] == made[1] == made[2]


def test_an_interrupted_run_goes_on_in_the_middle_of_a_tensor(tmp_path: Path) -> None:
    _, path = source_of(tmp_path, "q8_0", rows=64)
    plan = plan_quantize(open_model(path), everything("q8_0"), tmp_path / "out.gguf")
    execute(plan, Options())
    wanted = (tmp_path / "out.gguf").read_bytes()
    (tmp_path / "out.gguf").unlink()

    class Stop(BaseException):
        pass

    done = 0

    def stop_half_way(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if done > len(wanted) // 2:
            raise Stop

    with pytest.raises(Stop):
        execute(plan, Options(checkpoint=5000, progress=stop_half_way, jobs=1))
    again = plan_quantize(open_model(path), everything("q8_0"), tmp_path / "out.gguf")
    told = Told()
    execute(again, told.options())
    assert (tmp_path / "out.gguf").read_bytes() == wanted
    assert any(note.startswith("resumed after") for note in told.notes)


# --- what is copied, reused, made ---


def test_only_what_changes_is_made(tmp_path: Path) -> None:
    model = opened(tmp_path, llama())
    made = written(tmp_path, model, recipe(attn_q="q8_0"))
    assert types_of(made) == {**types_of(model), "blk.0.attn_q.weight": "q8_0"}
    for name in model.tensors.keys() - {"blk.0.attn_q.weight"}:
        assert made.tensors[name].extent.read() == model.tensors[name].extent.read()


def test_metadata_is_true_for_what_was_made(tmp_path: Path) -> None:
    old = b.KV("quantize.imatrix.file", b.STR, "other.dat")
    made = written(tmp_path, opened(tmp_path, llama(kvs=(old,))), everything("q8_0"))
    said = {kv.key: kv.value() for kv in made.kvs}
    assert said["general.file_type"] == 7
    assert said["general.quantization_version"] == 2
    assert "quantize.imatrix.file" not in said  # nothing was made with that


def test_what_a_model_to_reuse_has_is_copied(tmp_path: Path) -> None:
    model = opened(tmp_path, llama())
    # Other bytes than quantizing would make, to tell them apart.
    other = b.Tensor("blk.0.attn_q.weight", (WIDTH, 8), Q8_0, b"\1" * (8 * 8 * 34))
    reused = opened(tmp_path, b.gguf(b.llama_kvs(), [other]), "reuse.gguf")
    decision = decide(model, everything("q8_0"), QuantizeOptions(reuse=(reused,)))
    origins = {step.tensor.info.name: step.origin for step in decision.steps}
    assert origins["blk.0.attn_q.weight"] is TensorOrigin.REUSED
    assert origins["token_embd.weight"] is TensorOrigin.QUANTIZED
    assert origins["blk.0.ffn_norm.weight"] is TensorOrigin.COPIED
    made = written(tmp_path, model, everything("q8_0"), reused)
    assert made.tensors["blk.0.attn_q.weight"].extent.read() == other.data


@pytest.mark.parametrize("other", [(WIDTH, 4), (WIDTH // 2, 16)])
def test_another_shape_is_not_reused(tmp_path: Path, other: tuple[int, int]) -> None:
    size = other[0] // 32 * 34 * other[1]
    reused = opened(
        tmp_path, b.gguf(b.llama_kvs(), [b.Tensor("blk.0.attn_q.weight", other, Q8_0, bytes(size))]), "reuse.gguf"
    )
    decision = decide(opened(tmp_path, llama()), recipe(attn_q="q8_0"), QuantizeOptions(reuse=(reused,)))
    assert TensorOrigin.REUSED not in {step.origin for step in decision.steps}


def test_a_model_to_reuse_must_be_the_same_one(tmp_path: Path) -> None:
    reused = opened(
        tmp_path, b.gguf(b.llama_kvs(layers=3), [b.tensor("blk.0.attn_q.weight", "Q8_0", (32, 1))]), "r.gguf"
    )
    with pytest.raises(PlanError, match=r"llama.block_count differs"):
        decide(opened(tmp_path, llama()), recipe(attn_q="q8_0"), QuantizeOptions(reuse=(reused,)))


def test_a_set_can_be_written(tmp_path: Path) -> None:
    plan = plan_quantize(
        opened(tmp_path, llama()),
        everything("q8_0"),
        tmp_path / "set",
        QuantizeOptions(output=OutputOptions(max_size=4096)),
    )
    execute(plan, Options(sync=False))
    made = open_model(plan.outputs[0].path)
    assert len(made.files) > 1
    assert set(types_of(made).values()) == {"q8_0", "f32"}


def test_quantized_sources_are_quantized_again_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "first.gguf"
    execute(
        plan_quantize(opened(tmp_path, llama()), everything("q8_0"), path, QuantizeOptions()),
        Options(sync=False),
    )
    first = open_model(path)
    with pytest.raises(PlanError, match=r"q8_0 here, and quantizing again loses.*--allow-requantize"):
        written(tmp_path, first, everything("q4_K"))
    made = written(tmp_path, first, everything("q4_K"), requantize=True)
    import libgguf

    stored = first.tensors["output.weight"].extent.read()
    values = libgguf.dequantize_rows(np.frombuffer(stored, np.uint8).reshape(4, -1), 8)
    assert made.tensors["output.weight"].extent.read() == libgguf.quantize_rows(values, 12).tobytes()


# --- the engines' rules ---


def test_rows_that_do_not_divide_fall_back_as_the_engine_does(tmp_path: Path) -> None:
    model = opened(tmp_path, b.gguf(b.llama_kvs(), [tensor("blk.0.attn_q.weight", floats(4, 96))]))
    for engine, wanted, written_as in (
        ("llama.cpp", "q5_K", "q5_1"),
        ("ik_llama.cpp", "q5_K", "q6_0"),
        ("llama.cpp", "q2_K", "q4_0"),
        ("ik_llama.cpp", "q2_K", "iq4_nl"),
        ("ik_llama.cpp", "iq4_k", "q5_0"),
    ):
        types, remarks = planned(model, recipe(attn_q=wanted), engine=engine)
        assert types["blk.0.attn_q.weight"] == written_as
        assert any("rows of 96 are not whole blocks" in remark and "attn_q" in remark for remark in remarks)
    assert "llama.cpp stops" in problems_of(model, recipe(attn_q="q1_0"))


def test_repacks_need_rows_that_divide_and_are_not_for_embeddings(tmp_path: Path) -> None:
    odd = tensor("blk.0.ffn_up.weight", floats(6, WIDTH))
    types, _ = planned(opened(tmp_path, llama(odd)), everything("q4_k_r4"), engine="ik_llama.cpp")
    assert types["blk.0.attn_q.weight"] == "q4_k_r4"
    assert types["blk.0.ffn_up.weight"] == "q4_K"
    assert types["token_embd.weight"] == "q4_K"
    assert types["output.weight"] == "q4_k_r4"


def test_norms_and_routers_stay(tmp_path: Path) -> None:
    router = tensor("blk.0.ffn_gate_inp.weight", floats(4, WIDTH))
    half_norm = tensor("blk.0.attn_norm.weight", floats(WIDTH), F16)
    model = opened(tmp_path, llama(router, half_norm))
    types, remarks = planned(model, everything("q8_0"))
    assert types["blk.0.ffn_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "f32"
    assert types["blk.0.attn_norm.weight"] == "f16"
    assert any("kept as f32, as llama.cpp does" in remark and "ffn_gate_inp" in remark for remark in remarks)
    made = written(tmp_path, model, Recipe(rules=(make_rule("norm", "f32"),)))
    assert types_of(made)["blk.0.attn_norm.weight"] == "f32"
    assert np.array_equal(
        np.frombuffer(made.tensors["blk.0.attn_norm.weight"].extent.read(), "<f4"),
        floats(WIDTH).astype("<f2").astype("<f4"),
    )


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_a_general_rule_is_a_rule_for_embeddings_and_output_too(tmp_path: Path, engine: str) -> None:
    types, _ = planned(opened(tmp_path, llama()), everything("q4_K"), engine=engine)
    assert types["output.weight"] == types["token_embd.weight"] == types["blk.0.attn_q.weight"] == "q4_K"


def test_a_preset_gives_the_output_its_own_type_and_the_file_its_own_file_type(tmp_path: Path) -> None:
    preset = find_preset("Q2_K_S", "llama.cpp")
    rules = recipe(attn_q="q8_0")
    made = written(tmp_path, opened(tmp_path, llama()), rules, preset=preset)
    types = types_of(made)
    assert types["output.weight"] == "q6_K"
    assert types["token_embd.weight"] == "q2_K"
    assert types["blk.0.attn_q.weight"] == "q8_0"
    numbers = {kv.key: kv.value() for kv in made.kvs}
    assert numbers["general.file_type"] == 21  # although most elements are Q8_0
    assert numbers["general.quantization_version"] == 2


def test_a_preset_takes_names_that_are_not_utf8(tmp_path: Path) -> None:
    hostile = tensor("blk.0.\udcff\udcfe.weight", floats(8, WIDTH))
    made = written(
        tmp_path, opened(tmp_path, llama(hostile)), Recipe(rules=()), preset=find_preset("Q8_0", "llama.cpp")
    )
    assert types_of(made)["blk.0.\udcff\udcfe.weight"] == "q8_0"


@pytest.mark.parametrize(
    ("name", "engine", "wanted"),
    [
        ("Q4_KM", "llama.cpp", "did you mean Q4_K_M"),
        ("xyz", "llama.cpp", "it offers"),
        ("NVFP4", "llama.cpp", "has no preset 'NVFP4'"),
    ],
)
def test_wrong_presets_are_refused_with_the_nearest(name: str, engine: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        find_preset(name, engine)


# --- entries that ik_llama.cpp takes in place of missing ones ---


def matrix_of(*names: str, value: float = 3.0) -> Weights:
    ramp = np.linspace(1, value, WIDTH, dtype=np.float32)[None, :]
    one = np.ones(1, dtype=np.float32)
    entries = {name: ImatrixEntry(name=name, sums=ramp * (n + 1) ** 2, counts=one) for n, name in enumerate(names)}
    return Weights(imatrix=Imatrix(entries=entries, digest="d"), name="im.dat")


@pytest.mark.parametrize(
    ("name", "entries", "taken"),
    [
        ("ffn_gate_exps", ("ffn_gate_up_exps", "ffn_up_exps"), "ffn_gate_up_exps"),
        ("ffn_gate_exps", ("ffn_up_exps",), "ffn_up_exps"),
        ("ffn_up_exps", ("ffn_gate_exps", "ffn_gate_up_exps"), "ffn_gate_up_exps"),
        ("ffn_gate_up_exps", ("ffn_up_exps",), "ffn_up_exps"),
        ("ffn_gate", ("ffn_up",), "ffn_up"),
        ("attn_v_b", ("attn_kv_b",), "attn_kv_b"),
        ("attn_kv_b", ("attn_v_b",), "attn_v_b"),
        ("ffn_up", ("ffn_gate",), None),
        ("ffn_gate_shexp", ("ffn_up_shexp",), None),
    ],
)
def test_ik_takes_the_entry_of_another_tensor(
    tmp_path: Path, name: str, entries: tuple[str, ...], taken: str | None
) -> None:
    name = f"blk.0.{name}.weight"
    weights = matrix_of("blk.0.attn_q.weight", *(f"blk.0.{each}.weight" for each in entries))
    model = opened(tmp_path, llama(tensor(name, floats(4, WIDTH, seed=9))))
    rules = Recipe(rules=(make_rule(literal(name), "q4_K"),))
    for engine in ("llama.cpp", "ik_llama.cpp"):
        decision = decide(model, rules, QuantizeOptions(weights=weights, engine=engine))
        step = decision.made[0]
        if engine == "ik_llama.cpp" and taken is not None:
            assert step.entry is not None
            assert step.entry.name == f"blk.0.{taken}.weight"
            said = f"no entry in the imatrix; uses that of {taken}, as ik_llama.cpp does: {name}"
            assert said in decision.remarks
        else:
            assert step.entry is None
            assert any("not in the imatrix, so quantized without it" in remark for remark in decision.remarks)


@pytest.mark.parametrize(("engine", "number"), [("llama.cpp", ValueType.UINT32), ("ik_llama.cpp", ValueType.INT32)])
def test_the_imatrix_is_recorded_in_the_engines_types(tmp_path: Path, engine: str, number: ValueType) -> None:
    weights = matrix_of("blk.0.attn_q.weight")
    imatrix = Imatrix(entries=weights.imatrix.entries, digest="d", datasets=("some text",), chunk_count=7)
    made = written(
        tmp_path,
        opened(tmp_path, llama()),
        recipe(attn_q="q4_K"),
        weights=Weights(imatrix=imatrix, name="x" * 200),
        engine=engine,
    )
    found = {kv.key: (kv.type, kv.value()) for kv in made.kvs if kv.key.startswith("quantize.imatrix.")}
    assert found == {
        "quantize.imatrix.file": (ValueType.STRING, "x" * 127),
        "quantize.imatrix.dataset": (ValueType.STRING, "some text"),
        "quantize.imatrix.entries_count": (number, 1),
        "quantize.imatrix.chunks_count": (number, 7),
    }


def test_types_of_the_other_engine_are_refused(tmp_path: Path) -> None:
    model = opened(tmp_path, llama())
    assert "llama.cpp has no iq4_ks; --engine ik_llama.cpp has" in problems_of(model, recipe(attn_q="iq4_ks"))
    assert "ik_llama.cpp has no tq2_0" in problems_of(model, recipe(attn_q="tq2_0"), engine="ik_llama.cpp")


def test_types_without_a_maker_say_who_has_one(tmp_path: Path) -> None:
    model = opened(tmp_path, llama())
    with pytest.raises(PlanError, match="xllamacpp does not make iq4_ks; --llama-quantize PATH drives one of ik_llama"):
        written(tmp_path, model, recipe(attn_q="iq4_ks"), engine="ik_llama.cpp")
    without = f"gguf does not make iq4_xs; a back end that makes it: {re.escape(how_to_install(this_machine()))}"
    with libgguf_missing(), pytest.raises(PlanError, match=f"[^b]{without}"):
        written(tmp_path, model, recipe(attn_q="iq4_xs"))


@contextmanager
def libgguf_missing() -> Iterator[None]:
    """As with neither the extra 'quantize' nor xllamacpp: their imports fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "libgguf", None)
        patch.setitem(sys.modules, "xllamacpp", None)
        best_quantizer.cache_clear()
        try:
            yield
        finally:
            best_quantizer.cache_clear()


def test_without_the_extra_simple_types_are_made_and_the_imatrix_is_said_to_be_idle(tmp_path: Path) -> None:
    model = opened(tmp_path, llama())
    entry = ImatrixEntry(
        name="blk.0.attn_q.weight", sums=np.ones((1, WIDTH), np.float32), counts=np.ones(1, np.float32)
    )
    given = Weights(imatrix=Imatrix(entries={entry.name: entry}, digest="d"), name="x")
    options = QuantizeOptions(weights=given)
    with libgguf_missing():
        plan = plan_quantize(model, recipe(attn_q="q4_0"), tmp_path / "out.gguf", options)
        assert any("gguf.quants ignores the imatrix" in remark for remark in plan.remarks)
        execute(plan, Options(sync=False))
    made = open_model(tmp_path / "out.gguf")
    assert not [kv.key for kv in made.kvs if kv.key.startswith("quantize.imatrix")]
    import libgguf

    assert made.tensors[entry.name].extent.read() == libgguf.quantize_rows(floats(8, WIDTH, seed=1), 2).tobytes()


# --- bad input ---


def quantize(folder: Path, data: bytes, *arguments: object) -> tuple[str, Path]:
    """Run the command on a model that is in the way somehow; return its error, having checked that nothing is left."""
    (folder / "in").mkdir(exist_ok=True)
    (folder / "out").mkdir()
    (folder / "in" / "m.gguf").write_bytes(data)
    done = run_gguftool("quantize", folder / "in" / "m.gguf", *arguments, "-o", folder / "out" / "o.gguf")
    assert done.returncode == 2, done.stderr
    assert not list((folder / "out").iterdir())
    return done.stderr.decode(), folder


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "NaN"), (np.inf, "an infinity"), (-np.inf, "an infinity")])
def test_numbers_that_are_none_are_named_with_their_row(tmp_path: Path, bad: float, said: str) -> None:
    values = floats(5000, WIDTH)
    values[4321, 17] = bad
    stderr, _ = quantize(tmp_path, llama(tensor("blk.0.ffn_up.weight", values)), "--tensor", "ffn=q4_K")
    assert f"(tensor 'blk.0.ffn_up.weight', row 4,321): {said} in column 17" in stderr


def test_numbers_that_the_type_cannot_hold_are_named(tmp_path: Path) -> None:
    values = floats(40, WIDTH)
    values[33, 3] = 3e38
    stderr, _ = quantize(tmp_path, llama(tensor("blk.0.ffn_up.weight", values)), "--tensor", "ffn=q4_0")
    assert "'blk.0.ffn_up.weight', row 33" in stderr
    assert "too large for Q4_0" in stderr


def test_large_numbers_that_the_type_holds_are_fine(tmp_path: Path) -> None:
    values = floats(2, WIDTH) * np.float32(1e5)
    model = opened(tmp_path, b.gguf(b.llama_kvs(), [tensor("blk.0.ffn_up.weight", values)]))
    made = written(tmp_path, model, everything("q8_0"))
    import libgguf

    assert made.tensors["blk.0.ffn_up.weight"].extent.read() == libgguf.quantize_rows(values, 8).tobytes()


def legacy(entries: dict[str, np.ndarray[Any, Any]]) -> bytes:
    data = len(entries).to_bytes(4, "little")
    for name, values in entries.items():
        data += len(name).to_bytes(4, "little") + name.encode() + (1).to_bytes(4, "little")
        data += values.size.to_bytes(4, "little") + values.astype("<f4").tobytes()
    return data


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["iq2_xxs", "iq2_xs", "iq1_m", "q4_K"])
@pytest.mark.parametrize(
    ("size", "weight", "said"),
    [
        (1e16, 1e8, "values of up to 3.6e+16 with weights of up to 1e+08"),
        (30, 1e36, "weights of up to 1e+36 in the imatrix are too large"),
    ],
)
def test_numbers_whose_sums_overflow_end_the_run_and_not_the_process(
    tmp_path: Path, kind: str, size: float, weight: float, said: str
) -> None:
    """libgguf aborts, or writes NaN: neither is left to it."""
    values = floats(40, WIDTH)
    values *= np.float32(3.6 * size if size > 100 else size) / np.abs(values).max()
    (tmp_path / "i.dat").write_bytes(legacy({"blk.0.ffn_up.weight": np.full(WIDTH, weight)}))
    model = llama(tensor("blk.0.ffn_up.weight", values))
    stderr, _ = quantize(tmp_path, model, "--tensor", f"ffn={kind}", "--imatrix", tmp_path / "i.dat")
    row = int(np.abs(values).max(axis=1).argmax())
    assert f"'blk.0.ffn_up.weight', row {row})" in stderr
    assert said in stderr


def test_weights_that_are_all_zero_are_said(tmp_path: Path) -> None:
    """The outcome is a tensor of zeros, which is llama-quantize's too."""
    entries = {"blk.0.attn_q.weight": np.zeros(WIDTH), "output.weight": np.ones(WIDTH)}
    (tmp_path / "i.dat").write_bytes(legacy(entries))
    (tmp_path / "m.gguf").write_bytes(llama())
    command = ("quantize", tmp_path / "m.gguf", "--tensor", "weight=q4_K", "--imatrix", tmp_path / "i.dat")
    done = run_gguftool(*command, "-o", tmp_path / "o.gguf")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.decode().splitlines() if "are all 0" in line]
    assert len(said) == 1
    assert said[0].endswith(": blk.0.attn_q.weight")
    data = open_model(tmp_path / "o.gguf").tensors["blk.0.attn_q.weight"].extent.read()
    import libgguf

    assert not libgguf.dequantize_rows(np.frombuffer(data, np.uint8), 12).any()


def test_a_truncated_imatrix_is_named(tmp_path: Path) -> None:
    whole = legacy({"blk.0.attn_q.weight": np.ones(WIDTH)})
    (tmp_path / "i.dat").write_bytes(whole[:-5])
    stderr, _ = quantize(tmp_path, llama(), "--tensor", ".*=q4_K", "--imatrix", tmp_path / "i.dat")
    assert "i.dat (entry 0, 'blk.0.attn_q.weight'" in one_error_line(stderr.encode())


@pytest.mark.parametrize(
    ("name", "width", "said"),
    [
        ("blk.0.attn_q.weight", WIDTH * 2, "belongs to another model: 'blk.0.attn_q.weight' has 512 values"),
        ("blk.9.attn_q.weight", WIDTH, "belongs to another model: it has blk.9.attn_q.weight"),
    ],
)
def test_an_imatrix_of_another_model_is_named(tmp_path: Path, name: str, width: int, said: str) -> None:
    (tmp_path / "i.dat").write_bytes(legacy({name: np.ones(width)}))
    stderr, _ = quantize(tmp_path, llama(), "--tensor", ".*=q4_K", "--imatrix", tmp_path / "i.dat")
    assert said in stderr


def test_types_that_need_an_imatrix_name_the_tensors(tmp_path: Path) -> None:
    model = opened(tmp_path, llama())
    assert "iq2_xs needs an imatrix; --imatrix FILE gives one: blk.0.attn_q" in problems_of(
        model, recipe(attn_q="iq2_xs")
    )
    assert "iq3_xxs needs an imatrix" in problems_of(model, recipe(attn_q="iq3_xxs"))
    types, _ = planned(model, recipe(attn_q="iq3_xxs"), engine="ik_llama.cpp")  # which does not ask for one
    assert types["blk.0.attn_q.weight"] == "iq3_xxs"
    # llama-quantize lets embeddings and output go without, but ggml itself does not for some.
    assert planned(model, Recipe(rules=(make_rule("^output", "iq2_s"),)))[0]["output.weight"] == "iq2_s"
    assert "needs an imatrix" in problems_of(model, Recipe(rules=(make_rule("^output", "iq1_s"),)))


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    rules = Recipe(rules=tuple(make_rule(*rule) for rule in (("nothing", "q4_K"), ("attn", "@label"), ("out", "q8_k"))))
    said = problems_of(opened(tmp_path, llama()), rules)
    for part in ("3 problems", "this rule matches no tensor", "@label", "not a type that can be made"):
        assert part in said


def test_sources_that_cannot_be_read_as_numbers_are_refused(tmp_path: Path) -> None:
    unknown = b.Tensor("blk.0.ffn_up.weight", (WIDTH, 2), 31, bytes(2 * 144))  # Q4_0_4_4
    said = problems_of(opened(tmp_path, llama(unknown)), recipe(ffn_up="q4_K"), requantize=True)
    assert "it is q4_0_4_4 here, which cannot be dequantized" in said


def test_a_big_endian_source_is_refused(tmp_path: Path) -> None:
    model = opened(tmp_path, b.gguf(b.llama_kvs(), [b.tensor("blk.0.ffn_up.weight", "F32", (32, 1))], order=">"))
    with pytest.raises(PlanError, match="big-endian"):
        plan_quantize(model, everything("q8_0"), tmp_path / "o.gguf")


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a preset such as Q4_K_M, --recipe FILE, or --tensor"),
        (("--tensor", "a=q4_K", "--engine", "vllm"), "--engine takes llama.cpp or ik_llama.cpp"),
        (("--tensor", "attn_q"), "has no '='"),
        (("--tensor", "attn_q=q4_k_m"), "there is no tensor type 'q4_k_m'"),
        (("--tensor", "attn_q=q4_K", "--llama-quantize", "/no/such/program"), "no such program"),
    ],
)
def test_bad_usage_is_explained(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    stderr, _ = quantize(tmp_path, llama(), *arguments)
    assert said in " ".join(stderr.split())


def test_a_pattern_that_is_a_name_means_that_tensor_alone(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(llama(tensor("blk.0.attn_output.weight", floats(4, WIDTH))))
    out = tmp_path / "o.gguf"
    done = run_gguftool("quantize", tmp_path / "m.gguf", "--tensor", "output.weight=q8_0", "-o", out)
    assert done.returncode == 0, done.stderr
    types = types_of(open_model(out))
    assert (types["output.weight"], types["blk.0.attn_output.weight"]) == ("q8_0", "f32")


def test_a_dry_run_says_what_comes_from_where(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(llama())
    (tmp_path / "q.recipe").write_text("attn_q=q4_K\noutput=q8_0\n")
    other = b.Tensor("output.weight", (WIDTH, 4), Q8_0, bytes(4 * 8 * 34))
    (tmp_path / "r.gguf").write_bytes(b.gguf(b.llama_kvs(), [other]))
    command = ("quantize", tmp_path / "m.gguf", "--recipe", tmp_path / "q.recipe", "--reuse", tmp_path / "r.gguf")
    done = run_gguftool(*command, "-o", tmp_path / "o.gguf", "--dry-run", "--json")
    said = json.loads(done.stdout)
    assert [share["tensors"] for share in (said["copied"][0], said["reused"][0], said["quantized"][0])] == [2, 1, 1]
    assert said["quantized"][0]["type"] == "q4_K"
    assert said["quantized"][0]["nbytes"] == 8 * 144
    assert said["seconds"] > 0
    # What is made is read as F32, and is neither copied nor shared.
    copied = said["copied"][0]["nbytes"]
    uses = {Path(use["name"]).name: use["nbytes"] for use in said["plan"]["uses"]}
    assert uses == {"m.gguf": copied + 8 * WIDTH * 4, "r.gguf": 8 * 4 * 34}
    assert said["plan"]["bytes_copied"] == copied + 8 * 4 * 34
    text = run_gguftool(*command, "-o", tmp_path / "o.gguf", "--dry-run").stdout.decode()
    assert "quantized to q4_K" in text
    assert "reused from" in text
    assert not (tmp_path / "o.gguf").exists()


def test_what_is_made_is_not_promised_to_be_shared(tmp_path: Path) -> None:
    model = opened(tmp_path, llama(tensor("blk.0.ffn_up.weight", floats(640, WIDTH))))
    options = QuantizeOptions(output=OutputOptions(alignment=4096))
    plan = plan_quantize(model, recipe(ffn_up="q8_0"), tmp_path / "o.gguf", options)
    kept = sum(each.nbytes for name, each in model.tensors.items() if name != "blk.0.ffn_up.weight")
    preview = plan.preview()
    assert preview.bytes_congruent <= kept
    assert preview.bytes_congruent_padded <= kept


def test_the_trial_of_a_dry_run_finds_damage_too(tmp_path: Path) -> None:
    values = floats(8, WIDTH)
    values[2, 2] = np.nan
    model = opened(tmp_path, b.gguf(b.llama_kvs(), [tensor("blk.0.attn_q.weight", values)]))
    options = QuantizeOptions()
    decision = decide(model, everything("q4_K"), options)
    with pytest.raises(GGUFToolError, match="row 2"):
        preview_quantize(decision, plan_decision(decision, tmp_path / "o.gguf", options))


@pytest.mark.parametrize("jobs", [1, 8])
def test_memory_follows_the_chunk_not_the_tensor(tmp_path: Path, jobs: int) -> None:
    """512 MiB of zeros in a sparse file become Q8_0 in a process that never holds more than a part of them."""
    shape = (4096, 32768)
    head = b.head(b.llama_kvs(), [b.Tensor("blk.0.ffn_up.weight", shape, F32)])
    with open(tmp_path / "m.gguf", "wb") as file:
        file.write(head)
        file.truncate(b.round_up(len(head), 32) + 4 * shape[0] * shape[1])
    script = (
        "import sys; from gguftool.cli.main import main\n"
        "try: main()\n"
        "finally: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    import subprocess
    import sys

    from tests.support.command import environment

    command = [sys.executable, "-c", script, "quantize", tmp_path / "m.gguf", "--tensor", ".*=q8_0", "--no-sync"]
    done = subprocess.run(
        [*map(str, command), "-o", str(tmp_path / "o.gguf"), "--jobs", str(jobs)],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (tmp_path / "o.gguf").stat().st_size > 32768 * 128 * 34, done.stderr
    peak = int(done.stderr.split()[-1]) << 10
    (tmp_path / "o.gguf").unlink()
    assert peak < 200 << 20


def test_interleaved_rows_are_quantized_again_in_any_range(tmp_path: Path) -> None:
    """Q4_K_R4 decodes by groups of four rows; ranges of the output need not start or end with one."""
    zoo = open_model(FIXTURES / "engines" / "zoo" / "zoo-ik.gguf")
    name = next(name for name, each in zoo.tensors.items() if type_name(each.info.type) == "Q4_K_R4")
    rule = Recipe(rules=(make_rule(f"^{literal(name)}$", "q8_0"),))
    decision = decide(zoo, rule, QuantizeOptions(requantize=True))
    source = next(step.tensor.padded_extent.source for step in decision.made)
    whole = source.read_at(0, source.size)
    row = source.size // 16
    assert [source.read_at(at * row, 3 * row) for at in range(13)] == [
        whole[at * row : (at + 3) * row] for at in range(13)
    ]
