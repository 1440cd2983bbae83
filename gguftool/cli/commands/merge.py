"""Commands that write: split, merge, swap, export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import (
    Align,
    DryRun,
    Force,
    ForceSizesOption,
    HashOption,
    InPlace,
    Jobs,
    Json,
    KeepFileType,
    ModelArgument,
    NoResume,
    NoSync,
    OptionalOutput,
    OutputOption,
    Pad,
    Patterns,
    Reserve,
    filler_of,
    local_name,
    local_path,
    one_target,
    size_option,
)
from gguftool.cli.shared.writing import Writing, carry_out, force_sizes_of, read_recipe, recover_first, with_inputs

if TYPE_CHECKING:
    from gguftool.format.tensors_map import MapEntry
    from gguftool.model.model import Model, ModelFile
    from gguftool.storage.plan import Plan


def split(
    model: ModelArgument,
    prefix: Annotated[
        str,
        typer.Argument(
            parser=local_name, metavar="PREFIX", help="Start of the shards' names: PREFIX-00001-of-00003.gguf."
        ),
    ],
    max_tensors: Annotated[int, typer.Option("--max-tensors", metavar="N", min=1, help="Tensors in a shard.")] = 1,
    max_size: Annotated[
        int | None,
        size_option("--max-size", help="Bytes in a shard, head and padding included; not with --max-tensors."),
    ] = None,
    bundle_small: Annotated[
        int | None,  # no default of 0: typer would run the size parser on it
        size_option("--bundle-small", help="Tensors smaller than this ride in shard 1; merge restores the order."),
    ] = None,
    tensor_first_split: Annotated[
        bool, typer.Option("--tensor-first-split", help="Let shard 1 hold tensors too, not only the metadata.")
    ] = False,
    naming: Annotated[
        str | None,
        typer.Option(
            "--naming",
            metavar="thireus",
            help="Name shards PREFIX-SPECIAL_TENSOR-...; PREFIX is MODEL-MAINTAINER-QTYPE.",
            show_default=False,
        ),
    ] = None,
    write_map: Annotated[bool, typer.Option("--map", help="Write tensors.map beside the shards.")] = False,
    align: Align = None,
    force_sizes: ForceSizesOption = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    no_resume: NoResume = False,
    hash_: HashOption = False,
    json: Json = False,
) -> None:
    """Take a model apart into shards.

    Engines load the set from its shard 1, which holds all metadata; merge restores the file byte for byte.
    """
    from gguftool.cli.commands.hash import write_map_of
    from gguftool.cli.shared.console import show_receipt
    from gguftool.format.labels import THIREUS_TAIL
    from gguftool.model.opening import open_model
    from gguftool.storage.execute.part import exists_already
    from gguftool.surgery.split import SplitOptions, plan_split

    if max_size is not None and max_tensors != 1:
        raise typer.BadParameter("--max-size and --max-tensors exclude each other")
    options = SplitOptions(
        max_tensors=max_tensors,
        max_size=max_size,
        bundle_small=bundle_small or 0,
        tensor_first=tensor_first_split,
        alignment=align,
        force_sizes=force_sizes_of(force_sizes),
    )
    if naming not in (None, "thireus"):
        raise typer.BadParameter(f"--naming takes thireus, not '{naming}'")
    if naming is not None:
        prefix += THIREUS_TAIL
    if write_map and (max_tensors != 1 or max_size is not None or bundle_small or tensor_first_split):
        raise typer.BadParameter("--map is for sets of one tensor a shard, with the metadata alone in shard 1")
    if write_map and not force and os.path.lexists(beside := Path(prefix).parent / "tensors.map"):
        raise exists_already(beside)  # said before the shards are written
    source = open_model(model)
    plan = plan_split(source, prefix, options)
    writing = Writing(force=force, sync=not no_sync, resume=not no_resume, jobs=jobs, hash=hash_)
    receipt = carry_out(plan, writing, dry_run=dry_run, json=json, hash_files=write_map)
    if write_map and receipt is not None:
        written = write_map_of(source, plan, receipt, force=force)
        if not json:  # the set's receipt is the one JSON document
            show_receipt(written, json=False)


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
    from gguftool.cli.shared.consume import asked_to_consume, confirm_removal, find_begun
    from gguftool.model.opening import open_model
    from gguftool.surgery.inputs import open_inputs
    from gguftool.surgery.merge import MergeOptions, merge_anchor, plan_merge
    from gguftool.surgery.selection import MixOptions

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
        mix=MixOptions(strict=strict, allow_fallback=allow_fallback),
        kv_from=open_model(kv_from) if kv_from is not None else None,
        max_size=max_size,
        keep_file_type=keep_file_type,
        allowed_mismatches=tuple(allow_kv_mismatch or ()),
        provenance=provenance,
        alignment=align,
        force_sizes=force_sizes_of(force_sizes),
        filler=filler_of(pad, reserve),
        consume=request,
    )
    inputs = open_inputs(models)
    plan = with_inputs(plan_merge(inputs, output, options), read)
    confirm_removal(plan, yes=yes or dry_run)
    if not (dry_run or no_verify):
        _verify_maps([source.model for source in inputs], plan)
    writing = Writing(force=force, sync=not no_sync, resume=not no_resume, jobs=jobs, hash=hash_)
    carry_out(plan, writing, dry_run=dry_run, json=json)


def swap(
    model: ModelArgument,
    donor: Annotated[
        str, typer.Option("--from", metavar="DONOR", help="A GGUF model or a .safetensors file to take tensors from.")
    ],
    tensor: Patterns,
    output: OptionalOutput = None,
    in_place: InPlace = False,
    keep_file_type: KeepFileType = False,
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
    """Replace tensors by a donor's.

    Shapes must agree, types may differ. Of a split set, OUT is the prefix of the new set. --in-place
    changes a single file where it is, which needs every tensor to take the same room as before; of a set it replaces
    the shards that change, whatever their size.
    """
    from gguftool.model.opening import open_model
    from gguftool.surgery.donors import open_donor
    from gguftool.surgery.swap import SwapOptions, plan_swap

    options = SwapOptions(
        keep_file_type=keep_file_type,
        alignment=align,
        force_sizes=force_sizes_of(force_sizes),
        filler=filler_of(pad, reserve, in_place=in_place),
    )
    output = one_target(output, in_place=in_place)
    if in_place:
        recover_first(model, dry_run=dry_run)
    plan = plan_swap(open_model(model), open_donor(donor), tensor, output, options)
    writing = Writing(force=force, sync=not no_sync, resume=not no_resume, jobs=jobs, hash=hash_)
    carry_out(plan, writing, dry_run=dry_run, json=json)


def export(
    model: ModelArgument,
    tensor: Patterns,
    output: Annotated[
        Path, typer.Option("-o", "--output", parser=local_path, metavar="FILE.safetensors", help="The file to write.")
    ],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="raw|f32|f16|bf16", help="Bytes as they are, or dequantized.")
    ] = "raw",
    jobs: Jobs = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    no_resume: NoResume = False,
    hash_: HashOption = False,
    json: Json = False,
) -> None:
    """Write tensors to a safetensors file.

    Raw tensors keep their ggml type and dims in the file's metadata; swap --from takes both kinds back.
    """
    from gguftool.model.opening import open_model
    from gguftool.surgery.dequantized_source import FloatType
    from gguftool.surgery.export import plan_export

    names = {kind.value: kind for kind in FloatType}
    if dtype != "raw" and dtype not in names:
        raise typer.BadParameter(f"--dtype takes raw, f32, f16 or bf16, not '{dtype}'")
    plan = plan_export(open_model(model), tensor, output, names.get(dtype))
    writing = Writing(force=force, sync=not no_sync, resume=not no_resume, jobs=jobs, hash=hash_)
    carry_out(plan, writing, dry_run=dry_run, json=json)


def _verify_maps(models: Sequence[Model], plan: Plan) -> None:
    """Hash the shards that `plan` reads and a tensors.map lies beside; raise one `SourceError` for all that differ."""
    from gguftool.errors import SourceError
    from gguftool.model.companions import find_maps
    from gguftool.storage.sources.source import is_remote

    bad: list[str] = []
    used = {use.name for use in plan.preview().uses}
    for model in models:
        # Hashing what is far away would fetch all of it, also what the plan does not use.
        files = [file for file in model.files if file.source.name in used and not is_remote(file.source)]
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
