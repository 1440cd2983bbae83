"""Verdicts on heads with one mistake each: those of `check` beside those of a real llama.cpp."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gguftool.analysis.lint.check import CheckOptions, check
from gguftool.analysis.lint.rules import Finding
from gguftool.format.engine_facts.engines import BOTH, LLAMA_CPP, MAINLINE
from gguftool.format.engine_facts.heads import head_facts
from gguftool.render.format import Format
from gguftool.render.registry import render
from tests.support.head_corpus import VERDICTS, corpus, llama, verdict_of

AGREEMENT = 0.97
# Every model that `check` judges otherwise than the engine, with the reason.
DISAGREEMENTS = {
    "llama: head counts another by layer": "all tensors are as asked for; the graph cannot be built of them",
}
ASKED_AGAIN = 25  # every so many models


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(VERDICTS.read_text(encoding="utf-8"))["verdicts"]  # type: ignore[no-any-return]


def ours(path: Path) -> tuple[bool, tuple[Finding, ...]]:
    report = check(str(path), CheckOptions(engines=MAINLINE))
    return LLAMA_CPP in report.able, report.findings


def test_the_corpus_is_recorded_and_both_verdicts_occur_in_every_architecture(recorded: dict[str, Any]) -> None:
    assert set(recorded) == {name for name, _ in corpus()}, "record it again: python -m tests.support.head_corpus"
    assert len(recorded) >= 120
    seen = {(name.partition(":")[0], verdict["loads"]) for name, verdict in recorded.items()}
    assert len(seen) == 2 * len({arch for arch, _ in seen})


def test_check_agrees_with_llama_cpp(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = tmp_path / "model.gguf"
    others = {}
    for name, head in corpus():
        path.write_bytes(head.bytes())
        loads, findings = ours(path)
        assert not [finding for finding in findings if "itself is broken" in finding.message], name
        if loads is not recorded[name]["loads"]:
            others[name] = (recorded[name]["said"], [finding.message for finding in findings])
    assert set(others) == set(DISAGREEMENTS), others
    assert len(others) <= (1 - AGREEMENT) * len(recorded)


def test_the_installed_llama_cpp_says_what_is_recorded(tmp_path: Path, recorded: dict[str, Any]) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed; pip install -e '.[test]'")
    path = tmp_path / "model.gguf"
    for name, head in list(corpus())[::ASKED_AGAIN]:
        path.write_bytes(head.bytes())
        assert verdict_of(path)["loads"] is recorded[name]["loads"], name


# --- what the last line says -----------------------------------------------------------------------------------------


def last_line(path: Path, **options: Any) -> str:
    """The summary, which is wrapped, as one line."""
    text = render(check(str(path), CheckOptions(**options)), Format.TEXT)
    lines = text.splitlines()
    start = max(number for number, line in enumerate(lines) if not line.startswith(" "))
    return " ".join(" ".join(lines[start:]).split())


def test_the_last_line_names_the_releases(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(llama().bytes())
    line = last_line(path)
    for engine in BOTH:
        facts = head_facts(engine)
        assert facts is not None
        assert facts.shown in line
    assert "not judged" not in line
    assert "ik_llama.cpp" not in last_line(path, engines=MAINLINE)


def test_the_last_line_never_claims_more_than_was_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(llama().bytes())
    assert "not judged: metadata;" in last_line(path, ignore=("K02",))
    assert "not judged: metadata, vocabulary, tensor names and dims;" in last_line(path, select=("S",))
    half_read = llama().with_key("general.architecture", "str", "kimi-k3").with_key("kimi-k3.block_count", "u32", 2)
    path.write_bytes(half_read.bytes())
    assert "A03" in last_line(path, engines=MAINLINE).partition("not judged: ")[2]
    path.write_bytes(llama().with_key("general.architecture", "str", "llama99").bytes())
    assert "not judged: metadata, tensor names and dims, S11;" in last_line(path)
    path.write_bytes(llama().with_key("general.type", "str", "mmproj").bytes())
    assert "not judged: metadata, vocabulary, tensor names and dims" in last_line(path)


def test_without_jinja2_a_template_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    path = tmp_path / "model.gguf"
    path.write_bytes(llama().with_key("tokenizer.chat_template", "str", "{{ x }").bytes())
    assert ours(path)[0]
    assert "not judged: V05;" in last_line(path)
    path.write_bytes(llama().bytes())
    assert "V05" not in last_line(path)
