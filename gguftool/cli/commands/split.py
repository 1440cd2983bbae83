"""The split command: split a model into shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gguftool.cli.shared.options import ModelArgument, local_name, size_option
from gguftool.cli.shared.running import carry_out, output_options
from gguftool.cli.shared.show import show_receipt
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.errors import did_you_mean, printable
from gguftool.format.file_names import THIREUS_TAIL
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import exists_already
from gguftool.storage.plan import Plan, Receipt
from gguftool.surgery.split import SplitOptions, plan_split
from gguftool.surgery.tensors_map import plan_tensors_map_of_split


@writer("align", "force_sizes")
def split(
    model: ModelArgument,
    prefix: Annotated[
        str,
        typer.Argument(
            parser=local_name, metavar="PREFIX", help="Start of the shards' names: PREFIX-00001-of-00003.gguf."
        ),
    ],
    max_tensors: Annotated[int, typer.Option("--max-tensors", metavar="N", min=1, help="Tensors per shard.")] = 1,
    max_size: Annotated[
        int | None,
        size_option("--max-size", help="Bytes per shard, head and padding included; not with --max-tensors."),
    ] = None,
    bundle_small: Annotated[
        int | None,  # no default of 0: typer would run the size parser on it
        size_option("--bundle-small", help="Put tensors smaller than this into shard 1; merge restores the order."),
    ] = None,
    tensor_first_split: Annotated[
        bool, typer.Option("--tensor-first-split", help="Let shard 1 hold tensors, not only the metadata.")
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
    write_map: Annotated[bool, typer.Option("--map", help="Write tensors.map next to the shards.")] = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Split a model into shards.

    Engines load the set from its shard 1, which holds all metadata; merge restores the file byte for byte.

    Two ways to use it:

    \b
    gguftool split model.gguf shards/model --max-size 48G
    gguftool split model.gguf shards/model --map
    """  # noqa: D301 - \b keeps the lines of a paragraph
    if max_size is not None and max_tensors != 1:
        raise typer.BadParameter("--max-size and --max-tensors exclude each other")
    options = SplitOptions(
        max_tensors=max_tensors,
        bundle_small=bundle_small or 0,
        tensor_first=tensor_first_split,
        output=output_options(layout, max_size=max_size),
    )
    if naming not in (None, "thireus"):
        near = did_you_mean(naming, ("thireus",))
        raise typer.BadParameter(f"--naming takes thireus, not '{printable(naming)}'{near}")
    if naming is not None:
        prefix += THIREUS_TAIL
    if write_map and (max_tensors != 1 or max_size is not None or bundle_small or tensor_first_split):
        raise typer.BadParameter("--map is for sets with one tensor per shard and only metadata in shard 1")
    if write_map and not writing.force and os.path.lexists(beside := Path(prefix).parent / "tensors.map"):
        raise exists_already(beside)  # before the shards are written
    source = open_model(model)
    plan = plan_split(source, prefix, options)
    receipt = carry_out(plan, writing, hash_files=write_map)
    if write_map and receipt is not None:
        written = _write_map(source, plan, receipt, force=writing.force)
        if not writing.json:  # the set's receipt is the one JSON document
            show_receipt(written, json=False)


def _write_map(model: Model, plan: Plan, receipt: Receipt, *, force: bool) -> Receipt:
    """Write tensors.map next to the shards that `plan` made of `model`, from the hashes in their receipt."""
    digests = receipt.digests.files if receipt.digests is not None else ()
    return execute(plan_tensors_map_of_split(model, plan, [one.sha256 for one in digests]), Options(force=force))
