"""Commands that write: split, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.options import (
    Align,
    DryRun,
    Force,
    ForceSizesOption,
    Json,
    ModelArgument,
    ModelsArgument,
    NoSync,
    OutputOption,
    size_option,
)

if TYPE_CHECKING:
    from gguftool.model.layout import ForceSizes
    from gguftool.storage.plan import Plan


def split(
    model: ModelArgument,
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Start of the shards' names: PREFIX-00001-of-00003.gguf.")
    ],
    max_tensors: Annotated[int, typer.Option("--max-tensors", metavar="N", min=1, help="Tensors in a shard.")] = 1,
    max_size: Annotated[
        int | None,
        size_option("--max-size", help="Bytes in a shard, head and padding included; not with --max-tensors."),
    ] = None,
    bundle_small: Annotated[
        int, size_option("--bundle-small", help="Tensors smaller than this ride in shard 1; merge restores the order.")
    ] = 0,
    tensor_first_split: Annotated[
        bool, typer.Option("--tensor-first-split", help="Let shard 1 hold tensors too, not only the metadata.")
    ] = False,
    align: Align = None,
    force_sizes: ForceSizesOption = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    json: Json = False,
) -> None:
    """Take a model apart into shards.

    Engines load the set from its shard 1, which holds all metadata; merge restores the file byte for byte.
    """
    from gguftool.model.opening import open_model
    from gguftool.surgery.split import SplitOptions, plan_split

    if max_size is not None and max_tensors != 1:
        raise typer.BadParameter("--max-size and --max-tensors exclude each other")
    options = SplitOptions(
        max_tensors=max_tensors,
        max_size=max_size,
        bundle_small=bundle_small,
        tensor_first=tensor_first_split,
        alignment=align,
        force_sizes=_force_sizes(force_sizes),
    )
    _carry_out(
        plan_split(open_model(model), prefix, options), dry_run=dry_run, force=force, sync=not no_sync, json=json
    )


def merge(
    models: ModelsArgument,
    output: OutputOption,
    align: Align = None,
    force_sizes: ForceSizesOption = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    json: Json = False,
) -> None:
    """Put shards together into one file.

    Offsets are dense, split.* keys are gone, everything else is as it was.
    """
    from gguftool.model.opening import open_model
    from gguftool.surgery.merge import MergeOptions, plan_merge

    options = MergeOptions(alignment=align, force_sizes=_force_sizes(force_sizes))
    plan = plan_merge([open_model(*models)], output, options)
    _carry_out(plan, dry_run=dry_run, force=force, sync=not no_sync, json=json)


def _force_sizes(text: str | None) -> ForceSizes | None:
    from gguftool.model.layout import ForceSizes

    if text is None:
        return None
    try:
        return ForceSizes(text)
    except ValueError:
        raise typer.BadParameter(f"--force-sizes takes gap or type, not '{text}'") from None


def _carry_out(plan: Plan, *, dry_run: bool, force: bool, sync: bool, json: bool) -> None:
    """Show the plan, or execute it and say what was written."""
    from gguftool.cli.output import progress_bar, remark, write
    from gguftool.render.as_json import render_json
    from gguftool.render.plan import preview_text, receipt_text
    from gguftool.storage.execute import Options, execute

    preview = plan.preview()
    for text in preview.remarks:
        remark(text)
    if dry_run:
        write(render_json(preview) if json else preview_text(preview))
        return
    with progress_bar(preview.bytes_copied) as progress:
        receipt = execute(plan, Options(force=force, sync=sync, progress=progress))
    write(render_json(receipt) if json else receipt_text(receipt))
