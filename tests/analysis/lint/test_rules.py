"""Every lint rule: a file that it finds, and one, as near to that as may be, that it leaves alone."""

from __future__ import annotations

import hashlib
import random
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gguftool.analysis.lint import rules
from gguftool.analysis.lint.check import CheckOptions, check, codes
from gguftool.analysis.lint.doctor import DIAGNOSES
from gguftool.analysis.lint.file import spread
from gguftool.analysis.lint.layers import layers_in_words
from gguftool.analysis.lint.rules import RULES, CannotEvaluate, Finding, Hit, LintRule, Severity, judged, run_rules
from gguftool.analysis.lint.target import LintTarget
from gguftool.analysis.placement import parse_rules
from gguftool.format.engine_facts.engines import BOTH, IK, IK_LLAMA_CPP, LLAMA_CPP, MAINLINE
from gguftool.model.opening import open_model
from gguftool.render.format import Format
from gguftool.render.registry import render
from gguftool.storage.execute.executor import execute
from gguftool.surgery.tensors_map import plan_tensors_map
from tests.support import builders as b
from tests.support.check_models import LAYOUTS, Q4_K, Q8_0, File, T, model, shards
from tests.support.head_corpus import Head, deepseek2, llama, qwen3moe
from tests.support.paths import FIXTURES, REPO

ML, IKL = LLAMA_CPP, IK_LLAMA_CPP
HEADS = ("K", "V", "A")  # what sets of the builder lack: no engine loads them
EXPS = ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps")


def moe(up: int = Q8_0, gate: int = Q8_0, rows: int = 32, layer: int = 0) -> list[T]:
    types = zip(EXPS, (up, gate, Q8_0), strict=True)
    return [T(f"blk.{layer}.{role}.weight", (256, rows, 2), kind) for role, kind in types]


def mla(*roles: tuple[str, tuple[int, ...]], key_length: int = 0, kind: int = Q8_0) -> File:
    tensors = [T("blk.0.attn_kv_a_mqa.weight", (32, 32))]
    tensors += [T(f"blk.0.{role}.weight", dims, kind) for role, dims in roles]
    return model(*tensors, arch="deepseek2", kvs=[("deepseek2.attention.key_length_mla", "u32", key_length)])


def weight(dims: tuple[int, ...] = (256, 32), kind: int = Q8_0, **more: Any) -> T:
    return T("blk.0.ffn_down.weight", dims, kind, **more)


def nested(depth_type: int) -> bytes:
    inner = struct.pack("<IQ", 4, 1) + struct.pack("<I", 7)
    if depth_type == 9:
        return struct.pack("<IIQ", 9, 9, 1) + inner
    return struct.pack("<I", 9) + inner


NO_TOKENS = struct.pack("<IIQ", 9, 8, 0)
K_B, V_B, KV_B = ("attn_k_b", (128, 32, 2)), ("attn_v_b", (32, 128, 2)), ("attn_kv_b", (32, 64))
NVFP4 = 40
SCALE, BARE = T("blk.0.ffn_down.scale", (1,), 0), T("blk.0.ffn_up.weight", (256, 32), NVFP4)
LONG = "blk.0." + "x" * 51 + ".weight"  # 64 bytes
Q4K_WIDE = {"dims": (256, 32), "kind": Q4_K}


def _heads(code: str, bad: Head, good: Head | None = None, engines: tuple[str, ...] = BOTH) -> list[Any]:
    """Cases of a rule about heads, for each engine; by default a llama that both load has no fault."""
    return [(code, engine, bad, good or llama()) for engine in engines]


