"""The findings of a check as text: a paragraph for each cause with its fix, then a summary.

In a pipe it has 80 columns. On a terminal it fills the width, up to 100 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gguftool.analysis.lint.check import CheckReport, CheckReports
from gguftool.analysis.lint.groups import FindingGroup
from gguftool.analysis.lint.rules import Finding, Severity
from gguftool.analysis.lint.way_out import split_way_out
from gguftool.errors import printable
from gguftool.record import record
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.screen import wrapped

if TYPE_CHECKING:
    from gguftool.analysis.lint.loading import LoadReport

_LIMIT = 1 << 14
_WIDTH = 80
_WIDEST = 100  # longer lines of prose are hard to read
_LIKE_IT = 3  # findings of a group to name besides the first

_Wrap = Callable[..., list[str]]


@record
class CheckText:
    """Reports to show one after the other; each command has its own line and stays whole, however long it is."""

    reports: tuple[CheckReport, ...]

    def as_text(self) -> str:
        """Wrap the text at 80 columns; long names stay whole, so that other programs find them."""
        return self._text(_WIDTH, whole_words=True)

    def as_rich(self, width: int, /) -> str:
        """Wrap the text at `width` columns at most."""
        return self._text(min(width, _WIDEST), whole_words=False)

    def _text(self, width: int, *, whole_words: bool) -> str:
        wrap = partial(wrapped, width=width, whole_words=whole_words)
        return "\n".join(line for report in self.reports for line in _lines(report, wrap, width)) + "\n"


@renders(CheckReport, Format.TEXT)
def check_parts(report: CheckReport) -> tuple[CheckText]:
    """Render the report as text."""
    return (CheckText(reports=(report,)),)


@renders(CheckReports, Format.TEXT)
def reports_parts(checked: CheckReports) -> tuple[CheckText]:
    """Render the reports on several models, one after the other."""
    return (CheckText(reports=checked.reports),)


def _lines(report: CheckReport, wrap: _Wrap, width: int) -> Iterator[str]:
    findings = report.findings if report.readable else report.diagnoses
    for group in report.groups:
        yield from _group_lines(group, [findings[at] for at in group.findings], wrap, width)
    summary, verdict = _summary(report)
    yield from wrap(_tame(summary), later="    ")
    if verdict:  # on its own line: "no" and "errors" on two lines would be misread
        yield from wrap(f"    {_tame(verdict)}", later="    ")


def _group_lines(group: FindingGroup, findings: Sequence[Finding], wrap: _Wrap, width: int) -> Iterator[str]:
    indent = " " * (8 if width >= _WIDTH else 2)
    engines = f" [{', '.join(group.engines)}]" if group.engines else ""
    there = f" ({group.severity_there.name.lower()} there)" if group.severity_there is not None else ""
    place = f"{group.where}: " if group.where else ""
    head = f"{group.severity.name.lower():7} {', '.join(group.codes)}{engines}{there}"
    yield from wrap(_tame(f"{head} {place}{group.message}{_like_it(group, findings)}"), later=indent)
    words, command = split_way_out(group.way_out)
    if words:
        yield from wrap(_tame(f"{indent}-> {words}{':' if command else ''}"), later=f"{indent}   ")
    if command:
        yield indent + _tame(command)


def _like_it(group: FindingGroup, findings: Sequence[Finding]) -> str:
    """Name the other findings of a group by their first tensors or their places, if those add something."""
    places = [printable(finding.tensors[0], 80) if finding.tensors else finding.where for finding in findings[1:]]
    told = {group.where, group.cause, *group.tensors[: len(findings[0].tensors)]}
    places = [place for place in dict.fromkeys(places) if place not in told]
    if not places:
        return ""
    more = " ..." if len(places) > _LIKE_IT else ""
    return f"; and {len(places):,} more like it: {', '.join(places[:_LIKE_IT])}{more}"


def _tame(text: str) -> str:
    """Escape text to one line: nothing from a file can start a new line."""
    return printable(text, _LIMIT)


def _summary(report: CheckReport) -> tuple[str, str]:
    """Sum up what was found and judged, and give the verdict, empty if there is none."""
    if not report.readable:
        broken = len(report.diagnoses)
        of = f"{broken} of {report.files} files are" if report.files > 1 else "this is"
        return f"{report.model}: {of} not a readable GGUF; nothing else was checked", ""
    found = ", ".join(_number(report.count(severity), severity.name.lower()) for severity in reversed(Severity))
    by_rules = "by the rules " if report.load else ""  # an engine that was asked has its own verdict
    able = " and ".join(report.able)
    verdict = f"{by_rules}no errors for {able}" if able else f"errors for {' and '.join(report.engines)}"
    files = f"{report.files:,} files, " if report.files > 1 else ""
    by = f"; judged by {', '.join(report.judged_by)}" if report.judged_by else ""
    gaps = f"; not judged: {', '.join(report.not_judged)}" if report.not_judged else ""
    asked = f"; {_engine_verdict(report.load)}" if report.load else ""
    judged = f"{report.tensors:,} tensors, {report.rules} rules{by}{gaps}"
    return f"{report.model}: {found}; {files}{judged};", f"{verdict}{asked}"


def _engine_verdict(load: LoadReport) -> str:
    words = {
        "accepted": "accepts the head, the vocabulary and the tensors; nothing was computed",
        "loaded": "loads it, with zeros for data; nothing was computed",
        "ran": f"loads it and generates {_number(load.tokens, 'token')}, with zeros for data",
        "unusable": "could not be used",
    }
    return f"{load.engine} {words.get(load.verdict, 'does not load it')}"


def _number(count: int, word: str) -> str:
    plural = "" if count == 1 or word == "info" else "s"
    return f"{count} {word}{plural}"
