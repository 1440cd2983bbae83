"""Commands that write: split, merge, swap, export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import (
    Align,
    DryRun,
    Force,
    ForceSizesOption,
    HashOption,
    Jobs,
    Json,
    KeepFileType,
    NoResume,
    NoSync,
    OutputOption,
    Pad,
    Reserve,
    filler_of,
    size_option,
)
from gguftool.cli.shared.writing import Writing, carry_out, force_sizes_of, read_recipe, with_inputs

if TYPE_CHECKING:
    from gguftool.format.tensors_map import MapEntry
    from gguftool.model.model import Model, ModelFile
    from gguftool.storage.plan import Plan


def merge(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL=]MODEL...",
            help="GGUF files, shards, folders or quoted globs; LABEL is what a recipe calls it.",
        ),
    ],
    output: OutputOption,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE", help="Which tensor comes in which type.", show_default=False),
    ] = None,
    kv_from: Annotated[
        str | None,
        typer.Option(
            "--kv-from",
            metavar="MODEL",
            help="Whose metadata. Default: the first input with a general.architecture.",
            show_default=False,
        ),
    ] = None,
    max_size: Annotated[
        int | None, size_option("--max-size", help="Write a set of files up to this size; OUT is their prefix.")
    ] = None,
    keep_file_type: KeepFileType = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Take a tensor in exactly the recipe's type or not.")
    ] = False,
    allow_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-fallback", help="Where no input has the type, take what llama-quantize would have fallen back to."
        ),
    ] = False,
    allow_kv_mismatch: Annotated[
        list[str] | None,
        typer.Option("--allow-kv-mismatch", metavar="KEY", help="Let inputs differ in KEY. Repeatable."),
    ] = None,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Add gguftool.source.*: which file each tensor came from.")
    ] = False,
    consume: Annotated[  # noqa: ARG001 - asked of the context, with all others
        bool, typer.Option("--consume", help="Remove each input as soon as its bytes are safe in the output.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before --consume removes files.")] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not hash shards that a tensors.map lies beside.")
    ] = False,
    align: Align = None,
    pad: Pad = False,
    reserve: Reserve = 0,
    force_sizes: ForceSizesOption = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    no_resume: NoResume = False,
    hash_: HashOption = False,
    json: Json = False,
) -> None:
    """Put shards, or a mix of several quants, together.

    Each tensor must come from exactly one input, or a recipe says in which type it is taken. Offsets are dense,
    split.* keys are gone, the metadata is true for the mix.
    """
    from gguftool.cli.shared.writing import asked_to_consume, confirm_removal, find_begun
    from gguftool.model.layout import OutputOptions
    from gguftool.model.opening import open_model
    from gguftool.surgery.inputs import open_inputs
    from gguftool.surgery.merge import MergeOptions, merge_anchor, plan_merge
    from gguftool.surgery.selection import SelectionOptions

    if strict and allow_fallback:
        raise typer.BadParameter("--strict and --allow-fallback exclude each other")
    anchor = merge_anchor(output, max_size)
    request = asked_to_consume(context)
    begun = find_begun(anchor, request, anew=no_resume, dry_run=dry_run)
    if begun is not None:
        confirm_removal(begun, yes=yes or dry_run)
        carry_out(begun, Writing(force=force, jobs=jobs, hash=hash_), dry_run=dry_run, json=json)
        return
    rules, read = read_recipe(recipe)
    options = MergeOptions(
        recipe=rules,
        selection=SelectionOptions(strict=strict, allow_fallback=allow_fallback),
        kv_from=open_model(kv_from) if kv_from is not None else None,
        allowed_mismatches=tuple(allow_kv_mismatch or ()),
        provenance=provenance,
        output=OutputOptions(
            alignment=align,
            force_sizes=force_sizes_of(force_sizes),
            filler=filler_of(pad, reserve),
            max_size=max_size,
            keep_file_type=keep_file_type,
        ),
        consume=request,
    )
    inputs = open_inputs(models)
    plan = with_inputs(plan_merge(inputs, output, options), read)
    confirm_removal(plan, yes=yes or dry_run)
    if not (dry_run or no_verify):
        _verify_maps([source.model for source in inputs], plan)
    writing = Writing(force=force, sync=not no_sync, resume=not no_resume, jobs=jobs, hash=hash_)
    carry_out(plan, writing, dry_run=dry_run, json=json)


def _verify_maps(models: Sequence[Model], plan: Plan) -> None:
    """Hash the shards that `plan` reads and a tensors.map lies beside; raise one `SourceError` for all that differ."""
    from gguftool.errors import SourceError
    from gguftool.model.companions import find_maps

    bad: list[str] = []
    used = {use.name for use in plan.preview().uses}
    for model in models:
        # Hashing what is far away would fetch all of it, also what the plan does not use.
        files = [file for file in model.files if file.source.name in used and not file.source.is_remote]
        entries = tuple(entry for entries in find_maps(files).values() for entry in entries)
        if entries:
            bad += _differing(files, entries)
    if bad:
        raise SourceError(f"{len(bad)} shard(s) are not what their tensors.map says: {'; '.join(bad)}")


def _differing(files: Sequence[ModelFile], entries: tuple[MapEntry, ...]) -> Iterator[str]:
    """Yield what is not as `entries` of a tensors.map say."""
    from gguftool.analysis.verify import verify_against_map
    from gguftool.cli.shared.console import progress_bar

    with progress_bar(sum(file.source.size for file in files)) as progress:
        verdicts = verify_against_map(files, entries, None, progress)
    yield from (f"{verdict.name}: {verdict.detail}" for verdict in verdicts if verdict.ok is False)