_NO_MERGES = llama().with_key("tokenizer.ggml.model", "str", "gpt2")
_OTHER_PRE = _NO_MERGES.with_key("tokenizer.ggml.merges", "str[]", ["a b"]).with_key("tokenizer.ggml.pre", "str", "foo")
_TEMPLATE = "tokenizer.chat_template"
_GOOD = "{% for m in x %}{%- generation -%}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
_FUSED = (
    llama().without_tensor(*(f"blk.0.attn_{one}.weight" for one in "qkv")).with_tensor("blk.0.attn_qkv.weight", 64, 128)
)
HEAD_CASES = [
    *_heads("K01", llama().with_key("general.architecture", "str", "llama99")),
    *_heads("K02", llama().with_key("llama.block_count", "i32", 2)),
    *_heads("K02", llama().with_key("llama.rope.freq_base", "u32", 10000)),
    *_heads("K02", llama().with_key("tokenizer.ggml.eos_token_id", "str", "</s>")),
    *_heads(
        "K02",
        llama().with_key("llama.attention.head_count_kv", "u64[]", [2, 2]),
        llama().with_key("llama.attention.head_count_kv", "i32[]", [2, 2]),
    ),
    *_heads("K03", llama().without_key("llama.attention.layer_norm_rms_epsilon")),
    *_heads("K03", llama().without_key("tokenizer.ggml.model")),
    *_heads(
        "K04",
        llama().with_key("llama.attention.head_count_kv", "u32[]", [2, 2, 2]),
        llama().with_key("llama.attention.head_count_kv", "u32[]", [2, 2]),
    ),
    *_heads("K05", qwen3moe().with_key("qwen3moe.expert_used_count", "u32", 5), qwen3moe()),
    *_heads("K05", qwen3moe().without_key("qwen3moe.expert_used_count"), qwen3moe()),
    *_heads(
        "K05",
        qwen3moe().with_key("qwen3moe.expert_group_count", "u32", 3),
        qwen3moe().with_key("qwen3moe.expert_group_count", "u32", 1),
        MAINLINE,
    ),
    *_heads("K06", llama().with_key("llama.rope.scaling.type", "str", "bogus")),
    *_heads("K06", llama().with_key("llama.rope.dimension_count", "u32", 8)),
    *_heads("K06", llama().with_key("llama.block_count", "u32", 0), engines=MAINLINE),
    *_heads("V01", llama().with_key("tokenizer.ggml.model", "str", "foo")),
    *_heads("V01", _OTHER_PRE, llama().with_key("tokenizer.ggml.pre", "str", "foo")),
    *_heads("V02", llama().with_key("tokenizer.ggml.token_type", "i32[]", [1, 2, 3])),
    *_heads("V02", llama().without_key("tokenizer.ggml.tokens"), llama().without_key("tokenizer.ggml.scores")),
    *_heads("V02", _NO_MERGES, _OTHER_PRE),
    *_heads("V03", llama().with_key("tokenizer.ggml.tokens", "str[]", ["a"] * 272)),
    *_heads("V04", llama().with_key("tokenizer.ggml.eos_token_id", "u32", 272)),
    *_heads(
        "V05",
        llama().with_key(_TEMPLATE, "str", "{% for m in messages %}{{ m.content }"),
        llama().with_key(_TEMPLATE, "str", _GOOD),
    ),
    *_heads("A01", llama().without_tensor("output_norm.weight"), llama().without_tensor("output.weight"), MAINLINE),
    *_heads("A01", llama().without_tensor("blk.1.ffn_up.weight")),
    *_heads("A01", llama().without_tensor("blk.0.attn_q.weight"), _FUSED, MAINLINE),
    *_heads("A02", llama().with_tensor("token_embd.weight", 64, 273)),
    *_heads("A02", llama().with_key("llama.embedding_length", "u32", 128)),
    *_heads("A02", llama().with_tensor("blk.1.attn_k.weight", 64, 64)),
    *_heads("A03", llama().with_tensor("blk.0.made_up.weight", 64)),
    *_heads("A03", llama().with_tensor("blk.2.attn_norm.weight", 64)),
    *_heads(
        "A03",
        llama().with_tensor("blk.0.attn_gate.scale", 1),
        llama().with_tensor("blk.0.attn_q.scale", 1),
        MAINLINE,
    ),
    *_heads("A03", _FUSED, engines=IK),
    *_heads("A04", deepseek2().with_key("deepseek2.nextn_predict_layers", "u32", 1), deepseek2(), MAINLINE),
]

