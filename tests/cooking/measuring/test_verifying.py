"""plan --verify measures a whole mix as its tensors were measured, and corrects the next plan by one factor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gguftool.cooking.damage.sensitivities import EvidenceFiles, read_evidence
from gguftool.cooking.measure_lines import ScaleLine
from gguftool.cooking.measuring.output import read_output
from gguftool.cooking.measuring.verifying import Expectation, setup_of, verify_mix
from gguftool.errors import GGUFToolError, PlanError
from tests.support.command import run_gguftool
from tests.support.engine_tools import tool
from tests.support.measure_cases import MODEL, lines_of, make_setup, measuring

TYPES = {"blk.0.attn_q.weight": "q4_0", "blk.0.attn_v.weight": "q8_0"}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "measure.jsonl"
    measuring(make_setup(tmp_path), path).run()
    return path


def _verify(measured: Path, **expected: object) -> object:
    setup = make_setup(measured.parent)
    again = setup_of(measured, setup.model, setup.text, setup.engine, None, "1")
    assert again == setup
    given = {"types": TYPES, "damage": 0.01, "recipe": "ab", **expected}
    return verify_mix(again, Expectation(**given), measured)  # type: ignore[arg-type]


def test_the_factor_is_actual_over_predicted_and_the_next_plan_takes_it(measured: Path) -> None:
    before = len(lines_of(measured))
    found = _verify(measured)
    (line,) = read_output(measured).of(ScaleLine)
    assert len(lines_of(measured)) == before + 1
    assert line.factor == pytest.approx(line.actual / 0.01, rel=1e-4)
    assert (line.predicted, line.recipe, line.basis.options) == (0.01, "ab", "-c 128 --chunks 2")
    assert found.factor == line.factor  # type: ignore[attr-defined]
    assert read_evidence(EvidenceFiles(measure=(str(measured),))).factor == line.factor
    assert not list(measured.parent.glob("*.work"))


def test_a_factor_that_is_in_the_prediction_already_is_counted_once(measured: Path) -> None:
    first = _verify(measured)
    second = _verify(measured, damage=0.01 * first.factor, factor=first.factor)  # type: ignore[attr-defined]
    assert second.factor == pytest.approx(first.factor, rel=1e-4)  # type: ignore[attr-defined]


def test_another_text_is_refused_and_nothing_is_written(measured: Path, tmp_path: Path) -> None:
    before = measured.read_bytes()
    other = tmp_path / "other.txt"
    other.write_bytes(b"Something else altogether, and long enough. " * 40)
    setup = make_setup(tmp_path)
    wrong = setup_of(measured, setup.model, str(other), setup.engine, None, "1")
    with pytest.raises(PlanError, match=r"was measured with different inputs \(text\)"):
        verify_mix(wrong, Expectation(types=TYPES, damage=0.01, recipe="ab"), measured)
    assert measured.read_bytes() == before


@pytest.mark.parametrize("mode", ["crash", "garbage", "nan", "other"])
def test_an_engine_that_fails_writes_no_factor(measured: Path, tmp_path: Path, mode: str) -> None:
    before = measured.read_bytes()
    setup = make_setup(tmp_path, mode)
    floor = read_output(measured).floor
    assert floor is not None
    with pytest.raises(GGUFToolError):
        verify_mix(setup, Expectation(types=TYPES, damage=0.01, recipe="ab"), measured)
    assert measured.read_bytes() == before


def test_a_file_of_errors_alone_cannot_be_verified_with(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    done = run_gguftool("measure", MODEL, "--errors", "--types", "q4_0", "--tensors", r"blk\.0\.attn_q", "-o", path)
    assert done.returncode == 0, done.stderr
    with pytest.raises(PlanError, match="has no measured divergence"):
        setup_of(path, str(MODEL), "text", "engine", None, "1")


def test_the_command_with_the_real_engine_prints_predicted_and_actual(tmp_path: Path) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "measure.jsonl"
    text.write_text("".join(f"The {number}th line tells of {number * 7} things. " for number in range(60)))
    engine = tool("llama-perplexity")
    words = ("measure", MODEL, "--text", text, "--engine", engine, "--types", "q4_0", "--group", "role")
    done = run_gguftool(*words, "--ctx", 128, "--chunks", 4, "-o", path)
    assert done.returncode == 0, done.stderr
    words = ("plan", MODEL, "--bpw", "6", "--types", "q4_0,q8_0", "--measure", path, "--verify", engine)
    bare = run_gguftool(*words)
    assert bare.returncode == 2
    assert b"--verify takes one MODEL" in bare.stderr
    done = run_gguftool(*words, "--text", text, "-o", tmp_path / "mix.recipe", timeout=120)
    assert done.returncode == 0, done.stderr
    said = re.search(r"predicted KLD ([\d.e-]+), measured ([\d.e-]+) ± ", done.stderr.decode())
    assert said is not None
    (line,) = read_output(path).of(ScaleLine)
    assert line.actual == pytest.approx(float(said[2]), rel=1e-3)
    assert line.factor == pytest.approx(line.actual / line.predicted, rel=1e-4)
