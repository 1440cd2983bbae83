"""The findings of a check as text: a line for each, the way out below it, a summary at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gguftool.analysis.lint.check import CheckReport
from gguftool.analysis.lint.rules import Finding, Severity
from gguftool.errors import printable
from gguftool.render.format import Format
from gguftool.render.registry import renders

if TYPE_CHECKING:
    from gguftool.analysis.lint.loading import LoadReport

_LIMIT = 1 << 14


@renders(CheckReport, Format.TEXT)
def check_text(report: CheckReport) -> str:
    """The report as text; whatever a file holds, one line stays one line."""
    return "\n".join(printable(line, _LIMIT) for line in _lines(report)) + "\n"


def _lines(report: CheckReport) -> Iterator[str]:
    for finding in (*report.diagnoses, *report.findings):
        yield from _finding_lines(finding)
    yield _summary(report)


def _finding_lines(finding: Finding) -> Iterator[str]:
    engines = f" [{', '.join(finding.engines)}]" if finding.engines else ""
    there = f" ({finding.severity_there.name.lower()} there)" if finding.severity_there is not None else ""
    place = f"{finding.where}: " if finding.where else ""
    yield f"{finding.severity.name.lower():7} {finding.code}{engines}{there} {place}{finding.message}"
    if finding.way_out:
        yield f"        -> {finding.way_out}"


def _summary(report: CheckReport) -> str:
    if not report.readable:
        broken = len(report.diagnoses)
        of = f"{broken} of {report.files} files are" if report.files > 1 else "this is"
        return f"{report.model}: {of} not a readable GGUF; nothing else was checked"
    found = ", ".join(_number(report.count(severity), severity.name.lower()) for severity in reversed(Severity))
    verdict = (
        f"no errors for {' and '.join(report.able)}" if report.able else f"errors for {' and '.join(report.engines)}"
    )
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
