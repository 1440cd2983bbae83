"""What an engine did becomes a finding, joined to the rule that explains it."""

from __future__ import annotations

import sys

import pytest

from gguftool.analysis.lint import loading
from gguftool.analysis.lint.loading import explanation, finding_of, load_in
from gguftool.analysis.lint.rules import Finding, Severity
from gguftool.engines.load import Outcome, Verdict
from gguftool.engines.probe import Kind, LoadEngine
from gguftool.errors import PlanError

ENGINE = LoadEngine(kind=Kind.CLI, engine="ik_llama.cpp", version="7")
GAP = Finding(
    code="S11", severity=Severity.ERROR, message="1 of 2 layers have no tensor: 1", where="blk.1", way_out="fetch it"
)
KEY = Finding(
    code="H02", severity=Severity.INFO, severity_there=Severity.ERROR, message="general.file_type is U64", where="m"
)
NAME = Finding(code="T01", severity=Severity.ERROR, message="unknown type", where="a", tensors=("blk.0.attn_q.weight",))
OFFSET = Finding(code="S08", severity=Severity.ERROR, message="offset is 1", where="x.weight", tensors=("x.weight",))
HARMLESS = Finding(code="M01", severity=Severity.WARNING, message="differ", where="", tensors=("blk.0.attn_q.weight",))
ALL = (HARMLESS, GAP, KEY, NAME, OFFSET)


def finding(verdict: Verdict, *lines: str) -> Finding:
    outcome = Outcome(verdict=verdict, how="exit status 1", lines=lines, seconds=1, anonymous=1)
    return finding_of(ENGINE, outcome, ALL)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("error loading model: tensor 'blk.0.attn_q.weight' not found", "T01"),
        ("error loading model: tensor 'blk.1.ffn_norm.weight' not found", "S11"),
        ("error loading model: tensor 'blk.10.ffn_norm.weight' not found", None),
        ("key 'general.file_type' has wrong type", "H02"),
        ("error loading model: key not found in model: general.file_type", "H02"),
        ("key 'general.file_types' has wrong type", None),
        ("tensor 'y.weight' has offset 7, expected 8", "S08"),
        ("tensor name 70 is too long", None),  # the rule about that found nothing
        ("", None),
    ],
)
def test_a_rule_explains_what_is_about_the_same_thing(line: str, code: str | None) -> None:
    found = explanation([line], ALL)
    assert (found.code if found else None) == code


def test_the_way_out_is_that_of_the_rule() -> None:
    found = finding(Verdict.REFUSED, "tensor 'blk.1.ffn_norm.weight' not found", "second")
    assert (found.code, found.severity, found.engines) == ("E01", Severity.ERROR, ("ik_llama.cpp",))
    assert found.where == "llama-cli (ik_llama.cpp 7)"
    assert found.message == "refuses it (exit status 1): tensor 'blk.1.ffn_norm.weight' not found | second"
    assert found.way_out == "S11 explains it: fetch it"


@pytest.mark.parametrize(
    ("verdict", "code"), [(Verdict.CRASHED, "E02"), (Verdict.EXCEEDED, "E03"), (Verdict.UNUSABLE, "E04")]
)
def test_each_verdict_has_a_code(verdict: Verdict, code: str) -> None:
    assert finding(verdict).code == code
    assert finding(verdict).way_out


def test_other_systems_are_refused_before_a_folder_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "scratch_folder", lambda: pytest.fail("sparse files are asked about first"))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PlanError, match="only on Linux"):
        load_in("xllamacpp", (), 0, ())


def test_a_broken_engine_is_explained_by_no_rule_and_about_no_engine() -> None:
    found = finding(Verdict.UNUSABLE, "tensor 'blk.1.ffn_norm.weight' not found")
    assert found.engines == ()
    assert "S11" not in found.way_out
