"""gguftool recipe, as a user runs it: output, exit codes, errors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from gguftool.format.ggml import type_name
from gguftool.model.opening import open_model
from tests.support import builders
from tests.support.command import one_error_line
from tests.support.paths import FIXTURES, REPO

Run = Callable[..., "CompletedProcess[bytes]"]

NAMES = ["token_embd.weight", "output.weight"] + [
    f"blk.{n}.{role}.weight" for n in range(12) for role in ("attn_output", "ffn_up", "ffn_gate")
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = [builders.tensor(name, "Q4_K" if ".1." in name else "Q8_0", (256, 2)) for name in NAMES]
    tensors.append(builders.tensor("output_norm.weight", "F32", (256,)))
    path = tmp_path / "model.gguf"
    path.write_bytes(builders.gguf(builders.llama_kvs(layers=12), tensors))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mix.recipe"
    path.write_bytes(
        b"\xef\xbb\xbf## a mix\r\noutput\\.weight=Q6_K # also attn_output\r\n"
        b"^blk\\.0\\.attn_output\\.weight$=q4_K\r\n  norm=f32=locked\r\nffn_(up|gate)=iq2-kt\r\n.*=q8_0"
    )
    return path


def text(done: CompletedProcess[bytes], code: int = 0) -> str:
    assert done.returncode == code, done.stderr
    return done.stdout.decode()


def test_check_shows_findings_rules_and_types(gguftool: Run, recipe: Path, model: Path) -> None:
    shown = text(gguftool("recipe", "check", recipe, "--model", model))
    assert "5 rules for 39 tensors" in shown
    assert "warning: line 3: '^blk\\.0\\.attn_output\\.weight$' never applies: line 2 took every tensor" in shown
    assert "bits per weight" in shown
    types = shown[shown.index("\ntypes\n") :].splitlines()[3:]
    assert sorted(line.split()[0] for line in types) == ["F32", "IQ2_KT", "Q6_K", "Q8_0"]


def test_check_as_json(gguftool: Run, recipe: Path, model: Path) -> None:
    report = json.loads(text(gguftool("recipe", "check", recipe, "--model", model, "--json")))
    assert {"recipe", "model", "engine", "nbytes", "bits_per_weight", "types", "rules", "findings"} <= report.keys()
    assert [use["tensors"] for use in report["rules"]] == [13, 0, 1, 24, 1]
    assert report["engine"] == "ik_llama.cpp"
    assert report["nbytes"] == sum(share["nbytes"] for share in report["types"])


@pytest.mark.parametrize(
    ("rules", "options", "code"),
    [
        (".*=q8_0", (), 0),
        (".*=q8_0", ("--fail-on", "info"), 1),
        (".*=q8_0\nx=f32", (), 0),
        (".*=q8_0\nx=f32", ("--fail-on", "warning"), 1),
        ("blk=q8_0", (), 1),
        (".*=q4_k_m", (), 1),
        (".*=(", (), 1),
        ("(=f32", (), 2),
        ("", (), 2),
    ],
)
def test_exit_codes_of_check(
    gguftool: Run, tmp_path: Path, model: Path, rules: str, options: tuple[str, ...], code: int
) -> None:
    path = tmp_path / "x.recipe"
    path.write_text(rules)
    done = gguftool("recipe", "check", path, "--model", model, *options)
    text(done, code)
    if code == 2:
        assert "x.recipe" in one_error_line(done.stderr)
        assert not done.stdout


@pytest.mark.slow
def test_extract_compact_expand_convert_agree(gguftool: Run, tmp_path: Path, model: Path) -> None:
    extracted = text(gguftool("recipe", "extract", model))
    assert r"^blk\.([02-9]|1[01])\.ffn_up\.weight$=q8_0" in extracted.splitlines()
    assert r"^blk\.1\.ffn_up\.weight$=q4_K" in extracted.splitlines()
    path = tmp_path / "extracted.recipe"
    path.write_text(extracted)
    expanded = tmp_path / "expanded.recipe"
    done = gguftool("recipe", "expand", path, "--model", model, "-o", expanded)
    assert text(done) == ""
    assert b"wrote 39 rules" in done.stderr
    assert len(expanded.read_text().splitlines()) == len(NAMES) + 1
    assert text(gguftool("recipe", "compact", expanded, "--model", model)) == extracted
    for form in ("custom-q", "tensor-type-file", "tensor-type", "recipe"):
        converted = text(gguftool("recipe", "convert", path, "--to", form))
        assert converted == text(gguftool("recipe", "extract", model, "--to", form))
        back = gguftool("recipe", "convert", "-", "--from", form, "--to", "recipe", input=converted.encode())
        assert text(back) == extracted


def test_unmatched_tensors_are_remarked(gguftool: Run, tmp_path: Path, model: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("blk=q8_0")
    done = gguftool("recipe", "compact", path, "--model", model)
    assert len(text(done).splitlines()) == 3
    assert b"no rule matches 3 tensors: token_embd.weight, output.weight, output_norm.weight" in done.stderr


def test_outputs_are_never_inputs_and_never_replaced_unasked(gguftool: Run, recipe: Path, tmp_path: Path) -> None:
    before = recipe.read_bytes()
    for options in ((), ("--force",)):
        done = gguftool("recipe", "convert", recipe, "--to", "recipe", "-o", recipe, *options)
        text(done, 2)
        assert "is an input" in one_error_line(done.stderr)
    other = tmp_path / "other.recipe"
    other.write_text("mine")
    text(gguftool("recipe", "convert", recipe, "--to", "recipe", "-o", other), 2)
    assert other.read_text() == "mine"
    text(gguftool("recipe", "convert", recipe, "--to", "recipe", "-o", other, "--force"))
    assert other.read_text().startswith("output\\.weight=q6_K\n")
    assert recipe.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "{missing}", "--model", "{model}"), "cannot open"),
        (("check", "{recipe}", "--model", "{missing}"), "missing"),
        (("check", "{model}", "--model", "{model}"), "is binary"),
        (("check", "{recipe}", "--model", "{recipe}"), "mix.recipe"),
        (("convert", "{folder}", "--to", "recipe"), "directory"),
        (("convert", "{recipe}", "--to", "tensor-type-file"), "llama.cpp has no type iq2_kt"),
        (("extract", "{missing}"), "missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    gguftool: Run, recipe: Path, model: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    places = {"recipe": recipe, "model": model, "folder": tmp_path, "missing": tmp_path / "missing"}
    done = gguftool("recipe", *(argument.format(**places) for argument in arguments))
    assert done.returncode == 2
    assert words in one_error_line(done.stderr)
    assert not done.stdout


def test_bad_usage_is_exit_2(gguftool: Run, recipe: Path) -> None:
    assert gguftool("recipe", "check", recipe).returncode == 2
    assert gguftool("recipe", "convert", recipe, "--to", "yaml").returncode == 2


def test_names_that_play_tricks_come_back(gguftool: Run, tmp_path: Path) -> None:
    names = ["blk.0.a=b", "blk.0.a b", "blk.0.#x", "blk.0.\x1b[31m", b"blk.0.\xff", "blk.0.a\n", "blk.00.a"]
    path = tmp_path / "tricks.gguf"
    path.write_bytes(builders.gguf((), [builders.tensor(name, "F32", (8,)) for name in names]))
    made = tmp_path / "tricks.recipe"
    text(gguftool("recipe", "extract", path, "-o", made))
    assert b"\x1b" not in made.read_bytes()
    report = json.loads(text(gguftool("recipe", "check", made, "--model", path, "--json")))
    assert [use["tensors"] for use in report["rules"]] == [1] * len(names)
    assert report["findings"] == []


def test_the_examples_of_the_docs_are_real(gguftool: Run, tmp_path: Path) -> None:
    page = (REPO / "docs" / "recipes.md").read_text()
    (mix,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "mix.recipe").write_text(mix)
    (tmp_path / "bad.recipe").write_text("blk=q4_K_M\n(=f32\nattn=iq4ks\n")
    for name in ("tiny-qwen3moe-Q4_K.gguf", "tiny-qwen3moe-IQ4_KS.gguf"):
        (tmp_path / name).symlink_to(FIXTURES / "engines" / name)
    examples = re.findall(r"^```console\n\$ gguftool (.*?)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 5
    for command, shown in examples:
        done = gguftool(*command.split(), cwd=tmp_path)
        assert (done.stdout + done.stderr).decode() == shown


def test_check_with_a_preset_predicts_what_quantize_makes(gguftool: Run, tmp_path: Path) -> None:
    model = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
    made = tmp_path / "made.gguf"
    assert gguftool("quantize", model, "Q4_K_M", "-o", made).returncode == 0
    counts = Counter(type_name(tensor.info.type) for tensor in open_model(made).tensors.values())
    for words in (("Q4_K_M",), ("--preset", "q4_k_m")):
        report = json.loads(gguftool("recipe", "check", model, *words, "--json").stdout)
        assert report["preset"] == "Q4_K_M"
        assert {share["type"]: share["tensors"] for share in report["types"]} == counts


def test_check_needs_a_model_or_a_preset(gguftool: Run, recipe: Path) -> None:
    done = gguftool("recipe", "check", recipe)
    assert (done.returncode, b"give --model MODEL, or a preset" in done.stderr) == (2, True)


def test_a_recipe_with_a_preset_alone_is_asked_for_its_model(gguftool: Run, recipe: Path) -> None:
    done = gguftool("recipe", "check", recipe, "Q4_K_M")
    assert done.returncode == 2
    assert "a recipe needs --model MODEL" in one_error_line(done.stderr)


def test_check_with_a_wrong_preset_names_the_nearest(gguftool: Run, model: Path) -> None:
    done = gguftool("recipe", "check", model, "Q4_K_X")
    assert done.returncode == 2
    assert "Q4_K_M" in one_error_line(done.stderr)
