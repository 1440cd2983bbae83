"""What all commands that write have in common: their options, the run, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from gguftool.record import record, replace

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe
    from gguftool.model.layout import ForceSizes
    from gguftool.storage.execute.receipt import Receipt
    from gguftool.storage.plan import Plan
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
    from gguftool.cli.shared.console import progress_bar, remark, show_preview, show_receipt
    from gguftool.cli.shared.signals import publishing
    from gguftool.storage.execute.executor import Options, execute

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
    show_receipt(receipt if writing.hash else replace(receipt, digests=None), json=json, model=plan.gate_path.name)
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
