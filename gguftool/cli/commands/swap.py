"""The swap command: tensors of a model replaced by a donor's."""

from __future__ import annotations

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
    Pad,
    Patterns,
    Reserve,
    filler_of,
    one_target,
)
from gguftool.cli.shared.writing import Writing, carry_out, force_sizes_of, recover_first

if TYPE_CHECKING:
    pass


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
    from gguftool.model.layout import OutputOptions
    from gguftool.model.opening import open_model
    from gguftool.surgery.inputs import open_donor
    from gguftool.surgery.swap import plan_swap

    options = OutputOptions(
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