# code, engine, a file with the problem, a file without
CASES = [
    *HEAD_CASES,
    ("F01", ML, model(weight(nbytes=8704, step=8672), T("blk.0.b.weight")), model(weight(), T("blk.0.b.weight"))),
    ("F02", IKL, model(weight(kind=144, nbytes=32 * 136), T("blk.0.b.weight")), model(weight(kind=144))),
    ("F03", ML, model(weight(step=8704 + 64), T("blk.0.b.weight")), model(weight(step=8704 + 64))),
    ("F04", ML, model(weight(step=0, nbytes=8704), T("blk.0.b.weight", (256, 32))), model(weight())),
    (
        "F05",
        ML,
        model(T("blk.0.a.weight", offset=1088 * 3), T("blk.0.b.weight", offset=1088 * 2)),
        model(T("blk.0.a.weight"), T("blk.0.b.weight")),
    ),
    ("F06", ML, model(T("blk.0.a.weight", (32, 31), step=1064), T("blk.0.b.weight")), model(weight())),
    (
        "F07",
        ML,
        model(T("blk.0.a.weight", (32, 31)), T("blk.0.b.weight"), padding=b"\x01"),
        model(T("blk.0.a.weight", (32, 31)), T("blk.0.b.weight")),
    ),
    (
        "F08",
        ML,
        model(alignment=4, kvs=[("general.alignment", "u32", 4)]),
        model(kvs=[("general.alignment", "u32", 32)]),
    ),
    ("F09", ML, model(kvs=[("a.b", "u32", 1), ("a.b", "u32", 2)]), model(kvs=[("a.b", "u32", 1), ("a.c", "u32", 2)])),
    ("F10", ML, model(kvs=[("gr\u00f6\u00dfe", "u32", 1)]), model(kvs=[("groesse", "u32", 1)])),
    ("F11", ML, model(kvs=[("a.flag", "bool", 2)]), model(kvs=[("a.flag", "bool", 1)])),
    ("F12", ML, model(kvs=[("a.text", "str", b"\xff\xfe")]), model(kvs=[("a.text", "str", "\u00fc")])),
    ("F13", ML, model(T("blk.0.\x1b[31m.weight")), model(T("blk.0.red.weight"))),
    ("F14", ML, model(weight(kind=77, nbytes=64)), model(weight())),
    ("F15", ML, model(arch=""), model()),
    ("F16", ML, model(order=">"), model()),
    ("F17", ML, model(tail=bytes(64)), model(tail=b"")),
    ("F18", ML, model(tail=model().bytes()), model(tail=b"GGUX" * 16)),
    ("F19", ML, model(weight((256, 256), fill=b"\0")), model(weight((256, 256)))),
    ("F27", ML, File(kvs=[("general.type", "str", "imatrix")]), model(kvs=[("general.type", "str", "model")])),
    ("H02", ML, model(kvs=[("general.file_type", "i32", 7)]), model(kvs=[("general.file_type", "u32", 7)])),
    (
        "H03",
        ML,
        model(weight(), kvs=[("general.file_type", "u32", 15)]),
        model(weight(), kvs=[("general.file_type", "u32", 7 + 1024)]),
    ),
    ("P01", ML, model(version=1), model(version=2)),
    ("P02", ML, model(kvs=[("", "u32", 1)]), model(kvs=[("a", "u32", 1)])),
    ("P03", ML, model(kvs=[("a.b", "raw", nested(9))]), model(kvs=[("a.b", "raw", nested(4))])),
    ("P04", ML, model(weight((32, 2, 2, 2, 1))), model(weight((32, 2, 2, 2)))),
    ("S08", ML, model(weight(step=8704 + 64), T("blk.0.b.weight")), model(weight(), T("blk.0.b.weight"))),
    (
        "S09",
        ML,
        model(alignment=64, kvs=[("general.alignment", "u32", 64)]),
        model(kvs=[("general.alignment", "u32", 32)]),
    ),
    ("S10", ML, model(T(LONG)), model(T(LONG[1:]))),
    ("S10", IKL, model(T(LONG)), model(T(LONG[1:]))),
    ("S11", ML, model(layers=3, filler=False), model(layers=3)),
    ("T01", ML, model(weight(kind=144)), model(weight(**Q4K_WIDE))),
    ("T02", IKL, model(weight(kind=34)), model(weight(kind=144))),
    ("T03", ML, model(weight(kind=9)), model(weight())),
    ("T04", ML, model(weight(kind=142, nbytes=2176), T("blk.0.b.weight")), model(weight(), T("blk.0.b.weight"))),
    (
        "T05",
        IKL,
        model(weight(kind=155, nbytes=32 * (128 + 8)), T("blk.0.b.weight")),
        model(weight(kind=155), T("blk.0.b.weight")),
    ),
    ("T06", ML, model(T("blk.0.attn_norm.weight", (32,), 1)), model(T("blk.0.attn_norm.weight", (32,), 0))),
    ("T06", IKL, model(weight((32, 32), 28)), model(weight((32, 32), 1))),
    ("S01", ML, model(weight((128, 32), Q4_K, nbytes=2304)), model(weight((512, 32), Q4_K))),
    ("S02", IKL, model(weight((96, 32), 151)), model(weight((256, 32), 151))),
    ("S03", IKL, model(weight((256, 6), 212)), model(weight((256, 8), 212))),
    ("S04", IKL, model(weight((256, 12), 151)), model(weight((256, 16), 151))),
    (
        "S05",
        IKL,
        model(embd=T("token_embd.weight", (256, 32), 212)),
        model(embd=T("token_embd.weight", (256, 32), Q4_K)),
    ),
    (
        "S06",
        IKL,
        model(embd=T("token_embd.weight", (96, 32), 151), output=False),
        model(embd=T("token_embd.weight", (96, 32), 151), output=True),
    ),
    ("S07", IKL, model(weight((32, 0))), model(weight((32, 1)))),
    ("B01", IKL, model(weight((64, 32), 134)), model(weight((64, 32), 134), arch="bitnet-b1.58")),
    ("B02", IKL, model(weight((32, 32), 36, nbytes=288)), model(weight())),
    ("B03", IKL, model(weight((64, 32), 230)), model(weight((64, 32), 1))),
    (
        "B04",
        IKL,
        model(weight((256, 32), 398, step=32 * 264), T("blk.0.b.weight")),
        model(weight((256, 32), 398), T("blk.0.b.weight")),
    ),
    ("Q01", ML, model(weight(kind=16)), model(weight(kind=16), kvs=[("quantize.imatrix.file", "str", "i.dat")])),
    ("M01", IKL, model(*moe(gate=Q4_K)), model(*moe())),
    (
        "M02",
        IKL,
        model(T("blk.0.ffn_up.weight", (256, 32)), T("blk.0.ffn_gate.weight", (256, 32), Q4_K)),
        model(T("blk.0.ffn_up.weight", (256, 32)), T("blk.0.ffn_gate.weight", (256, 32))),
    ),
    ("M03", IKL, model(*moe(gate=Q4_K)), model(*moe())),
    (
        "M04",
        IKL,
        model(T("blk.0.attn_q.weight"), T("blk.0.attn_k.weight"), T("blk.0.attn_v.weight", type=1)),
        model(T("blk.0.attn_q.weight"), T("blk.0.attn_k.weight"), T("blk.0.attn_v.weight")),
    ),
    (
        "M05",
        ML,
        model(*moe(), T("blk.0.ffn_gate_up_exps.weight", (256, 64, 2))),
        model(T("blk.0.ffn_gate_up_exps.weight")),
    ),
    ("M06", IKL, model(*moe(rows=24)), model(*moe(rows=48))),
    ("M07", ML, model(weight(), SCALE), model(weight(kind=NVFP4), SCALE)),
    ("M07", ML, model(weight(), SCALE), model(weight(), SCALE, arch="bitnet")),
    ("M07", IKL, model(weight(), SCALE), model(weight(), T("blk.0.ffn_down.scale", (32,), 0))),
    ("M08", ML, model(weight(kind=NVFP4), SCALE, BARE), model(weight(kind=NVFP4), BARE)),
    ("M08", ML, model(weight(kind=NVFP4), SCALE, BARE), model(weight(kind=NVFP4), SCALE)),
    ("M09", ML, model(SCALE), model(weight(), SCALE)),
    ("G03", IKL, model(*moe(up=29, gate=29)), model(weight(kind=29))),
    ("D01", ML, mla(("attn_k_b", (96, 32, 2)), kind=151), mla(K_B)),
    ("D02", ML, mla(K_B, key_length=192), mla(K_B, V_B, key_length=192)),
    ("D02", ML, mla(K_B, V_B, KV_B, key_length=192), mla(KV_B)),
    ("D02", ML, mla(("attn_k_b", (128, 64)), V_B, key_length=192), mla(K_B, V_B, key_length=192)),
    ("D02", ML, mla(K_B, V_B), mla(KV_B)),
    ("D03", IKL, mla(K_B, V_B, KV_B), mla(("attn_k_b", (128, 64)), KV_B)),
    ("D04", IKL, mla(KV_B), mla(K_B, V_B)),
]


