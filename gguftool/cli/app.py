"""The typer application: every command is imported here, each in a module of its own that imports little."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.cli import check, diff, edit, fetch, hashing, imatrix, inspect, quantize, recipe, report, write

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

        typer.echo(f"gguftool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take GGUF model files apart and put them together again, tensor by tensor."""


app.command()(inspect.dump)
app.command()(report.report)
app.command()(diff.diff)
app.command()(check.check)
app.command()(write.split)
app.command()(write.merge)
app.command()(write.swap)
app.command()(edit.edit)
app.command()(quantize.quantize)
app.command()(write.export)
app.command()(fetch.fetch)
app.command("hash")(hashing.hash_)
app.add_typer(recipe.app, name="recipe")
app.add_typer(imatrix.app, name="imatrix")
app.command()(inspect.types)
