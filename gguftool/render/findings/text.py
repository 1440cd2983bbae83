"""The findings of a check as text of 80 columns: a paragraph for each cause with what mends it, then a summary."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gguftool.analysis.lint.check import CheckReport, CheckReports
from gguftool.analysis.lint.groups import FindingGroup
from gguftool.analysis.lint.rules import Finding, Severity
from gguftool.analysis.lint.way_out import split_way_out
from gguftool.errors import printable
from gguftool.render.format import Format
from gguftool.render.registry import renders

if TYPE_CHECKING:
    from gguftool.analysis.lint.loading import LoadReport

_LIMIT = 1 << 14
_WIDTH = 80
_INDENT = " " * 8
_LIKE_IT = 3  # findings of a group that are named beside the first


@renders(CheckReport, Format.TEXT)
def check_text(report: CheckReport) -> str:
    """The report as text; commands are on lines of their own, whole, however long they are."""
    return "\n".join(_lines(report)) + "\n"


@renders(CheckReports, Format.TEXT)
def reports_text(checked: CheckReports) -> str:
    """The reports on several models, one after the other."""
    return "".join(map(check_text, checked.reports))


def _lines(report: CheckReport) -> Iterator[str]:
    findings = report.findings if report.readable else report.diagnoses
    for group in report.groups:
        yield from _group_lines(group, [findings[at] for at in group.findings])
    yield from _wrapped(_summary(report), later="    ")


def _group_lines(group: FindingGroup, findings: Sequence[Finding]) -> Iterator[str]:
    engines = f" [{', '.join(group.engines)}]" if group.engines else ""
    there = f" ({group.severity_there.name.lower()} there)" if group.severity_there is not None else ""
    place = f"{group.where}: " if group.where else ""
    head = f"{group.severity.name.lower():7} {', '.join(group.codes)}{engines}{there}"
    yield from _wrapped(f"{head} {place}{group.message}{_like_it(group, findings)}", later=_INDENT)
    words, command = split_way_out(group.way_out)
    if words:
        yield from _wrapped(f"{_INDENT}-> {words}{':' if command else ''}", later=f"{_INDENT}   ")
    if command:
        yield _INDENT + printable(command, _LIMIT)


def _like_it(group: FindingGroup, findings: Sequence[Finding]) -> str:
    """The other findings of a group, by their first tensors or their places, if those tell more."""
    places = [printable(finding.tensors[0], 80) if finding.tensors else finding.where for finding in findings[1:]]
    told = {group.where, group.cause, *group.tensors[: len(findings[0].tensors)]}
    places = [place for place in dict.fromkeys(places) if place not in told]
    if not places:
        return ""
    more = " ..." if len(places) > _LIKE_IT else ""
    return f"; and {len(places):,} more like it: {', '.join(places[:_LIKE_IT])}{more}"


def _wrapped(text: str, later: str) -> list[str]:
    """Break one line of text at spaces; whatever a file holds, it starts no line of its own."""
    return textwrap.wrap(
        printable(text, _LIMIT),
        _WIDTH,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _summary(report: CheckReport) -> str:
    if not report.readable:
        broken = len(report.diagnoses)
        of = f"{broken} of {report.files} files are" if report.files > 1 else "this is"
        return f"{report.model}: {of} not a readable GGUF; nothing else was checked"
    found = ", ".join(_number(report.count(severity), severity.name.lower()) for severity in reversed(Severity))
    by_rules = "by the rules " if report.load else ""  # an engine that was asked says its own
    able = " and ".join(report.able)
    verdict = f"{by_rules}no errors for {able}" if able else f"errors for {' and '.join(report.engines)}"
    files = f"{report.files:,} files, " if report.files > 1 else ""
    by = f"; judged by {', '.join(report.judged_by)}" if report.judged_by else ""
    gaps = f"; not judged: {', '.join(report.not_judged)}" if report.not_judged else ""
    asked = f"; {_engine_verdict(report.load)}" if report.load else ""
    judged = f"{report.tensors:,} tensors, {report.rules} rules{by}{gaps}"
    return f"{report.model}: {found}; {files}{judged}; {verdict}{asked}"


def _engine_verdict(load: LoadReport) -> str:
    words = {
        "accepted": "accepts the head, the vocabulary and the tensors; nothing was computed",
        "loaded": "loads it, with zeros for data; nothing was computed",
        "ran": f"loads it and generates {_number(load.tokens, 'token')}, with zeros for data",
        "unusable": "was not of use",
    }
    return f"{load.engine} {words.get(load.verdict, 'does not load it')}"


def _number(count: int, word: str) -> str:
    plural = "" if count == 1 or word == "info" else "s"
    return f"{count} {word}{plural}"
