"""The split command: one model to many shards."""

from __future__ import annotations

import os
from pathlib import Path
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
    ModelArgument,
    NoResume,
    NoSync,
    local_name,
    size_option,
)
from gguftool.cli.shared.writing import Writing, carry_out, force_sizes_of

if TYPE_CHECKING:
    pass


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
    from gguftool.cli.shared.show import show_receipt
    from gguftool.format.file_names import THIREUS_TAIL
    from gguftool.model.layout import OutputOptions
    from gguftool.model.opening import open_model
    from gguftool.storage.execute.part import exists_already
    from gguftool.surgery.split import SplitOptions, plan_split

    if max_size is not None and max_tensors != 1:
        raise typer.BadParameter("--max-size and --max-tensors exclude each other")
    options = SplitOptions(
        max_tensors=max_tensors,
        bundle_small=bundle_small or 0,
        tensor_first=tensor_first_split,
        output=OutputOptions(alignment=align, force_sizes=force_sizes_of(force_sizes), max_size=max_size),
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
