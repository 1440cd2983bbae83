"""`merge --consume`: what was begun, by which command, and whether the user means it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gguftool.render.units import format_size

if TYPE_CHECKING:
    from gguftool.storage.plan import Plan, Request


def request_of(models: Sequence[str], options: Mapping[str, object]) -> Request:
    """Return what a journal keeps of a command line: models as absolute paths, and the options that were given."""
    from gguftool.storage.plan import Request
    from gguftool.surgery.inputs import models_named

    given = tuple(f"{name}={value}" for name, value in options.items() if value)
    return Request(models=tuple(os.path.abspath(name) for name in models_named(models)), options=given)


def go_on(anchor: Path, request: Request, *, anew: bool, dry_run: bool) -> Plan | None:
    """Return the plan that the same command began, None where there is none, or it may start anew."""
    from gguftool.cli.output import remark
    from gguftool.storage.consume import discard_unused, find_unfinished

    if anew:
        if not dry_run:
            discard_unused(anchor)
        return None
    plan = find_unfinished(anchor, request)
    if plan is not None and plan.consume is not None:
        gone = sum(step.frees for step in plan.consume.steps) - len(plan.consume.freed)
        remark(f"an interrupted run is gone on with: {gone:,} input file(s) are in its part file already, and removed")
    return plan


def refuse_begun(anchor: Path) -> None:
    """Refuse an output that a merge --consume began: said before inputs are found to be missing."""
    from gguftool.storage.consume import refuse_only_copies

    refuse_only_copies([anchor])


def confirm_removal(plan: Plan, *, yes: bool) -> None:
    """Ask whether the inputs that `plan` removes may go; without a terminal to ask on, --yes must say so."""
    freed = plan.consume.freed if plan.consume is not None else ()
    if yes or not freed:
        return
    what = f"{len(freed):,} input file(s) ({format_size(sum(source.size for source in freed))})"
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter(f"--consume would remove {what}; --yes says that it may (--dry-run lists them)")
    if not typer.confirm(f"Remove {what} as they are merged, {freed[0].name} to {freed[-1].name}?", err=True):
        raise typer.BadParameter("nothing was removed, nothing was written")
