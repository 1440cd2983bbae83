"""A misspelt word: the error names the one that it is like, whatever kind of word it is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from gguftool.cli.app import run
from gguftool.errors import GGUFToolError, did_you_mean
from tests.support.paths import REPO

DEMO = REPO / "fixtures" / "demo.gguf"
IMATRIX = REPO / "fixtures" / "demo.imatrix.dat"

CASES = {
    "mrege m.gguf": "merge",
    "recipe chek r": "check",
    "--show-completion bsh": "bash",
    "check DEMO --ignore H033": "H03",
    "check DEMO --select NN9": "N09",
    "check DEMO --fail-on eror": "error",
    "check DEMO --engine lama.cpp": "llama.cpp",
    "check DEMO --engine ik": "ik_llama.cpp",
    "dump DEMO --key general.nam": "general.name",
    "dump DEMO --sort siez": "size",
    "edit DEMO --remove general.nam -o out.gguf": "general.name",
    "edit DEMO --set general.nam=x -o out.gguf": "general.name",
    "report DEMO --by rolle": "role",
    "diff DEMO DEMO --data --by rolle": "role",
    "export DEMO --tensor blk.0.atn_q.weight -o out.safetensors": "blk.0.attn_q.weight",
    "export DEMO --tensor atn_q -o out.safetensors": "attn_q",
    "export DEMO --tensor attn_q --dtype bf61 -o out.safetensors": "bf16",
    "split DEMO out --naming thirus": "thireus",
    "split DEMO out --force-sizes gapp": "gap",
    "merge base=DEMO --recipe LABEL -o out.gguf": "base",
    "alter base=DEMO --take bsae:attn_q -o out.gguf": "base",
    "alter DEMO other=DEMO --layers othre:0 -o out.gguf": "other",
    "alter DEMO --fuse qvk -o out.gguf": "qkv",
    "alter DEMO --drop :mpt -o out.gguf": ":mtp",
    "alter DEMO --drop atn_q -o out.gguf": "attn_q",
    "quantize DEMO --tensor atn_q=q4_0 -o out.gguf": "attn_q",
    "plan DEMO --size 1M --types iq4_nll": "iq4_nl",
    "plan DEMO --size 1M --lock atn_q=q4_0": "attn_q",
    "plan DEMO --size 1M --fuse up_gate": "up-gate",
    "plan DEMO --device GPU=9MB:attn --device CPU=9MB --slow q4_0@GPUU=2": "GPU",
    "measure DEMO --errors --types iq4_nll -o out.jsonl": "iq4_nl",
    "measure DEMO --errors --types q4_0 --engine lama.cpp -o out.jsonl": "llama.cpp",
    "measure DEMO --errors --types q4_0 --tensors atn_q -o out.jsonl": "attn_q",
    "measure DEMO --text t --engine e --group rolle --types q4_0 -o out.jsonl": "role",
    "recipe convert LABEL --to recipee": "recipe",
    "imatrix convert IMATRIX --to gufg -o out": "gguf",
}


@pytest.mark.parametrize("line", CASES)
def test_the_error_names_what_was_meant(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "label.recipe").write_text(".=@bsae\n", encoding="utf-8")
    files = {"DEMO": str(DEMO), "IMATRIX": str(IMATRIX), "LABEL": "label.recipe"}
    words = shlex.split(line)
    for name, path in files.items():
        words = [word.replace(name, path) for word in words]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gguftool", *words])
    try:
        code, text = run(), capsys.readouterr().err
    except GGUFToolError as error:
        code, text = 2, str(error)
    assert code == 2
    assert f"did you mean '{CASES[line]}'?" in text.replace("Did", "did"), text
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "line", ["quantize DEMO Q4_KM -o out.gguf", "types q4_kk", "plan DEMO --device CPU=9M --kv-type f61 --ctx 9"]
)
def test_types_and_presets_name_several(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gguftool", *line.replace("DEMO", str(DEMO)).split()])
    with pytest.raises(GGUFToolError, match=r"did you mean Q4_K_M or |nearest: (q4_K|f64), "):
        run()


def test_a_beginning_counts_where_nothing_is_alike() -> None:
    assert did_you_mean("ik", ["llama.cpp", "ik_llama.cpp"]) == "; did you mean 'ik_llama.cpp'?"
    assert did_you_mean("i", ["ik_llama.cpp"]) == ""
    assert did_you_mean("zz", ["ik_llama.cpp"]) == ""
