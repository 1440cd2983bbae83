"""The typer application: every command is imported here, each in a module of its own that imports little."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from gguftool.cli.commands import (
    check,
    diff,
    dump,
    edit,
    export,
    fetch,
    imatrix,
    merge,
    quantize,
    recipe,
    report,
    split,
    swap,
    types,
)
from gguftool.cli.commands import hash as hash_command

app = typer.Typer(
    name="gguftool",
    help="Take GGUF model files apart and put them together again, tensor by tensor.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from gguftool import __version__
        from gguftool.cli.shared import console

        console.write(f"gguftool {__version__}\n")
        raise typer.Exit


def _keep_heads(folder: str | None) -> None:
    if folder is not None:
        from gguftool.storage.sources.head_cache import VARIABLE

        os.environ[VARIABLE] = os.path.abspath(folder)


@app.callback()
def _root(
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="FOLDER",
            callback=_keep_heads,
            help="Keep heads of remote files here, for the next look. Default: the environment's GGUFTOOL_CACHE.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take GGUF model files apart and put them together again, tensor by tensor."""


app.command()(dump.dump)
app.command()(report.report)
app.command()(diff.diff)
app.command()(check.check)
app.command()(split.split)
app.command()(merge.merge)
app.command()(swap.swap)
app.command()(edit.edit)
app.command()(quantize.quantize)
app.command()(export.export)
app.command()(fetch.fetch)
app.command("hash")(hash_command.hash_)
app.add_typer(recipe.app, name="recipe")
app.add_typer(imatrix.app, name="imatrix")
app.command()(types.types)
