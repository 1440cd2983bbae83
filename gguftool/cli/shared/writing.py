"""What all commands that write have in common: their options, the run, and what is said of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gguftool.errors import PlanError
from gguftool.record import record, replace
from gguftool.render.units import format_size

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe
    from gguftool.model.layout import ForceSizes
    from gguftool.storage.plan import Plan, Receipt, Request
    from gguftool.storage.sources.source import Source


def force_sizes_of(text: str | None) -> ForceSizes | None:
    """Return what --force-sizes says."""
    if text is None:
        return None
    from gguftool.model.layout import ForceSizes

    try:
        return ForceSizes(text)
    except ValueError:
        raise typer.BadParameter(f"--force-sizes takes gap or type, not '{text}'") from None


@record
class Writing:
    """What the options that every writer has say."""

    force: bool = False
    sync: bool = True
    resume: bool = True
    jobs: int | None = None
    hash: bool = False


def carry_out(plan: Plan, writing: Writing, *, dry_run: bool, json: bool, hash_files: bool = False) -> Receipt | None:
    """Show the plan and return None, or execute it and say what was written; `hash_files` is for the caller's use."""
    from gguftool.cli.shared.console import progress_bar, remark
    from gguftool.cli.shared.show import show_preview, show_receipt
    from gguftool.cli.shared.signals import publishing
    from gguftool.storage.execute.executor import execute
    from gguftool.storage.execute.options import Options

    preview = plan.preview()
    for text in preview.remarks:
        remark(text)
    if dry_run:
        show_preview(preview, json=json)
        return None
    with progress_bar(preview.bytes_copied) as progress:
        options = Options(
            force=writing.force,
            sync=writing.sync,
            resume=writing.resume,
            jobs=writing.jobs,
            hash_files=writing.hash or hash_files,
            hash_parts=writing.hash,
            progress=progress,
            note=remark,
            publishing=publishing,
        )
        receipt = execute(plan, options)
    show_receipt(
        receipt if writing.hash else replace(receipt, digests=None), json=json, model=plan.first_shard_path.name
    )
    return receipt


def recover_first(model: str, *, dry_run: bool) -> None:
    """Before a change in place: put right what an interrupted one left, and say so. A dry run writes nothing."""
    if dry_run:
        return  # opening the model refuses it then, naming the command
    from gguftool.cli.shared.console import remark
    from gguftool.model.recovery import recover_model

    for text in recover_model(model):
        remark(text)


def read_recipe(name: str | None) -> tuple[Recipe | None, tuple[Source, ...]]:
    """Return the recipe, and the file it was read from."""
    if name is None:
        return None, ()
    from gguftool.format.recipe import MAX_TEXT, parse_any
    from gguftool.storage.sources.locate import open_source

    source = open_source(name)
    return parse_any(source.read_at(0, min(source.size, MAX_TEXT + 1)), name), (source,)


def with_inputs(plan: Plan, read: Sequence[Source]) -> Plan:
    """Return `plan` with the files that the command line read besides the models: no output may be one of them."""
    return replace(plan, inputs=(*plan.inputs, *read))


# --- consume -------------------------------------------------------------------------------------------------------


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
