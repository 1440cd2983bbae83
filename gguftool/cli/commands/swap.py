"""The swap command: replace tensors of a model with a donor's."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.cli.shared.options import InPlace, KeepFileType, ModelArgument, OptionalOutput, Patterns, one_target
from gguftool.cli.shared.running import carry_out, output_options, recover_first
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.model.opening import open_model
from gguftool.surgery.inputs import open_donor
from gguftool.surgery.swap import plan_swap


@writer("align", "pad", "reserve", "force_sizes", "engine", "anyway")
def swap(
    model: ModelArgument,
    donor: Annotated[
        str, typer.Option("--from", metavar="DONOR", help="A GGUF model or a .safetensors file to take tensors from.")
    ],
    tensor: Patterns,
    output: OptionalOutput = None,
    in_place: InPlace = False,
    keep_file_type: KeepFileType = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Replace tensors with a donor's.

    Shapes must agree; types may differ. For a split set, OUT is the prefix of the new set. --in-place changes a single
    file where it is, if every tensor takes as much space as before; in a set, it replaces the shards that change,
    whatever their size.

    Two ways to use it:

    \b
    gguftool swap model.gguf --from donor.gguf --tensor output.weight -o new.gguf
    gguftool swap model.gguf --from donor.gguf --tensor attn_v --in-place
    """  # noqa: D301 - \b keeps the lines of a paragraph
    options = output_options(layout, keep_file_type=keep_file_type, in_place=in_place)
    output = one_target(output, in_place=in_place)
    opened_donor = open_donor(donor)
    if in_place:  # only now: recovery changes the model, and the command may be refused for its arguments
        recover_first(model, dry_run=writing.dry_run)
    carry_out(plan_swap(open_model(model), opened_donor, tensor, output, options), writing)
