"""The info command: show a model on one screen."""

from __future__ import annotations

from gguftool.analysis.info import infos
from gguftool.cli.shared.console import remark_each
from gguftool.cli.shared.imatrices import imatrix_instead, show_imatrix
from gguftool.cli.shared.options import Json, ModelsArgument, ThisFileOnly, one_format
from gguftool.cli.shared.show import show
from gguftool.errors import FormatError
from gguftool.model.opening import open_models
from gguftool.render.format import Format


def info(models: ModelsArgument, this_file_only: ThisFileOnly = False, json: Json = False) -> None:
    """Show what a model is, on one screen.

    Size, an honest label of its quantization, context, experts, memory to load it, and engines that will not run it.
    `gguftool FILE` is the same.

    Two ways to use it:

    \b
    gguftool info model.gguf
    gguftool info hf://ORG/REPO/model.gguf
    """  # noqa: D301 - \b keeps the lines of a paragraph
    chosen = one_format(json=json)
    try:
        opened = open_models(*models, this_file_only=this_file_only)
    except FormatError as error:
        if len(models) != 1:
            raise
        show_imatrix(imatrix_instead(models[0], error), chosen)
        return
    found = infos(opened)
    for one in found.models:
        remark_each(one.remarks)
    report = found.models[0] if len(found.models) == 1 else found
    if chosen is Format.JSON:
        show(report, chosen)
    elif len(opened) == 1:
        show(report, command_name=opened[0].name)
    else:
        show(report, command_names=tuple(model.name for model in opened))