def found(path: Path | str, engine: str = ML, **options: Any) -> tuple[Finding, ...]:
    report = check(str(path), CheckOptions(engines=(engine,), **options))
    assert report.diagnoses == ()
    return report.findings


def hits(path: Path | str, code: str, engine: str = ML, **options: Any) -> list[Finding]:
    """Findings of a code that say a rule is broken: not those that say that it could not be evaluated."""
    return [f for f in found(path, engine, **options) if f.code == code and "could not be evaluated" not in f.message]


def written(tmp_path: Path, file: File | Head, name: str = "m.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(file.bytes())
    return path


@pytest.mark.parametrize(("code", "engine", "bad", "good"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_a_rule_finds_its_problem_and_leaves_others_alone(
    tmp_path: Path, code: str, engine: str, bad: File | Head, good: File | Head
) -> None:
    assert hits(written(tmp_path, bad, "bad.gguf"), code, engine)
    assert not [f for f in found(written(tmp_path, good, "good.gguf"), engine) if f.code == code]


def test_a_model_without_faults_has_no_findings(tmp_path: Path) -> None:
    for engine in BOTH:
        whole = model(*moe()[:2], embd=T("token_embd.weight", (256, 32)), output=False, whole=True)
        whole.kvs.append(("general.file_type", "u32", 0))
        assert found(written(tmp_path, whole), engine) == ()


def _break(paths: list[Path], index: int, keys: list[tuple[Any, ...]]) -> None:
    name = "token_embd.weight" if index == 1 else f"blk.{index - 2}.ffn_down.weight"
    paths[index].write_bytes(File(tensors=[T(name)] if index else [], kvs=keys).bytes())


def _keys(no: int, count: int = 3, total: int = 2, kind: str = "u16") -> list[tuple[Any, ...]]:
    return [("split.no", kind, no), ("split.count", "u16", count), ("split.tensors.count", "i32", total)]


SET_CASES = {
    "F20": lambda paths: paths[1].unlink(),
    "F21": lambda paths: [paths[0].unlink(), paths[2].unlink()],
    "F22": lambda paths: _break(paths, 1, _keys(2)),
    "F23": lambda paths: _break(paths, 2, _keys(2, total=7)),
    "F24": lambda paths: paths[2].write_bytes(File(tensors=[T("token_embd.weight")], kvs=_keys(2)).bytes()),
    "F25": lambda paths: paths[2].write_bytes(
        File(tensors=[T("blk.0.ffn_down.weight")], kvs=_keys(2), order=">").bytes()
    ),
    "H01": lambda paths: _break(paths, 2, [("split.no", "u32", 2)]),
}


@pytest.mark.parametrize("code", SET_CASES)
def test_a_rule_about_sets(tmp_path: Path, code: str) -> None:
    paths = shards(tmp_path)
    assert code not in {f.code for f in found(tmp_path)}
    SET_CASES[code](paths)
    assert hits(next(path for path in paths if path.exists()), code)


def test_an_intact_set_has_no_findings(tmp_path: Path) -> None:
    shards(tmp_path, 5)
    assert [found(tmp_path, engine, ignore=HEADS) for engine in BOTH] == [(), ()]


def test_shard_1_without_its_keys(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    paths[0].write_bytes(File(kvs=[*model().kvs, ("split.no", "u32", 0)]).bytes())
    said = " ".join(f.message for f in hits(tmp_path, "H01", IKL))
    assert "split.no is UINT32" in said
    assert "split.count is absent" in said
    assert "split.tensors.count is absent" in said


def test_a_renamed_shard(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    moved = tmp_path / "sub" / "renamed.gguf"
    moved.parent.mkdir()
    paths[1].rename(moved)
    assert hits(moved, "F26")
    assert not hits(shards(tmp_path, prefix="other")[0], "F26")


@pytest.mark.parametrize(("count", "severity"), [(62, None), (63, Severity.WARNING), (65, Severity.ERROR)])
def test_too_many_shards_for_ik(tmp_path: Path, count: int, severity: Severity | None) -> None:
    path = shards(tmp_path, count)[0]
    assert [f.severity for f in hits(path, "H01", IKL)] == ([severity] if severity is not None else [])
    assert hits(path, "H01", ML) == []


def test_several_incomplete_sets_are_said_to_be_so(tmp_path: Path) -> None:
    for prefix, kept in (("a", 0), ("b", 2)):
        for index, path in enumerate(shards(tmp_path, prefix=prefix)):
            if index != kept:
                path.unlink()
    assert "several sets" in hits(tmp_path, "F20")[0].message


def test_a_lone_shard_by_itself_is_not_called_incomplete(tmp_path: Path) -> None:
    path = shards(tmp_path)[1]
    codes_found = {f.code: f for f in found(path, this_file_only=True)}
    assert codes_found["F20"].severity is Severity.INFO
    assert "could not be evaluated" in codes_found["F20"].message
    assert codes_found["F21"].severity is Severity.INFO
    assert max(f.severity for f in codes_found.values()) is Severity.INFO


def test_an_up_gate_mix_is_named_by_layer(tmp_path: Path) -> None:
    tensors = [t for layer in range(5) for t in moe(gate=Q4_K if layer in {1, 3, 4} else Q8_0, layer=layer)]
    (finding,) = hits(written(tmp_path, model(*tensors, layers=5)), "M01", IKL)
    assert finding.where == "blk.1, blk.3-4 (3 layers)"
    assert "ffn_up_exps is Q8_0, ffn_gate_exps is Q4_K" in finding.message
    assert finding.tensors[:2] == ("blk.1.ffn_up_exps.weight", "blk.1.ffn_gate_exps.weight")


def test_an_up_gate_mix_in_one_layer_of_a_real_model(tmp_path: Path) -> None:
    data = bytearray((FIXTURES / "engines" / "tiny-qwen3moe-Q4_K.gguf").read_bytes())
    name = b"blk.1.ffn_gate_exps.weight"
    at = data.index(name) + len(name) + 4 + 3 * 8
    assert struct.unpack_from("<I", data, at) == (Q4_K,)
    struct.pack_into("<I", data, at, 41)  # Q1_0: smaller, so that the data stays within the file
    path = tmp_path / "mix.gguf"
    path.write_bytes(data)
    (finding,) = hits(path, "M01", IKL)
    assert (finding.where, finding.severity) == ("blk.1", Severity.WARNING)


@pytest.mark.parametrize("code", ["G01", "G02"])
def test_rules_of_places(tmp_path: Path, code: str) -> None:
    kind = 212 if code == "G01" else 29
    path = written(tmp_path, model(*moe(up=kind, gate=kind)))
    (undecided,) = [f for f in found(path, IKL) if f.code == code]
    assert undecided.severity is Severity.INFO
    assert "could not be evaluated" in undecided.message
    on_gpu = parse_rules(["exps=CUDA0"])
    (finding,) = hits(path, code, IKL, places=on_gpu)
    assert finding.tensors == ("blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_exps.weight")
    assert [f for f in found(path, IKL, places=parse_rules([".=CPU"])) if f.code == code] == []


def test_the_first_place_that_matches_counts(tmp_path: Path) -> None:
    path = written(tmp_path, model(*moe(up=212, gate=212)))
    hybrid = parse_rules(["exps=CPU", ".=CUDA0"])
    (finding,) = hits(path, "G01", IKL, places=hybrid)
    assert "stay on the CPU" in finding.message
    only_gate = parse_rules(["gate=CUDA0", "exps=CPU"])
    assert {f.tensors for f in hits(path, "G01", IKL, places=only_gate)} == {
        ("blk.0.ffn_gate_exps.weight",),
        ("blk.0.ffn_up_exps.weight",),
    }


def test_severities_that_depend_on_the_case(tmp_path: Path) -> None:
    on_avx512 = written(tmp_path, model(weight((256, 8), 208)))
    assert [f.severity for f in hits(on_avx512, "S04", IKL)] == [Severity.WARNING]
    twins = written(tmp_path, model(T(LONG + "a"), T(LONG + "b")))
    assert [f.severity for f in hits(twins, "S10", IKL)] == [Severity.ERROR]
    wrong_kind = written(tmp_path, model(kvs=[("general.alignment", "u64", 32)]))
    assert [f.severity for f in hits(wrong_kind, "S09")] == [Severity.ERROR]


def test_types_that_changed_are_undecided_not_passed(tmp_path: Path) -> None:
    (finding,) = [f for f in found(written(tmp_path, model(weight(kind=153))), IKL) if f.code == "T05"]
    assert finding.severity is Severity.INFO
    assert "could not be evaluated" in finding.message


# --- the machinery ---------------------------------------------------------------------------------------------------


def _target(tmp_path: Path, file: File | None = None) -> LintTarget:
    from gguftool.analysis.lint.target import target_of
    from gguftool.model.model import ModelFile
    from gguftool.model.opening import read_header
    from gguftool.storage.sources.locate import open_source

    source = open_source(str(written(tmp_path, file or model())))
    return target_of("m", [ModelFile(source=source, header=read_header(source), shard=None)])


def _rule(code: str, check_function: Callable[[LintTarget], Iterable[Hit]], engines: tuple[str, ...] = ()) -> LintRule:
    return LintRule(
        code=code, severity=Severity.WARNING, sentence="", way_out="x", engines=engines, check=check_function
    )


def test_a_broken_rule_is_an_error_and_the_others_still_run(tmp_path: Path) -> None:
    def broken(target: LintTarget) -> Iterator[Hit]:
        yield Hit(message="first")
        raise ZeroDivisionError("oh")

    def cannot(target: LintTarget) -> Iterable[Hit]:
        raise CannotEvaluate("no light")

    findings = run_rules(
        _target(tmp_path),
        BOTH,
        [_rule("X1", broken), _rule("X2", cannot), _rule("X3", lambda target: [Hit(message="seen")])],
    )
    assert [(f.code, f.severity) for f in findings] == [
        ("X1", Severity.ERROR),
        ("X3", Severity.WARNING),
        ("X2", Severity.INFO),
    ]
    assert "ZeroDivisionError: oh" in findings[0].message
    assert findings[2].message == "could not be evaluated: no light"


def test_a_file_that_goes_away_makes_rules_undecided(tmp_path: Path) -> None:
    target = _target(tmp_path, model(tail=bytes(64)))
    Path(target.files[0].source.name).unlink()
    (finding,) = run_rules(target, BOTH, [rule for rule in RULES if rule.code == "F17"])
    assert finding.severity is Severity.INFO
    assert finding.message.startswith("could not be evaluated: ")


def test_findings_that_say_the_same_are_one_and_many_are_cut(tmp_path: Path) -> None:
    alike = [Hit(message="m", tensors=(str(n),)) for n in range(3)]
    many = [Hit(message=f"m{n}", tensors=(str(n),)) for n in range(1000)]
    rules = [_rule("X1", lambda target: alike), _rule("X2", lambda target: many)]
    one, *rest = run_rules(_target(tmp_path), BOTH, rules)
    assert one.tensors == ("0", "1", "2")
    assert len(rest) == 101
    assert rest[-1].message == "900 more findings of this kind"
    assert len(rest[-1].tensors) == 900


def test_whatever_a_byte_is_changed_to_no_rule_breaks(tmp_path: Path) -> None:
    chance = random.Random(4)
    whole = model(*moe(gate=Q4_K), T("blk.1.attn_k_b.weight", (256, 16, 2), 398), layers=2).bytes()
    path, head = tmp_path / "m.gguf", whole.index(b"\x11" * 32)
    outcomes = set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            data[chance.randrange(head)] = chance.choice((0, 1, 31, 127, 255, chance.randrange(256)))
        path.write_bytes(data)
        report = check(str(path), CheckOptions(engines=BOTH))
        outcomes.add(report.readable)
        assert not [f for f in report.findings if "itself is broken" in f.message]
        assert all(line.isprintable() for line in render(report, Format.TEXT).split("\n"))
    assert outcomes == {True, False}


def _finding(code: str, severity: Severity, engines: tuple[str, ...] = ()) -> Finding:
    return Finding(code=code, severity=severity, message="m", where="w", engines=engines)


def test_weighing_without_an_engine() -> None:
    both_warn = _finding("A", Severity.WARNING, BOTH)
    ik_warn = _finding("B", Severity.WARNING, IK)
    weighed, able = judged([both_warn, ik_warn], BOTH)
    assert able == BOTH
    assert [(f.code, f.severity, f.severity_there) for f in weighed] == [
        ("A", Severity.WARNING, None),
        ("B", Severity.INFO, Severity.WARNING),
    ]
    weighed, able = judged([_finding("T", Severity.ERROR, MAINLINE), ik_warn], BOTH)
    assert able == IK
    assert [(f.code, f.severity) for f in weighed] == [("B", Severity.WARNING), ("T", Severity.INFO)]
    neither = (_finding("T", Severity.ERROR, MAINLINE), _finding("U", Severity.ERROR, IK))
    assert judged(neither, BOTH) == (neither, ())


def test_select_and_ignore_take_beginnings_of_codes(tmp_path: Path) -> None:
    path = str(written(tmp_path, model(kvs=[("a", "u32", 1), ("a", "u32", 1), ("", "u32", 1)], whole=True)))
    everything = {f.code for f in check(path, CheckOptions(engines=MAINLINE)).findings}
    assert everything == {"F09", "P02"}
    assert {f.code for f in check(path, CheckOptions(engines=MAINLINE, select=("F",))).findings} == {"F09"}
    assert {f.code for f in check(path, CheckOptions(engines=MAINLINE, ignore=("F0",))).findings} == {"P02"}


def test_spread_takes_both_ends() -> None:
    assert spread(list(range(100)), 3) == [0, 50, 99]
    assert spread([1, 2], 3) == [1, 2]


def test_layers_in_words() -> None:
    assert layers_in_words([4]) == "blk.4"
    assert layers_in_words([0, 1, 2, 7]) == "blk.0-2, blk.7 (4 layers)"


# --- documentation and real files ------------------------------------------------------------------------------------


def test_every_code_is_documented_and_nothing_else_is() -> None:
    text = (REPO / "docs" / "lint.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### ([A-Z][0-9]{2}): ", text, re.MULTILINE)
    assert sorted(sections) == sorted(set(sections))
    assert set(sections) == set(codes())
    for code, body in zip(sections, re.split(r"^### [A-Z][0-9]{2}: .*$", text, flags=re.MULTILINE)[1:], strict=True):
        for part in ("*What*", "*Causes*", "*Solution*"):
            assert part in body, (code, part)


def test_every_rule_has_a_case() -> None:
    tried = {case[0] for case in CASES} | set(SET_CASES) | {"F26", "F28", "F29", "G01", "G02"}
    assert tried == {rule.code for rule in RULES}
    assert not tried & set(DIAGNOSES)
    assert all(rule.sentence.endswith(".") for rule in RULES)


def _codes_of(ranges: str) -> set[str]:
    """Write out ranges of codes: F01-F03 T04 is F01, F02, F03, T04."""
    found = re.findall(r"([A-Z])([0-9]{2})(?:-[A-Z]([0-9]{2}))?", ranges)
    return {f"{letter}{n:02}" for letter, first, last in found for n in range(int(first), int(last or first) + 1)}


def test_the_table_of_codes_names_the_module_of_each_rule() -> None:
    table: dict[str, set[str]] = {}
    for ranges, module in re.findall(r"^    ((?:[A-Z][0-9]{2}\S* )+) +(\w+) ", rules.__doc__ or "", re.MULTILINE):
        table.setdefault(module, set()).update(_codes_of(ranges))
    registered: dict[str, set[str]] = {"doctor": set(DIAGNOSES), "loading": set(rules.ENGINE_CODES)}
    for each in RULES:
        registered.setdefault(each.check.__module__.rpartition(".")[2], set()).add(each.code)
    assert table == registered


MODELS = [f"tiny-llama-{kind}" for kind in ("BF16", "Q8_0", "Q6_K", "Q4_K", "IQ4_XS", "IQ4_KS", "IQ5_K")]
MODELS += [f"tiny-qwen3moe-{kind}" for kind in ("Q4_K", "IQ4_KS")]


@pytest.mark.parametrize("name", MODELS)
def test_real_models_are_free_of_errors_where_they_were_made(name: str) -> None:
    path = FIXTURES / "engines" / f"{name}.gguf"
    by_ik = name.endswith(("IQ4_KS", "IQ5_K"))
    assert [f for f in found(path, IKL if by_ik else ML) if f.severity is Severity.ERROR] == []
    if by_ik:
        (finding,) = [f for f in found(path, ML) if f.severity is Severity.ERROR]
        assert finding.code == "T01"
        assert "token_embd.weight" in finding.tensors
        assert "blk.1.attn_output.weight" in finding.tensors
        assert not any("norm" in tensor for tensor in finding.tensors)
    assert not check(str(path)).reaches(Severity.WARNING)  # some engine runs it, so nothing counts


@pytest.mark.parametrize("name", ["ik-IQ4_KS", "mainline-Q4_K"])
def test_real_sets(name: str) -> None:
    report = check(str(FIXTURES / "engines" / "sets" / name))
    assert (report.readable, report.files, report.tensors) == (True, 22, 21)
    assert not report.reaches(Severity.WARNING)


_NO_MODEL = {"A01", "S11"}  # all of them: a few tensors, and no model around them
ZOO = {
    ("zoo-ik", ML): {*_NO_MODEL, "T01", "T03"},
    ("zoo-ik", IKL): {*_NO_MODEL, "T03", "B01", "B03", "G01", "G02", "T05"},
    ("zoo-ml", ML): {*_NO_MODEL},
    ("zoo-ml", IKL): {*_NO_MODEL, "T02", "G01", "G02"},
}


@pytest.mark.parametrize(("name", "engine"), ZOO)
def test_the_zoo_has_exactly_these_codes(name: str, engine: str) -> None:
    findings = found(FIXTURES / "engines" / "zoo" / f"{name}.gguf", engine)
    assert {f.code for f in findings} == ZOO[name, engine]
    if engine == IKL and name == "zoo-ml":
        types = {f.message.split()[0] for f in findings if f.code == "T02"}
        assert types == {"TQ1_0", "TQ2_0", "NVFP4", "Q2_0"}


# --- hostile files ---------------------------------------------------------------------------------------------------

HOSTILE = ["\x1b[2J", "a\nb", "\u202egnp", "x" * 4096, "\x9b31m", b"\xff\xc3", "<script>", "|`*"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_never_raw(tmp_path: Path, name: str | bytes) -> None:
    raw = name if isinstance(name, bytes) else name.encode()
    tensors = [T(b"blk.0." + raw, (32, 6), 202), T(b"blk.1." + raw, (32, 0))]
    kvs = [(raw, "u32", 1), (raw, "u32", 1), ("general.file_type", "str", raw), ("general.type", "str", raw)]
    file = model(kvs=kvs, layers=3, filler=False)
    file.tensors += tensors
    text = render(check(str(written(tmp_path, file)), CheckOptions(engines=BOTH)), Format.TEXT)
    assert all(line.isprintable() for line in text.splitlines())
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    assert text.count("\n") == len(text.splitlines())
    assert max(map(len, text.splitlines())) < 2000


def test_tensor_names_that_are_not_utf8_are_not_sent_to_edit(tmp_path: Path) -> None:
    file = model()
    file.tensors.append(T(b"blk.0.\xff\xfe", (32, 6)))
    [hit] = hits(written(tmp_path, file), "F12")
    assert "edit does not rename tensors" in hit.way_out


def test_lengths_of_the_table_are_those_of_the_types() -> None:
    from gguftool.format.ggml import TYPES

    for number, layout in LAYOUTS.items():
        traits = TYPES[number]
        assert layout == (traits.block_size, traits.type_size, traits.row_meta_size)


def test_rules_are_registered_by_the_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", [])

    @rules.rule("X9", Severity.INFO, engines=IK)
    def looks(target: LintTarget) -> list[Hit]:
        """One sentence."""
        return []

    (rule,) = rules.RULES
    assert (rule.code, rule.sentence, rule.engines, rule.check) == ("X9", "One sentence.", IK, looks)


def _mapped(folder: Path) -> list[Path]:
    """Make a set with the map that `hash --map` writes beside it."""
    paths = shards(folder)
    opened = open_model(paths[0])
    sums = {file.source.name: hashlib.sha256(Path(file.source.name).read_bytes()).hexdigest() for file in opened.files}
    execute(plan_tensors_map(opened, sums, folder / "tensors.map"))
    return paths


def test_a_map_is_held_against_heads_and_with_data_against_hashes(tmp_path: Path) -> None:
    paths = _mapped(tmp_path)
    (undecided,) = found(tmp_path, ignore=HEADS)
    assert (undecided.code, undecided.severity) == ("F29", Severity.INFO)
    assert "could not be evaluated" in undecided.message
    assert found(tmp_path, read_data=True, ignore=HEADS) == ()
    data = bytearray(paths[1].read_bytes())
    data[-40] ^= 1
    paths[1].write_bytes(data)
    (finding,) = hits(tmp_path, "F29", read_data=True)
    assert finding.where == str(paths[1])
    assert not hits(tmp_path, "F28")


def test_a_map_of_other_tensors(tmp_path: Path) -> None:
    _mapped(tmp_path)
    path = tmp_path / "tensors.map"
    path.write_text(re.sub(r"dtype=\w+", "dtype=iq4_ks", path.read_text()))
    assert hits(tmp_path, "F28")
    path.write_text("nonsense\n")
    assert all("could not be evaluated" in f.message for f in hits(tmp_path, "F28"))


@pytest.mark.parametrize(
    ("extra", "alignment", "count"), [(0, 32, 0), (32, 32, 1), (32, 64, 0), (64, 64, 1), (16, 8, 0), (32, 8, 1)]
)
def test_a_gap_of_one_alignment_is_unexplained(extra: int, alignment: int, count: int, tmp_path: Path) -> None:
    """Padding is shorter than the alignment, or than 32, to which the engines' tools pad whatever the key says."""
    key = [("general.alignment", "u32", alignment)]
    made = model(weight(step=8704 + extra), T("blk.0.b.weight"), alignment=alignment, kvs=key)
    assert len(hits(written(tmp_path, made), "F03")) == count


@pytest.mark.parametrize("odd", ["m-00002-of-00003 (1).gguf", "x-00002-of-00003.gguf", "part two.gguf"])
def test_a_folder_and_a_shard_of_it_are_judged_alike(tmp_path: Path, odd: str) -> None:
    for name, data in b.shard_set("m", ((), b.llama_tensors()[:3], b.llama_tensors()[3:])).items():
        (tmp_path / (odd if "00002" in name else name)).write_bytes(data)
    found = [
        sorted((finding.code, finding.message) for finding in check(spec).findings)
        for spec in (tmp_path, tmp_path / "m-00001-of-00003.gguf", tmp_path / odd)
    ]
    assert found[0] == found[1] == found[2]
    assert [code for code, _ in found[0] if code in ("F15", "F20", "F26")] == ["F26"]


def test_a_later_shard_alone_is_not_asked_for_an_architecture(tmp_path: Path) -> None:
    files = b.shard_set("m", ((), b.llama_tensors()[:3], b.llama_tensors()[3:]))
    (tmp_path / "odd.gguf").write_bytes(files["m-00002-of-00003.gguf"])
    for only in (False, True):
        report = check(tmp_path / "odd.gguf", CheckOptions(this_file_only=only))
        assert "F15" not in {finding.code for finding in report.findings}


def arch(name: str) -> list[tuple[Any, ...]]:
    return [("general.architecture", "str", name)]


def clip(*kvs: tuple[Any, ...]) -> File:
    return File(
        tensors=[T("v.blk.0.attn_q.weight"), T("mm.0.weight")], kvs=[("general.architecture", "str", "clip"), *kvs]
    )


KINDS = {
    "vocabulary": (
        File(kvs=[*arch("llama"), ("tokenizer.ggml.tokens", "raw", NO_TOKENS)]),
        "vocabulary",
    ),
    "control vector": (
        File(tensors=[T("direction.1", (32,), 0)], kvs=[("general.architecture", "str", "controlvector")]),
        "--control-vector",
    ),
    "projector": (clip(("clip.projector_type", "str", "gemma3")), "gemma3"),
    "old projector": (clip(), "names no type"),
    "bare projector": (File(tensors=[T("v.blk.0.attn_q.weight"), T("mm.0.weight")]), "--mmproj"),
    "LoRA": (File(tensors=[T("blk.0.attn_q.weight.lora_a"), T("blk.0.attn_q.weight.lora_b")]), "--lora"),
    "stable-diffusion.cpp": (
        File(tensors=[T("model.diffusion_model.out.0.weight"), T("first_stage_model.decoder.conv_in.weight")]),
        "stable-diffusion.cpp",
    ),
    "ComfyUI": (
        File(tensors=[T("double_blocks.0.x.weight")], kvs=[("general.architecture", "str", "flux")]),
        "ComfyUI",
    ),
    "speech": (File(tensors=[T("kokoro.x.weight")], kvs=[("general.architecture", "str", "kokoro")]), "TTS.cpp"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files_are_named_and_not_asked_for_an_architecture(tmp_path: Path, kind: str) -> None:
    file, said = KINDS[kind]
    (tmp_path / "x.gguf").write_bytes(file.bytes())
    report = check(tmp_path / "x.gguf")
    (found,) = [finding for finding in report.findings if finding.code == "F27"]
    assert said in found.message
    assert not {"F15", "S11"} & {finding.code for finding in report.findings}


HOSTILE_KEYS = [
    ("llama.block_count", "f64", float("inf")),
    ("llama.block_count", "u32", 2**32 - 1),
    ("llama.block_count", "i64", -(2**63)),
    ("llama.attention.head_count", "u32", 0),
    ("llama.attention.head_count_kv", "u32[]", [2**32 - 1] * 100_000),
    ("llama.attention.head_count_kv", "str[]", ["a", "b"]),
    ("llama.embedding_length", "f32", float("nan")),
    ("llama.expert_count", "u32", 2**32 - 1),
    ("tokenizer.ggml.tokens", "u32[]", [1, 2]),
    ("tokenizer.ggml.tokens", "str", "a"),
    ("tokenizer.chat_template", "str", "{% if a %}" * 5000),
    ("tokenizer.chat_template", "str", "{{ " + "(" * 5000),
    ("tokenizer.chat_template", "str", "{{ " + "1" * 5000 + " }}"),
]


@pytest.mark.parametrize(("key", "kind", "value"), HOSTILE_KEYS, ids=range(len(HOSTILE_KEYS)))
def test_hostile_values_break_no_rule(tmp_path: Path, key: str, kind: str, value: Any) -> None:
    path = written(tmp_path, llama().with_key(key, kind, value))
    report = check(str(path), CheckOptions(engines=BOTH))
    assert not [finding for finding in report.findings if "itself is broken" in finding.message]
    assert report.findings
