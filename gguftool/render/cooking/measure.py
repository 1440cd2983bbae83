"""The output of `gguftool measure`: what a run would do, or what it did."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.cooking.measuring.run import MeasurePlan, MeasureReport
from gguftool.errors import printable
from gguftool.render.cooking.quantize import duration
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.table import Table, columns

_SHOWN = 40  # tasks


@renders(MeasurePlan, Format.TEXT)
def measure_plan_parts(plan: MeasurePlan) -> Iterator[str | Table]:
    """List the tasks that are left, and what they need."""
    rows = [(printable(task.group), task.type, f"{len(task.tensors):,}") for task in plan.tasks[:_SHOWN]]
    if len(plan.tasks) > _SHOWN:
        rows.append((f"and {len(plan.tasks) - _SHOWN:,} more", "", ""))
    heads = columns("group", "type", ">tensors")
    if rows:
        yield Table(title=f"{len(plan.tasks):,} to measure", columns=heads, rows=tuple(rows))
    yield "".join(f"{line}\n" for line in _plan_lines(plan))


def _plan_lines(plan: MeasurePlan) -> Iterator[str]:
    if plan.done:
        yield f"{plan.done:,} already measured, in {plan.output}"
    if not plan.tasks and plan.floor_is_there:
        yield "nothing left to measure"
        return
    yield f"during the run, in {plan.folder}:"
    yield f"  {plan.logits_bytes:,} bytes of the reference's logits"
    yield f"  {plan.scratch_bytes:,} bytes of scratch copies, less where the file system shares blocks"
    yield f"about {duration(plan.seconds)}, by a rule of thumb, until the engine has run once"


@renders(MeasureReport, Format.TEXT)
def measure_report_text(report: MeasureReport) -> str:
    """Sum up in one line what was written, and what was already there."""
    there = f", {report.skipped:,} were already there" if report.skipped else ""
    failed = f", {len(report.failed):,} failed" if report.failed else ""
    return f"{report.output}: {report.written:,} lines written{there}{failed}\n"
