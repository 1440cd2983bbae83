"""Files of evidence: measure.jsonl, sensitivities as JSON, several files together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gguftool.cooking.damage.evidence import Given
from gguftool.cooking.damage.sensitivities import EvidenceFiles, read_evidence, unknown_tensors
from gguftool.cooking.measure_lines import Basis, ErrorLine, FloorLine, KldLine, Line, ScaleLine, Scores, serialize_line
from gguftool.errors import FormatError, PlanError
from gguftool.record import replace

BASIS = Basis(model="m", text="t", imatrix=None, engine="e", options="o", gguftool="0")


def kld_line(tensors: tuple[str, ...], qtype: str, kld: float, *, censored: bool = False) -> KldLine:
    """A line of one measurement."""
    scores = Scores(
        kld=kld, kld_se=kld / 10, same_top=0.9, same_top_se=0.01, ppl=9, ppl_se=1, ppl_ratio=1, ppl_ratio_se=0.1,
        tokens=512, chunks=1, by_chunk=None,
    )  # fmt: skip
    return KldLine(
        group=tensors[0], tensors=tensors, type=qtype, censored=censored, scores=scores, carrier=None, basis=BASIS
    )


def error_line(tensor: str, qtype: str, error: float, weighted: float | None) -> ErrorLine:
    """A line of the error table."""
    return ErrorLine(
        tensor=tensor, type=qtype, error=error, weighted_error=weighted, rows=4, of=4, source=None, basis=BASIS
    )


def write(path: Path, *lines: Line) -> str:
    """Write a measure file."""
    path.write_text("".join(serialize_line(line) for line in lines))
    return str(path)


def write_json(path: Path, fields: Any) -> str:
    """Write a file of sensitivities."""
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return str(path)


def test_lines_become_observations_and_errors(tmp_path: Path) -> None:
    name = write(
        tmp_path / "measure.jsonl",
        kld_line(("a.weight",), "q3_K", 1e-3),
        kld_line(("a.weight",), "q3_K", 2e-3),
        kld_line(("b.weight", "c.weight"), "q3_K", 1e-5, censored=True),
        error_line("a.weight", "q3_K", 0.03, 0.01),
        error_line("a.weight", "q4_K", 0.006, 0.002),
        error_line("b.weight", "q3_K", 0.04, 0.02),
        error_line("b.weight", "q4_K", 0.007, None),
        ScaleLine(factor=1.5, predicted=1, actual=1.5, recipe="r", basis=BASIS),
        ScaleLine(factor=1.1, predicted=1, actual=1.1, recipe="r", basis=BASIS),
    )
    found = read_evidence(EvidenceFiles(measure=(name,)))
    assert {one.tensors: (one.value, one.censored) for one in found.observations} == {
        ("a.weight",): (2e-3, False),  # the later line
        ("b.weight", "c.weight"): (1e-5, True),
    }
    assert found.errors == {
        ("a.weight", "q3_K"): 0.01,
        ("a.weight", "q4_K"): 0.002,
        ("b.weight", "q3_K"): 0.04,  # not all of its errors are weighted, and the two kinds do not compare
        ("b.weight", "q4_K"): 0.007,
    }
    assert found.factor == 1.1
    assert found.inputs[0].name == name
    assert found.tensors == {"a.weight", "b.weight", "c.weight"}


def test_the_floor_of_a_file_is_subtracted(tmp_path: Path) -> None:
    found = []
    for floor in (0.0, 0.0023):
        lines = (
            kld_line(("a.weight",), "q3_K", 1e-3 + floor),
            kld_line(("b.weight",), "q3_K", 3e-5 + floor, censored=True),
        )
        reference = FloorLine(scores=lines[0].scores, base_ppl=9.0, basis=BASIS)
        reference = replace(reference, scores=replace(reference.scores, kld=floor))
        name = write(tmp_path / f"{floor}.jsonl", reference, *lines)
        found.append([one.value for one in read_evidence(EvidenceFiles(measure=(name,))).observations])
    assert found[0] == found[1] == [1e-3, 3e-5]


def test_sensitivities_by_tensor_and_by_type(tmp_path: Path) -> None:
    fields = {
        "gguftool": "sensitivities",
        "spread": 0.3,
        "type": "Q3_K",
        "tensors": {"a.weight": 1e-3, "b.weight": {"q4_k": 2e-3, "iq3_xxs": 0}},
    }
    found = read_evidence(EvidenceFiles(sensitivity=write_json(tmp_path / "s.json", fields)))
    assert found.given == (
        Given(tensor="a.weight", type="q3_K", value=1e-3, spread=0.3),
        Given(tensor="b.weight", type="q4_K", value=2e-3, spread=0.3),
        Given(tensor="b.weight", type="iq3_xxs", value=pytest.approx(1e-9), spread=0.3),
    )
    del fields["type"]
    found = read_evidence(EvidenceFiles(sensitivity=write_json(tmp_path / "s.json", fields)))
    assert found.given[0].type is None


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ("[1]", ["expected an object with"]),
        ("{", ["is not JSON"]),
        ('{"gguftool": "sensitivities", "tensors": {}}', ["no tensor's sensitivity"]),
        ({"gguftool": "sensitivities", "tensors": 3}, ["is not an object of tensors"]),
        (
            {"gguftool": "x", "spread": -1, "type": "q9", "tensors": {"a": {"zz": 1}, "b": "1", "c": -1, "d": True}},
            ['"gguftool"', '"spread" is -1', '"type" is q9', "'zz' is not a type", "b: 1 is", "c: -1 is", "d: True is"],
        ),
        ('{"gguftool": "sensitivities", "tensors": {"a": NaN}}', ["a: nan is not a damage"]),
        ("[" * 100_000, ["is not JSON"]),
    ],
)
def test_bad_sensitivities_are_one_error_with_all_problems(tmp_path: Path, fields: Any, problems: list[str]) -> None:
    with pytest.raises(FormatError) as caught:
        read_evidence(EvidenceFiles(sensitivity=write_json(tmp_path / "s.json", fields)))
    for problem in problems:
        assert problem in str(caught.value)


def test_what_is_no_measurement_says_what_would_be(tmp_path: Path) -> None:
    other = tmp_path / "x.txt"
    other.write_text("hello\n")
    with pytest.raises(FormatError, match="'gguftool measure' writes JSON lines"):
        read_evidence(EvidenceFiles(measure=(str(other),)))


def test_files_add_up_unless_their_units_differ(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", kld_line(("a.weight",), "q3_K", 1e-3))
    two = write(tmp_path / "2.jsonl", kld_line(("b.weight",), "q3_K", 1e-3))
    assert len(read_evidence(EvidenceFiles(measure=(one, two))).observations) == 2
    ppl = tmp_path / "ppl_results.csv"
    ppl.write_text("QTYPE,a.weight,b.weight\nq3_K,6.81,6.93\n")
    assert read_evidence(EvidenceFiles(measure=(str(ppl),))).unit == "ln PPL"
    with pytest.raises(PlanError, match="KLD and ln PPL do not add up"):
        read_evidence(EvidenceFiles(measure=(one, str(ppl))))


def test_tensors_of_another_model_are_counted(tmp_path: Path) -> None:
    found = read_evidence(EvidenceFiles(measure=(write(tmp_path / "1", kld_line(("a", "b", "c"), "q3_K", 1e-3)),)))
    assert unknown_tensors(found, ["a", "b", "c", "d"]) is None
    assert "another conversion" in str(unknown_tensors(found, ["a", "b"]))
    assert "another model" in str(unknown_tensors(found, ["x"]))


@pytest.mark.parametrize("number", [10**400, 1e300, -1])
def test_numbers_that_are_no_damage_are_named(tmp_path: Path, number: float) -> None:
    name = write_json(tmp_path / "s.json", {"gguftool": "sensitivities", "tensors": {"a.weight": number}})
    with pytest.raises(FormatError, match=r"a\.weight: .* is not a damage"):
        read_evidence(EvidenceFiles(sensitivity=name))


def test_a_spread_beyond_all_numbers_is_named(tmp_path: Path) -> None:
    fields = {"gguftool": "sensitivities", "spread": 10**400, "tensors": {"a.weight": 1.0}}
    with pytest.raises(FormatError, match='"spread" is 1000'):
        read_evidence(EvidenceFiles(sensitivity=write_json(tmp_path / "s.json", fields)))
