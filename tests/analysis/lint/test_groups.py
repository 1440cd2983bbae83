"""Findings are grouped by cause: a wrong key is one line, however many tensors contradict it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from gguftool.analysis.lint.check import CheckOptions, CheckReport, check
from gguftool.analysis.lint.groups import FindingGroup, grouped
from gguftool.analysis.lint.heads.hyperparameters import Hyperparameters
from gguftool.analysis.lint.rules import RULES, Finding, Severity
from gguftool.analysis.lint.titles import TITLES, Effect, anchor_of, effect_of
from gguftool.errors import PlanError
from tests.support.counted_work import FACTOR, LINEAR, calls_of
from tests.support.head_corpus import WIDTH, Head, corpus, llama
from tests.support.paths import REPO

HEADING = re.compile(r"^### ([A-Z]\d\d): (.+)$", re.MULTILINE)
# A file of the corpus has one mistake: few causes are left, where findings may be a dozen.
MOST_GROUPS = 5


def report_of(folder: Path, head: Head, **options: object) -> CheckReport:
    path = folder / "m.gguf"
    path.write_bytes(head.bytes())
    return check(str(path), CheckOptions(**options))  # type: ignore[arg-type]


def only_group(report: CheckReport) -> FindingGroup:
    (group,) = report.groups
    return group


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("llama.embedding_length", 2 * WIDTH, WIDTH),
        ("llama.embedding_length", WIDTH // 2, WIDTH),
        ("llama.feed_forward_length", 64, 96),
    ],
)
def test_a_wrong_key_is_one_line_that_names_it(tmp_path: Path, key: str, value: int, right: int) -> None:
    head = llama().with_key(key, "u32", value)
    group = only_group(report_of(tmp_path, head))
    assert (group.cause, group.where, group.codes) == (key, key, ("A02",))
    concerned = [name for name, dims in head.tensors.items() if right in dims]
    assert set(group.tensors) == set(concerned)
    assert group.message.startswith(f"{value:,}, but {len(concerned)} tensors have dims for {right}: ")
    assert f"--set {key}=u32:{right} " in group.command


def test_two_wrong_keys_are_two_lines(tmp_path: Path) -> None:
    head = llama().with_key("llama.embedding_length", "u32", 128).with_key("llama.feed_forward_length", "u32", 64)
    assert {group.cause for group in report_of(tmp_path, head).groups} == {
        "llama.embedding_length",
        "llama.feed_forward_length",
    }


def test_keys_that_would_each_explain_it_are_all_named(tmp_path: Path) -> None:
    group = only_group(report_of(tmp_path, llama().with_key("llama.attention.head_count_kv", "u32", 4)))
    assert group.where == "llama.attention.head_count or llama.attention.head_count_kv"
    assert group.message.startswith("4 or 4, but 4 tensors have dims for 8 or 2: ")
    assert group.command == ""  # which of the two is wrong is not known


def test_one_tensor_of_other_dims_is_no_wrong_key(tmp_path: Path) -> None:
    group = only_group(report_of(tmp_path, llama().with_tensor("blk.1.attn_norm.weight", 96)))
    assert (group.cause, group.where) == ("", "blk.1.attn_norm.weight")
    half = llama()
    for role in ("attn_q", "attn_k", "ffn_up"):  # of one layer alone: no value fits both
        name = f"blk.1.{role}.weight"
        half = half.with_tensor(name, 96, *half.tensors[name][1:])
    group = only_group(report_of(tmp_path, half, select=("A",)))
    assert (group.cause, len(group.tensors)) == ("", 3)


def test_tokens_against_rows_name_the_tokens(tmp_path: Path) -> None:
    head = llama()
    kind, tokens = head.kvs["tokenizer.ggml.tokens"]
    group = only_group(report_of(tmp_path, head.with_key("tokenizer.ggml.tokens", kind, tokens[:-1])))
    assert group.message.startswith("271 entries, but 2 tensors have dims for 272: token_embd.weight")
    assert group.command == ""


def test_layers_that_are_counted_wrongly_are_one_line(tmp_path: Path) -> None:
    group = only_group(report_of(tmp_path, llama().with_key("llama.block_count", "u32", 3)))
    assert group.codes == ("S11", "A01")
    assert "llama.block_count=u32:2" in group.command
    group = only_group(report_of(tmp_path, llama().with_key("llama.block_count", "u32", 1)))
    assert group.codes == ("S11", "A03")
    assert "llama.block_count=u32:2" in group.command


def test_a_scrap_of_a_layer_is_not_counted(tmp_path: Path) -> None:
    report = report_of(tmp_path, llama().with_tensor("blk.2.attn_norm.weight", WIDTH))
    assert not [group.command for group in report.groups if "block_count" in group.command]


def test_no_model_of_the_corpus_has_many_groups_and_every_finding_is_in_one(tmp_path: Path) -> None:
    for name, head in list(corpus())[::3]:
        report = report_of(tmp_path, head)
        assert len(report.groups) <= MOST_GROUPS, (name, [group.message for group in report.groups])
        members = sorted(at for group in report.groups for at in group.findings)
        assert members == list(range(len(report.findings))), name


def test_contradictions_everywhere_are_judged_in_bounded_time(tmp_path: Path) -> None:
    """No two tensors are of one mind about any key: the work grows with the layers alone."""

    def work(layers: int) -> int:
        head = llama().with_key("llama.block_count", "u32", layers)
        tensors = {}
        for layer in range(layers):
            for at, role in enumerate(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")):
                tensors[f"blk.{layer}.{role}.weight"] = (1 + (7 * layer + at) % 50, 3 + layer % 40)
        changed = Head(head.kvs, {**head.tensors, **tensors})
        return calls_of(lambda: report_of(tmp_path, changed, select=("A02",)))

    assert work(32 * FACTOR) < LINEAR * work(32)


# --- order and titles ------------------------------------------------------------------------------------------------


def test_keys_that_no_contradicting_tensor_depends_on_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: set[str] = set()
    assuming = Hyperparameters.assuming

    def noted(values: Hyperparameters, assumed: Mapping[str, int]) -> Hyperparameters:
        tried.update(assumed)
        return assuming(values, assumed)

    monkeypatch.setattr(Hyperparameters, "assuming", noted)
    group = only_group(report_of(tmp_path, llama().with_key("llama.feed_forward_length", "u32", 64)))
    assert "llama.feed_forward_length" in tried
    assert group.cause == "llama.feed_forward_length"
    assert not tried & {"llama.context_length", "llama.attention.head_count", "llama.rope.dimension_count"}


def finding(code: str, severity: Severity = Severity.ERROR, message: str = "", **more: object) -> Finding:
    return Finding(code=code, severity=severity, message=message or code, where="", **more)  # type: ignore[arg-type]


def test_the_worst_comes_first() -> None:
    given = [
        finding("H03", Severity.INFO),
        finding("M01", Severity.WARNING),
        finding("T04"),
        finding("K03"),
        finding("V03"),
        finding("E01"),
    ]
    codes = [group.codes[0] for group in grouped(given)]
    assert codes == ["V03", "K03", "E01", "T04", "M01", "H03"]


def test_what_differs_in_numbers_and_names_alone_is_one_line() -> None:
    gaps = [finding("F03", Severity.WARNING, f"{n} bytes after the 1,088 of Q8_0", tensors=(f"t{n}",)) for n in (3, 40)]
    assert [group.tensors for group in grouped(gaps)] == [("t3", "t40")]
    other = finding("F03", Severity.WARNING, "something else")
    assert len(grouped([*gaps, other])) == 2
    assert len(grouped([*gaps, finding("F03", Severity.ERROR, gaps[0].message)])) == 2
    own = [finding("K02", message=f"'k{n}' is INT32", command=f"gguftool edit k{n}") for n in (1, 2)]
    assert len(grouped(own)) == 2  # each needs a command of its own


def test_rules_that_lack_the_same_are_one_line() -> None:
    why = "could not be evaluated: the set is not complete"
    group = grouped([finding(code, Severity.INFO, why) for code in ("D02", "S11")])
    assert [each.codes for each in group] == [("D02", "S11")]


def test_titles_are_the_headings_of_the_page() -> None:
    page = (REPO / "docs" / "lint.md").read_text("utf-8")
    assert dict(HEADING.findall(page)) == TITLES
    assert anchor_of("N01") == "n01-no-such-file-or-it-cannot-be-read"
    assert {rule.code for rule in RULES} <= set(TITLES)
    assert {effect_of(code) for code in TITLES} == set(Effect)


@pytest.mark.parametrize("options", [{"load": "xllamacpp", "run": 51}, {"load": "xllamacpp", "run": -1}, {"run": 1}])
def test_tokens_to_run_are_bounded(options: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="--run"):
        CheckOptions(**options)  # type: ignore[arg-type]
    assert CheckOptions(load="xllamacpp", run=50).run == 50
