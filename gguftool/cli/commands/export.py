"""The export command: write tensors to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gguftool.cli.shared.console import remark
from gguftool.cli.shared.options import ModelArgument, Patterns, local_path
from gguftool.cli.shared.running import carry_out
from gguftool.cli.shared.writing import Writing, writer
from gguftool.errors import did_you_mean, printable
from gguftool.model.opening import open_model
from gguftool.surgery.dequantized_source import FloatType
from gguftool.surgery.export import plan_export


@writer()
def export(
    model: ModelArgument,
    tensor: Patterns,
    output: Annotated[
        Path, typer.Option("-o", "--output", parser=local_path, metavar="FILE.safetensors", help="The file to write.")
    ],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="raw|f32|f16|bf16", help="Bytes as they are, or dequantized.")
    ] = "raw",
    *,
    writing: Writing,
) -> None:
    """Write tensors to a safetensors file.

    Raw tensors keep their ggml type and dims in the file's metadata; swap --from reads both kinds.

    Two ways to use it:

    \b
    gguftool export model.gguf --tensor '^output' -o output.safetensors
    gguftool export model.gguf --tensor ffn_down --dtype f16 -o ffn.safetensors
    """  # noqa: D301 - \b keeps the lines of a paragraph
    names = {kind.value: kind for kind in FloatType}
    if dtype != "raw" and dtype not in names:
        near = did_you_mean(dtype, ("raw", *names))
        raise typer.BadParameter(f"--dtype takes raw, f32, f16 or bf16, not '{printable(dtype)}'{near}")
    if output.suffix.lower() != ".safetensors":
        remark(f"{output.name} becomes a safetensors file despite its name; to write a GGUF, use fetch --tensor")
    carry_out(plan_export(open_model(model), tensor, output, names.get(dtype)), writing)
