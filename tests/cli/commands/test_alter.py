"""The commands `alter` and `imatrix alter`: what their arguments mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gguftool
from tests.support.command import run_gguftool
from tests.support.shuffled_models import ShuffledModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tiny in (("llama", "llama"), ("moe", "qwen3moe")):
        data = ShuffledModel(tiny, ("Q4_K", "Q8_0"), -1, "<").data()
        (tmp_path / f"{name}.gguf").write_bytes(data)
    return tmp_path


def test_the_order_of_options_changes_nothing(folder: Path) -> None:
    words = [
        ("--experts", "0-3"),
        ("--layers", "1,0"),
        ("--set", "a.b=u32:1"),
        ("--rename", "^output_norm=output_norm"),
    ]
    made = []
    for number, order in enumerate((words, words[::-1])):
        flat = [word for pair in order for word in pair]
        done = run_gguftool("alter", *flat, "moe.gguf", "-o", f"{number}.gguf", cwd=folder)
        assert done.returncode == 0, done.stderr
        made.append((folder / f"{number}.gguf").read_bytes())
    assert made[0] == made[1]


def test_a_script_is_the_command_line(folder: Path) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / "keep.json").write_text(json.dumps([0, 2, 4, 6]), encoding="utf-8")
    script = "experts @keep.json  # beside the script\nfuse gate_up\nengine ik_llama.cpp\n"
    (folder / "scripts" / "moe.alter").write_text(script, encoding="utf-8")
    done = run_gguftool("alter", "moe.gguf", "--script", "scripts/moe.alter", "-o", "a.gguf", cwd=folder)
    assert done.returncode == 0, done.stderr
    words = ("--experts", "0,2,4,6", "--fuse", "gate_up", "--engine", "ik_llama.cpp")
    assert run_gguftool("alter", "moe.gguf", *words, "-o", "b.gguf", cwd=folder).returncode == 0
    assert (folder / "a.gguf").read_bytes() == (folder / "b.gguf").read_bytes()


def test_files_that_are_read_are_never_outputs(folder: Path) -> None:
    (folder / "list.json").write_text("[0, 1]", encoding="utf-8")
    (folder / "s.alter").write_text("experts @list.json\n", encoding="utf-8")
    for output in ("list.json", "s.alter", "moe.gguf"):
        done = run_gguftool("alter", "moe.gguf", "--script", "s.alter", "-o", output, "--force", cwd=folder)
        assert done.returncode == 2
        assert b"an output cannot overwrite it" in done.stderr
    assert (folder / "list.json").read_text(encoding="utf-8") == "[0, 1]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["llama.gguf"], "nothing to change"),
        (["llama.gguf", "moe.gguf", "--drop", ":mtp"], "give LABEL=MODEL"),
        (["b=llama.gguf", "B=moe.gguf", "--layers", "b:0"], "several inputs are labelled b"),
        (["llama.gguf", "d=.", "--layers", "d:0"], "several inputs are labelled d"),
        (["llama.gguf", "--layers", "0", "--layers", "1"], "--layers is given 2 times"),
        (["llama.gguf", "--take", "x"], "is not of the form --take LABEL:WHAT"),
        (["llama.gguf", "--layers", "0", "--engine", "vllm"], "--engine takes"),
        (["llama.gguf", "--drop", ":all"], "':all' is not a group"),
        (["llama.gguf", "--script", "absent"], "absent"),
        (["llama.gguf", "--layers", "@absent"], "absent"),
    ],
)
def test_bad_usage_writes_nothing(folder: Path, arguments: list[str], said: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    done = run_gguftool("alter", *arguments, "-o", "out.gguf", cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_dry_run_shows_the_plan(folder: Path) -> None:
    done = run_gguftool("alter", "llama.gguf", "--layers", "0,0-", "--dry-run", "--json", "-o", "o.gguf", cwd=folder)
    assert "llama.block_count: 4 -> 5" in json.loads(done.stdout)["remarks"]
    assert not (folder / "o.gguf").exists()


def test_labels_name_donors_and_the_model(folder: Path) -> None:
    words = ("a=llama.gguf", "b=llama.gguf", "--layers", "a:1,b:0,2")
    assert run_gguftool("alter", *words, "-o", "o.gguf", cwd=folder).returncode == 0
    made = gguftool.open_model(folder / "o.gguf")
    old = gguftool.open_model(folder / "llama.gguf")
    for new, number in enumerate((1, 0, 2)):
        assert made.tensors[f"blk.{new}.attn_q.weight"].raw() == old.tensors[f"blk.{number}.attn_q.weight"].raw()


def test_an_imatrix_is_altered_by_the_script_of_its_model(folder: Path) -> None:
    (folder / "s.alter").write_text("layers 1\nset a.b=u32:1\nvocab 0-255\nengine llama.cpp\n", encoding="utf-8")
    source = Path("fixtures/demo.imatrix.dat").resolve()
    done = run_gguftool("imatrix", "alter", source, "--script", "s.alter", "-o", "i.dat", cwd=folder)
    assert done.returncode == 0, done.stderr
    made, old = gguftool.open_imatrix(folder / "i.dat"), gguftool.open_imatrix(source)
    assert {name for name in made.entries if name.startswith("blk.1.")} == set()
    theirs = old.entries["blk.1.attn_q.weight"].weights().tolist()
    assert made.entries["blk.0.attn_q.weight"].weights().tolist() == theirs
    done = run_gguftool("imatrix", "alter", source, source, "--layers", "0", "-o", "j.dat", cwd=folder)
    assert (done.returncode, b"give LABEL=FILE" in done.stderr) == (2, True)
    done = run_gguftool("imatrix", "alter", f"b={source}", f"B={source}", "--layers", "b:0", "-o", "j.dat", cwd=folder)
    assert (done.returncode, b"several inputs are labelled B" in done.stderr) == (2, True)
