"""`merge --consume`: what was begun, by which command, and whether the user means it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gguftool.errors import PlanError
from gguftool.render.units import format_size

if TYPE_CHECKING:
    from gguftool.storage.plan import Plan, Request


# Options that say how to run, and not what comes out.
_OF_A_RUN = frozenset(
    {
        "models",
        "output",
        "consume",
        "yes",
        "no_verify",
        "jobs",
        "dry_run",
        "force",
        "no_sync",
        "no_resume",
        "hash_",
        "hash",
        "json",
    }
)
_PATHS = frozenset({"recipe", "kv_from"})


def asked_to_consume(context: typer.Context) -> Request | None:
    """Return what a journal keeps of the command line, None without --consume; refuse what does not go with it."""
    from gguftool.storage.plan import Request
    from gguftool.surgery.inputs import models_named

    asked = context.params
    if not asked["consume"]:
        if asked["yes"]:
            raise typer.BadParameter("--yes belongs to --consume")
        return None
    if asked["no_sync"]:
        raise typer.BadParameter("--consume removes inputs, so the output must be durable: not with --no-sync")
    options = {name: value for name, value in sorted(asked.items()) if value and name not in _OF_A_RUN}
    said = tuple(
        f"--{name.replace('_', '-')}={os.path.abspath(value) if name in _PATHS else value}"
        for name, value in options.items()
    )
    return Request(models=tuple(os.path.abspath(name) for name in models_named(asked["models"])), options=said)


def find_begun(anchor: Path, request: Request | None, *, anew: bool, dry_run: bool) -> Plan | None:
    """Return the plan that the same command began, None where there is none, or it may start anew.

    Raises `ExecuteError` where another command began: said before inputs are found to be missing.
    """
    from gguftool.storage.execute.part import refuse_only_copies

    if request is None:
        refuse_only_copies([anchor])
        return None
    from gguftool.cli.shared.console import remark
    from gguftool.storage.execute.consume_state import discard_unused, find_unfinished

    if anew:
        if not dry_run:
            discard_unused(anchor)
        return None
    plan = find_unfinished(anchor, request)
    if plan is not None and plan.consume is not None:
        gone = sum(step.frees for step in plan.consume.steps) - len(plan.consume.freed)
        remark(f"going on with an interrupted run: {gone:,} input file(s) are in its part file already, and removed")
    return plan


def confirm_removal(plan: Plan, *, yes: bool) -> None:
    """Ask whether the inputs that `plan` removes may go; without a terminal to ask on, --yes must say so."""
    freed = plan.consume.freed if plan.consume is not None else ()
    if yes or not freed:
        return
    what = f"{len(freed):,} input file(s) ({format_size(sum(source.size for source in freed))})"
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter(f"--consume would remove {what}; --yes says that it may (--dry-run lists them)")
    if not typer.confirm(f"Remove {what} as they are merged, {freed[0].name} to {freed[-1].name}?", err=True):
        raise PlanError("not confirmed: nothing was removed, nothing was written")
