"""gguftool cook, as a user runs it: one command from a recipe to the file, its card, and what stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from gguftool.model.opening import open_model
from tests.support.command import one_error_line
from tests.support.engine_tools import tool
from tests.support.mix_models import SHAPES
from tests.support.paths import FIXTURES
from tests.support.suite import make_suite

Run = Callable[..., "CompletedProcess[bytes]"]
RECIPE = "# gguftool 1 plan\n# expected KLD: 0.02 <b>\n# run with: -ngl 99 -c 4096\nnorm=f32\nattn=q4_K\n.*=q8_0\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mix.recipe"
    path.write_text(RECIPE)
    return path


def test_one_command_from_a_recipe_to_a_file_that_tells_of_it(gguftool: Run, recipe: Path, tmp_path: Path) -> None:
    template, card = make_suite(tmp_path, ("Q4_K", "Q8_0"), packed=("Q8_0",)), tmp_path / "README.md"
    words = ("cook", recipe, "--from", template, "-o", tmp_path / "out.gguf", "--provenance", "--card", card)
    done = gguftool(*words)
    assert done.returncode == 0, done.stderr
    model = open_model(tmp_path / "out.gguf")
    assert len(model) == len(SHAPES)
    assert model["gguftool.source.recipe"] == RECIPE
    text = card.read_text()
    assert "- expected KLD: 0.02 \\<b\\>\n" in text
    assert "```sh\nllama-server -m out.gguf -ngl 99 -c 4096\n```" in text
    assert "| q8_0 | 3 |" in text
    assert f"| out.gguf | {(tmp_path / 'out.gguf').stat().st_size:,} |" in text
    assert "Runs in llama.cpp and ik_llama.cpp." in text
    assert RECIPE.rstrip() in text
    assert "gguftool cook mix.recipe --from M-ME-{QTYPE}-SPECIAL_SPLIT -o out.gguf" in text.replace('"', "")
    assert str(tmp_path) not in text


def test_the_card_names_the_imatrix_without_its_folder(gguftool: Run, tmp_path: Path) -> None:
    recipe, card = tmp_path / "v.recipe", tmp_path / "card.md"
    recipe.write_text("attn_v=q8_0\n")
    words = ("cook", recipe, "--from", FIXTURES / "demo.gguf", "--imatrix", FIXTURES / "demo.imatrix.dat")
    done = gguftool(*words, "--allow-requantize", "-o", tmp_path / "out.gguf", "--card", card)
    assert done.returncode == 0, done.stderr
    assert "gguftool cook v.recipe --from demo.gguf --imatrix demo.imatrix.dat -o out.gguf" in card.read_text()


def test_a_dry_run_writes_nothing(gguftool: Run, recipe: Path, tmp_path: Path) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    words = ("cook", recipe, "--from", template, "-o", tmp_path / "out.gguf", "--card", tmp_path / "card.md")
    done = gguftool(*words, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_written"] > 0
    assert not (tmp_path / "out.gguf").exists()
    assert not (tmp_path / "card.md").exists()


def test_a_damaged_shard_is_named_before_anything_is_written(gguftool: Run, recipe: Path, tmp_path: Path) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    shard = next(Path(template.replace("{QTYPE}", "Q8_0")).glob("*-00002-of-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = gguftool("cook", recipe, "--from", template, "-o", tmp_path / "out.gguf")
    assert done.returncode == 2
    assert "1 shard(s) do not match their tensors.map" in done.stderr.decode()
    assert not (tmp_path / "out.gguf").exists()
    assert gguftool("cook", recipe, "--from", template, "-o", tmp_path / "out.gguf", "--no-verify").returncode == 0


def test_a_card_that_is_there_stops_it_first(gguftool: Run, recipe: Path, tmp_path: Path) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    (tmp_path / "card.md").write_text("mine")
    words = ("cook", recipe, "--from", template, "-o", tmp_path / "out.gguf", "--card", tmp_path / "card.md")
    done = gguftool(*words)
    assert done.returncode == 2
    assert not (tmp_path / "out.gguf").exists()
    assert (tmp_path / "card.md").read_text() == "mine"
    assert gguftool(*words, "--force").returncode == 0


@pytest.mark.parametrize("name", ["out.gguf", "sub/../out.gguf"])
def test_a_card_never_replaces_the_model_that_it_is_of(gguftool: Run, recipe: Path, tmp_path: Path, name: str) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    (tmp_path / "sub").mkdir()
    words = ("cook", recipe, "--from", template, "-o", tmp_path / "out.gguf", "--card", tmp_path / name, "--force")
    done = gguftool(*words)
    assert done.returncode == 2
    assert "out.gguf: is named for two outputs; give each file a name of its own" in done.stderr.decode()
    assert not (tmp_path / "out.gguf").exists()


def test_an_unknown_engine_is_bad_usage(gguftool: Run, recipe: Path, tmp_path: Path) -> None:
    done = gguftool("cook", recipe, "--from", tmp_path, "-o", tmp_path / "out.gguf", "--engine", "x")
    assert done.returncode == 2
    assert "--engine takes llama.cpp or ik_llama.cpp, not 'x'" in done.stderr.decode()


def test_nothing_to_cook_of_is_one_line(gguftool: Run, recipe: Path, tmp_path: Path) -> None:
    done = gguftool("cook", recipe, "--from", tmp_path / "no-{QTYPE}", "-o", tmp_path / "out.gguf")
    assert done.returncode == 2
    assert "no type of the recipe has a repository" in one_error_line(done.stderr)


def test_what_is_cooked_with_its_recipe_inside_loads_and_computes(gguftool: Run, tmp_path: Path) -> None:
    engines = FIXTURES / "engines"
    recipe = tmp_path / "mix.recipe"
    recipe.write_text(
        "# attention is there, the rest is made\nattn_(q|k|v|output)\\.weight=q8_0\nffn_.*\\.weight=q5_0\n"
    )
    sources = ("--from", engines / "tiny-llama-Q8_0.gguf", "--from", engines / "tiny-llama-BF16.gguf")
    done = gguftool("cook", recipe, *sources, "-o", tmp_path / "out.gguf", "--provenance", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    done = gguftool("cook", recipe, *sources, "-o", tmp_path / "out.gguf", "--provenance")
    assert done.returncode == 0, done.stderr
    made, ready = open_model(tmp_path / "out.gguf"), open_model(engines / "tiny-llama-Q8_0.gguf")
    assert made.tensors["blk.0.attn_q.weight"].raw() == ready.tensors["blk.0.attn_q.weight"].raw()
    assert made.tensors["blk.0.ffn_up.weight"].type_name == "Q5_0"
    loaded = gguftool("check", tmp_path / "out.gguf", "--load", tool("llama-completion"), "--run", "2")
    assert loaded.returncode == 0, loaded.stdout
