"""`check --load` with real engines: they say of a skeleton what they say of the whole file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguftool.analysis.lint.check import CheckOptions, check
from gguftool.engines import xllamacpp_child
from gguftool.engines.log import Log
from gguftool.format.header import Header, TensorInfo, parse, serialize
from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.record import replace
from tests.support.command import run_gguftool
from tests.support.engine_tools import tool as engine_tool
from tests.support.head_corpus import VERDICTS, corpus
from tests.support.huge_model import write_huge_model
from tests.support.paths import FIXTURES

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="engines are asked on Linux; run it there"),
]

_I16 = 25  # a type without kernels, as wide as BF16
TINY = FIXTURES / "engines" / "tiny-llama-Q4_K.gguf"
PROGRAMS = ("xllamacpp", "llama-completion", "llama-perplexity")


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    if request.param == "xllamacpp":
        pytest.importorskip("xllamacpp", reason="xllamacpp is not installed; pip install -e '.[test]'")
        return "xllamacpp"
    return str(engine_tool(request.param))


def report_of(model: Path, program: str, *options: object) -> dict[str, Any]:
    done = run_gguftool("check", model, "--select", "E", "--load", program, *options, "--json", timeout=120)
    return json.loads(done.stdout) if done.stdout else pytest.fail(done.stderr.decode())


@pytest.mark.parametrize("name", ["tiny-llama-Q4_K", "tiny-llama-BF16", "tiny-llama-IQ4_XS", "tiny-qwen3moe-Q4_K"])
def test_good_models_load(name: str, program: str) -> None:
    report = report_of(FIXTURES / "engines" / f"{name}.gguf", program)
    assert report["findings"] == []
    assert report["load"]["verdict"] == "loaded"


@pytest.mark.parametrize("name", PROGRAMS[:2])
def test_a_real_model_is_loaded_and_run_over_zeros(name: str, smollm2: Path) -> None:
    program = name if name == "xllamacpp" else str(engine_tool(name))
    report = report_of(smollm2, program, "--run", 2)
    assert (report["load"]["verdict"], report["findings"]) == ("ran", [])
    assert report["load"]["anonymous_bytes"] < 200 << 20


def test_a_type_of_the_other_engine_is_refused_and_the_rule_is_named(program: str) -> None:
    path = FIXTURES / "engines" / "tiny-llama-IQ4_KS.gguf"
    done = run_gguftool("check", path, "--engine", "llama.cpp", "--load", program)
    assert done.returncode == 1
    text = " ".join(done.stdout.decode().split())
    assert "E01 [llama.cpp]" in text
    assert "-> T01 explains it" in text
    assert "errors for llama.cpp" in text


def test_a_kernel_that_is_missing_shows_when_it_runs(tmp_path: Path) -> None:
    """Weights of integers: nothing but computing with them fails."""
    whole = (FIXTURES / "engines" / "tiny-llama-BF16.gguf").read_bytes()
    old = parse(whole, len(whole))
    path = tmp_path / "model.gguf"
    path.write_bytes(serialize(with_tensor("blk.0.attn_q.weight", type=_I16)(old)) + whole[old.data_offset :])
    program = str(engine_tool("llama-completion"))
    assert report_of(path, program)["load"]["verdict"] == "loaded"
    report = report_of(path, program, "--run", 1)
    assert [finding["code"] for finding in report["findings"]] == ["E02"]
    assert report["load"]["verdict"] == "crashed"


def test_a_model_of_452_gb_is_answered_from_its_heads(program: str, tmp_path: Path) -> None:
    first = write_huge_model(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 400e9
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, blocks_below(scratch))

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.monotonic()
    try:
        answer = run_gguftool(
            "check", first, "--select", "E", "--load", program, "--json", prefix=("env", f"TMPDIR={scratch}")
        )
    finally:
        done.set()
        thread.join()
    assert time.monotonic() - start < 20
    load = json.loads(answer.stdout)["load"]
    assert load["verdict"] == "accepted"
    assert load["anonymous_bytes"] < 500 << 20
    assert most < 100 << 20
    assert list(scratch.iterdir()) == []


def blocks_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


# --- broken heads: the same words for the skeleton as for the whole file ----------------------------------------------


def with_key(key: str, kind: ValueType, value: object) -> Callable[[Header], Header]:
    made = make_kv(key, kind, value)

    def change(header: Header) -> Header:
        kept = tuple(kv for kv in header.kvs if kv.key != key)
        return replace(header, kvs=(*kept, made))

    return change


def without_key(key: str) -> Callable[[Header], Header]:
    return lambda header: replace(header, kvs=tuple(kv for kv in header.kvs if kv.key != key))


def with_tensor(name: str, /, **fields: object) -> Callable[[Header], Header]:
    def change(info: TensorInfo) -> TensorInfo:
        return replace(info, **fields) if info.name == name else info

    return lambda header: replace(header, tensors=tuple(map(change, header.tensors)))


def with_shorter(key: str) -> Callable[[Header], Header]:
    def cut(kv: KV) -> KV:
        return make_kv(key, kv.type, kv.value()[:-3], element=kv.element_type) if kv.key == key else kv

    return lambda header: replace(header, kvs=tuple(map(cut, header.kvs)))


U32, TEXT = ValueType.UINT32, ValueType.STRING
BROKEN = {
    "unchanged": lambda header: header,
    "architecture": with_key("general.architecture", TEXT, "llama9"),
    "no architecture": without_key("general.architecture"),
    "no block_count": without_key("llama.block_count"),
    "no context_length": without_key("llama.context_length"),
    "no head_count": without_key("llama.attention.head_count"),
    "no epsilon": without_key("llama.attention.layer_norm_rms_epsilon"),
    "layers": with_key("llama.block_count", U32, 9),
    "heads": with_key("llama.attention.head_count", U32, 0),
    "width": with_key("llama.embedding_length", U32, 64),
    "file type": with_key("general.file_type", TEXT, "15"),
    "alignment": with_key("general.alignment", ValueType.UINT64, 32),
    "tokenizer": with_key("tokenizer.ggml.model", TEXT, "none at all"),
    "no tokens": without_key("tokenizer.ggml.tokens"),
    "tokens": with_shorter("tokenizer.ggml.tokens"),
    "scores": with_shorter("tokenizer.ggml.scores"),
    "name": with_tensor("blk.0.attn_q.weight", name="blx.0.attn_q.weight"),
    "no norm": with_tensor("output_norm.weight", name="other_norm.weight"),
    "type": with_tensor("blk.0.attn_q.weight", type=99),
    "offset": with_tensor("blk.1.attn_q.weight", offset=32),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", PROGRAMS[:2])
def test_the_verdict_on_a_skeleton_is_that_on_the_file(case: str, name: str, tmp_path: Path) -> None:
    program = name if name == "xllamacpp" else str(engine_tool(name))
    whole = TINY.read_bytes()
    old = parse(whole, len(whole))
    path = tmp_path / "model.gguf"
    path.write_bytes(serialize(BROKEN[case](old)) + whole[old.data_offset :])
    status, errors = load_whole(path)
    report = report_of(path, program)
    code = "" if status == 0 else "E01" if status > 0 else "E02"
    assert [finding["code"] for finding in report["findings"]] == ([code] if code else []), report["findings"]
    if errors and name == "xllamacpp":
        assert errors[0].replace(str(path), "") in report["findings"][0]["message"]


SOME = 25  # every so many of the 236 heads are asked about in the gate: 0.8 s for each
# Heads about which the words differ, with the reason.
OTHER_WORDS = {"llama: alignment u64": "the line that names the cause stands before the one that was recorded"}
STAMP = re.compile(r"^[0-9.]+ E ")


@pytest.mark.parametrize("step", [SOME, pytest.param(1, marks=pytest.mark.soak)])
def test_the_verdict_on_each_head_of_the_corpus_is_that_on_the_file(step: int, tmp_path: Path) -> None:
    """Whole files were loaded when the verdicts were recorded: loads, refuses or aborts, and in which words."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed; pip install -e '.[test]'")
    recorded = json.loads(VERDICTS.read_text(encoding="utf-8"))["verdicts"]
    path = tmp_path / "model.gguf"
    others = {}
    for name, head in list(corpus())[::step]:
        path.write_bytes(head.bytes())
        report = check(str(path), CheckOptions(select=("E",), load="xllamacpp"))
        assert report.load is not None
        wanted = recorded[name]
        verdict = "loaded" if wanted["loads"] else "crashed" if wanted["status"] < 0 else "refused"
        message = " ".join(finding.message for finding in report.findings)
        said = name in OTHER_WORDS or STAMP.sub("", wanted["said"]) in message
        if report.load.verdict != verdict or not said:
            others[name] = (report.load.verdict, message, wanted)
    assert others == {}


def load_whole(path: Path) -> tuple[int, tuple[str, ...]]:
    """Load the file itself in xllamacpp; return the exit status and the error lines."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed; pip install -e '.[test]'")
    done = subprocess.run(
        [sys.executable, xllamacpp_child.__file__, str(path), "0"],
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    log = Log()
    log.add(done.stdout)
    return done.returncode, log.errors()
