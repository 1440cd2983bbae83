"""The merge command.

Unlike in other commands, the modules that plan and write are imported where they are used: imported at the top, they
would make `merge --help` take 1.4 times as long (benchmarks/startup.py holds its limit).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.console import remark
from gguftool.cli.shared.options import KeepFileType, MaxSize, OutputOption
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.errors import PlanError
from gguftool.record import replace
from gguftool.render.units import format_size

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe
    from gguftool.storage.plan import Plan, Request
    from gguftool.storage.sources.source import Source
    from gguftool.surgery.inputs import Input

# Options that change how the command runs, but not the output.
_OF_A_RUN = frozenset(
    {
        "models",
        "output",
        "consume",
        "yes",
        "no_verify",
        "engine",
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


@writer("align", "pad", "reserve", "force_sizes", "engine", "anyway")
def merge(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL=]MODEL...",
            help="GGUF files, shards, folders or quoted globs; LABEL is the recipe's name for one.",
        ),
    ],
    output: OutputOption,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="FILE", help="The recipe, which gives each tensor its type.", show_default=False
        ),
    ] = None,
    kv_from: Annotated[
        str | None,
        typer.Option(
            "--kv-from",
            metavar="MODEL",
            help="Take the metadata from here. Default: the first input with a general.architecture.",
            show_default=False,
        ),
    ] = None,
    max_size: MaxSize = None,
    keep_file_type: KeepFileType = False,
    true_file_type: Annotated[
        bool, typer.Option("--true-file-type", help="Set general.file_type by the type that most elements have.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Take a tensor only in exactly the recipe's type.")] = False,
    allow_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-fallback", help="If no input has the type, take the one that llama-quantize would fall back to."
        ),
    ] = False,
    allow_kv_mismatch: Annotated[
        list[str] | None,
        typer.Option("--allow-kv-mismatch", metavar="KEY", help="Let inputs differ in KEY. Repeatable."),
    ] = None,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Add gguftool.source.*: which file each tensor came from.")
    ] = False,
    consume: Annotated[  # noqa: ARG001 - read from the context, with all other options
        bool, typer.Option("--consume", help="Remove each input as soon as its bytes are safe in the output.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before --consume removes files.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not hash shards that have a tensors.map next to them.")
    ] = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Merge shards, or a mix of several quants, into one model.

    Each tensor must come from exactly one input, unless a recipe says in which type to take it. The output has dense
    offsets, no split.* keys, and metadata that is true for the mix.

    Two ways to use it:

    \b
    gguftool merge model-00001-of-00003.gguf -o model.gguf
    gguftool merge q4_K.gguf q6_K.gguf --recipe my.recipe -o mix.gguf
    """  # noqa: D301 - \b keeps the lines of a paragraph
    from gguftool.cli.shared.running import carry_out, output_options, with_inputs
    from gguftool.model.opening import open_model
    from gguftool.surgery.inputs import open_inputs
    from gguftool.surgery.merge import MergeOptions, merge_anchor, plan_merge
    from gguftool.surgery.selection import SelectionOptions

    if strict and allow_fallback:
        raise typer.BadParameter("--strict and --allow-fallback exclude each other")
    if keep_file_type and true_file_type:
        raise typer.BadParameter("--keep-file-type and --true-file-type exclude each other")
    request = _consume_request(context)
    layout_options = output_options(layout, max_size=max_size, keep_file_type=keep_file_type)

    def plan_now() -> tuple[Plan, Sequence[Input]]:
        rules, read = _read_recipe(recipe)
        options = MergeOptions(
            recipe=rules,
            selection=SelectionOptions(strict=strict, allow_fallback=allow_fallback),
            kv_from=open_model(kv_from) if kv_from is not None else None,
            allowed_mismatches=tuple(allow_kv_mismatch or ()),
            provenance=provenance,
            output=replace(layout_options, true_file_type=true_file_type),
            consume=request,
        )
        inputs = open_inputs(models)
        return with_inputs(plan_merge(inputs, output, options), read), inputs

    begun = _find_begun(merge_anchor(output, max_size), request, writing, lambda: plan_now()[0])
    if begun is not None:
        _confirm_removal(begun, yes=yes or writing.dry_run)
        carry_out(begun, replace(writing, sync=True, resume=True))
        return
    plan, inputs = plan_now()
    _confirm_removal(plan, yes=yes or writing.dry_run)
    if not (writing.dry_run or no_verify):
        from gguftool.cli.shared.maps import verify_maps

        verify_maps([source.model for source in inputs], plan)
    carry_out(plan, writing)


def _read_recipe(name: str | None) -> tuple[Recipe | None, tuple[Source, ...]]:
    if name is None:
        return None, ()
    from gguftool.cli.shared.recipes import read_recipe

    recipe, source = read_recipe(name)
    return recipe, (source,)


# --- consume ---------------------------------------------------------------------------------------------------------


def _consume_request(context: typer.Context) -> Request | None:
    """Record the command line for the journal, or return None without --consume; refuse contradictions."""
    from gguftool.storage.plan import Request
    from gguftool.surgery.inputs import models_named

    given = context.params
    if not given["consume"]:
        if given["yes"]:
            raise typer.BadParameter("--yes belongs to --consume")
        return None
    if given["no_sync"]:
        raise typer.BadParameter("--consume removes inputs, so the output must be durable: leave out --no-sync")
    options = tuple(
        f"--{name.replace('_', '-')}={os.path.abspath(value) if name in _PATHS else value}"
        for name, value in sorted(given.items())
        if value and name not in _OF_A_RUN
    )
    return Request(models=tuple(os.path.abspath(name) for name in models_named(given["models"])), options=options)


def _find_begun(anchor: Path, request: Request | None, writing: Writing, plan_again: Callable[[], Plan]) -> Plan | None:
    """Find the plan that a run of the same command began; None if there was no run, or --no-resume discards its plan.

    Raises `ExecuteError` if another command began, before inputs are found to be missing, or if the journal does not
    belong to this merge.
    """
    from gguftool.storage.execute.part import refuse_only_copies

    if request is None:
        refuse_only_copies([anchor])
        return None
    from gguftool.storage.execute.consume_state import discard_unused
    from gguftool.surgery.removable import find_begun

    if not writing.resume:
        if not writing.dry_run:
            discard_unused(anchor)
        return None
    plan = find_begun(anchor, request, plan_again)
    if plan is not None and plan.consume is not None:
        gone = sum(step.frees for step in plan.consume.steps) - len(plan.consume.freed)
        remark(f"resuming an interrupted run: {gone:,} input file(s) are already in its part file, and removed")
    return plan


def _confirm_removal(plan: Plan, *, yes: bool) -> None:
    """Ask before `plan` removes inputs; without a terminal to ask on, --yes is needed."""
    freed = plan.consume.freed if plan.consume is not None else ()
    if yes or not freed:
        return
    files = f"{len(freed):,} input file(s) ({format_size(sum(source.size for source in freed))})"
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter(f"--consume would remove {files}; --yes allows it (--dry-run lists them)")
    if not typer.confirm(f"Remove {files} as they are merged, {freed[0].name} to {freed[-1].name}?", err=True):
        raise PlanError("not confirmed: nothing was removed, nothing was written")
