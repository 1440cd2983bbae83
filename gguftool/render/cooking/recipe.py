"""A checked recipe as text: the prediction, the findings, the rules, the types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguftool.analysis.lint.rules import Finding, Severity
from gguftool.analysis.recipe import RecipeFinding, RecipeReport
from gguftool.errors import listed, printable
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.table import Table, columns
from gguftool.render.units import format_size

_NAMES_SHOWN = 4


@renders(RecipeReport, Format.TEXT)
def recipe_parts(report: RecipeReport) -> Iterator[str | Table]:
    """Yield the summary, and tables of the rules and of the types."""
    yield _summary(report)
    yield from _tables(report)


def _summary(report: RecipeReport) -> str:
    """Sum up the prediction and the findings, the worst first."""
    mix = "" if report.preset is None else f" and preset {report.preset}"
    lines = [
        f"{printable(report.recipe, 4096)}: {len(report.rules):,} rules{mix} for {report.tensors:,} tensors of "
        f"{printable(report.model, 4096)}",
        f"predicted: {report.nbytes:,} bytes ({format_size(report.nbytes)}), {report.bits_per_weight:g} bits per "
        f"weight, with the fallbacks of {report.engine}; the model has {report.model_nbytes:,} bytes "
        f"({format_size(report.model_nbytes)}), {report.model_bits_per_weight:g}",
    ]
    if report.unpredicted:
        unknown = f"{len(report.unpredicted):,} of these tensors"
        lines.append(f"counted at their present size, because their type is unknown: {unknown}")
    found = [(finding.severity, _line(finding)) for finding in report.findings]
    found += _head_lines(report.head)
    lines += [line for _, line in sorted(found, key=lambda entry: -entry[0])]
    return "\n".join(lines) + "\n"


def _tables(report: RecipeReport) -> tuple[Table, ...]:
    """Make tables of the rules with the tensors that they take, and of the types with their shares."""
    rules = tuple(
        (str(use.line), f"{use.tensors:,}", f"{use.matches:,}", use.target, use.pattern) for use in report.rules
    )
    types = tuple(
        (
            share.type,
            f"{share.tensors:,}",
            f"{share.nbytes:,}",
            f"{100 * share.nbytes / report.nbytes:.1f}%" if report.nbytes else "",
            f"{share.nbytes * 8 / share.elements:.4g}" if share.elements else "",
        )
        for share in report.types
    )
    heads = columns(">line", ">takes", ">matches", "type", "pattern")
    return (
        Table(title="rules", columns=heads, rows=rules, drop=("matches", "takes")),
        Table(title="types", columns=columns("type", ">tensors", ">bytes", ">share", ">bpw"), rows=types),
    )


def _line(finding: RecipeFinding) -> str:
    place = "" if finding.line is None else f"line {finding.line}: "
    names = f" ({listed(finding.tensors, _NAMES_SHOWN)})" if finding.tensors else ""
    return f"{finding.severity.name.lower()}: {place}{printable(finding.message, 4096)}{names} [{finding.code}]"


def _head_lines(findings: Sequence[Finding]) -> Iterator[tuple[Severity, str]]:
    """Write a line for each finding about the predicted head; for an engine that the mix is not for, one per code."""
    elsewhere: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for finding in findings:
        if finding.severity_there is Severity.ERROR:
            elsewhere.setdefault((finding.code, finding.engines), []).extend(finding.tensors)
        else:
            yield finding.severity, _head_line(finding)
    for (code, engines), names in elsewhere.items():
        shown = f" ({listed(names, _NAMES_SHOWN)})" if names else ""
        yield Severity.INFO, f"info: not for {' and '.join(engines)}{shown} [{code}]"


def _head_line(finding: Finding) -> str:
    there = "" if finding.severity_there is None else f", a {finding.severity_there.name.lower()} there"
    engines = f" {', '.join(finding.engines)}{there}" if finding.engines else ""
    place = f"{finding.where}: " if finding.where else ""
    way_out = f"; {finding.way_out}" if finding.way_out else ""
    text = printable(f"{place}{finding.message}{way_out}", 4096)
    return f"{finding.severity.name.lower()}: {text} [{finding.code}{engines}]"
