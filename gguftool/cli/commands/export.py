"""The export command: tensors to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import (
    DryRun,
    Force,
    HashOption,
    Jobs,
    Json,
    ModelArgument,
    NoResume,
    NoSync,
    Patterns,
    local_path,
)
from gguftool.cli.shared.writing import Writing, carry_out

if TYPE_CHECKING:
    pass


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
