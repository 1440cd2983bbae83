"""Findings as people read them: grouped by cause, the worst first, each group with the one command that fixes it.

Findings have one cause if a rule says so (`Finding.cause`, a key), if they say in the same words why rules could not be
evaluated, or if they have the same code and differ only in numbers and names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gguftool.analysis.lint.rules import Finding, Severity
from gguftool.analysis.lint.titles import effect_of
from gguftool.record import record

_VARYING = re.compile(r"'[^']*'|\([^()]*\)|\b[\w.]+\.(?:weight|bias)\b|[0-9][0-9,.]*(?: x [0-9,.]+)*")


@record
class FindingGroup:
    """Findings with one cause; `findings` are their indices, the one that says most about the cause first.

    `message` and `where` are those of that finding, `severity` and `severity_there` the worst. `codes`, `engines` and
    `tensors` are those of all. `command` fixes them, "" if no single command does.
    """

    severity: Severity
    severity_there: Severity | None
    codes: tuple[str, ...]
    engines: tuple[str, ...]
    cause: str
    message: str
    where: str
    tensors: tuple[str, ...]
    way_out: str
    command: str
    findings: tuple[int, ...]


def grouped(findings: Sequence[Finding]) -> tuple[FindingGroup, ...]:
    """Group `findings` by cause; the worst group comes first."""
    found: dict[object, list[int]] = {}
    for at, finding in enumerate(findings):
        found.setdefault(_cause_of(finding), []).append(at)
    groups = [_group(findings, members) for members in found.values()]
    return tuple(sorted(groups, key=lambda group: (-group.severity, min(map(effect_of, group.codes)))))


def _cause_of(finding: Finding) -> object:
    if finding.undecided and finding.severity is Severity.INFO:
        return finding.message
    if finding.cause:
        return finding.cause, finding.severity
    template = _VARYING.sub("#", finding.message)
    # Findings that need different commands are different problems.
    return finding.code, finding.severity, finding.severity_there, finding.engines, template, finding.command


def _group(findings: Sequence[Finding], members: Sequence[int]) -> FindingGroup:
    order = sorted(members, key=lambda at: not findings[at].command)
    chosen = [findings[at] for at in order]
    first = chosen[0]
    there = [finding.severity_there for finding in chosen if finding.severity_there is not None]
    return FindingGroup(
        severity=max(finding.severity for finding in chosen),
        severity_there=max(there, default=None),
        codes=_each(finding.code for finding in chosen),
        engines=_each(engine for finding in chosen for engine in finding.engines),
        cause=first.cause,
        message=first.message,
        where=first.where,
        tensors=_each(name for finding in chosen for name in finding.tensors),
        way_out=first.way_out,
        command=first.command,
        findings=tuple(order),
    )


def _each(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
