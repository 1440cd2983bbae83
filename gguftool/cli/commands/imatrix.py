"""Commands on importance matrices: show, convert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import (
    Csv,
    DryRun,
    Force,
    Json,
    Markdown,
    NoSync,
    OutputOption,
    check_patterns,
    one_format,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguftool.analysis.imatrix import ImatrixReport
    from gguftool.errors import FormatError
    from gguftool.model.model import Model
    from gguftool.storage.sources.source import Source

app = typer.Typer(
    help="Show importance matrices, and convert them between their two formats.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)

ImatrixArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="An imatrix file: the legacy .dat, or the GGUF form.")
]


@app.command()
def show(
    file: ImatrixArgument,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Say which tensors of this model it covers.", show_default=False),
    ] = None,
    name_filter: Annotated[
        str, typer.Option("--filter", metavar="REGEX", help="List only entries in whose name REGEX is found.")
    ] = "",
    json: Json = False,
    markdown: Markdown = False,
    csv: Csv = False,
) -> None:
    """Show an imatrix: chunks, datasets, and how much went into each entry.

    Experts that no token came to are listed. With --model: which tensors have no entry, and which entries do not fit.
    """
    from gguftool.model.opening import open_model
    from gguftool.storage.sources.locate import open_source

    one_format(json=json, markdown=markdown, csv=csv)
    check_patterns([name_filter])
    opened = open_model(model) if model is not None else None
    show_imatrix(open_source(file), model=opened, name_filter=name_filter, json=json, markdown=markdown, csv=csv)


@app.command()
def convert(
    file: ImatrixArgument,
    output: OutputOption,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="legacy|gguf",
            help="The format. Default: by OUT's ending.",
            show_default=False,
        ),
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            "--chunk-size",
            metavar="N",
            min=1,
            max=1 << 20,
            help="Tokens of a chunk, which a legacy file does not say. Default: 512, as llama-imatrix.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    json: Json = False,
) -> None:
    """Write an imatrix in the other format.

    The weights that llama-quantize makes of it stay the same to the last bit; what else is lost is said.
    """
    from gguftool.cli.shared.writing import Writing, carry_out
    from gguftool.format.imatrix import ImatrixKind
    from gguftool.model.companions import read_imatrix
    from gguftool.storage.sources.locate import open_source
    from gguftool.surgery.convert_imatrix import kind_of_name, plan_convert_imatrix

    if to not in {None, "legacy", "gguf"}:
        raise typer.BadParameter(f"--to takes legacy or gguf, not '{to}'")
    kind = ImatrixKind(to) if to else kind_of_name(output)
    if kind is None:
        raise typer.BadParameter(f"'{output.name}' ends neither in .dat nor in .gguf: say --to legacy or --to gguf")
    if chunk_size is not None and kind is ImatrixKind.LEGACY:
        raise typer.BadParameter("--chunk-size is for GGUF outputs; the legacy format does not hold it")
    source = open_source(file)
    plan = plan_convert_imatrix(source, read_imatrix(source), kind, output, chunk_size)
    carry_out(plan, Writing(force=force, sync=not no_sync, resume=False), dry_run=dry_run, json=json)


def show_imatrix(
    source: Source,
    *,
    model: Model | None = None,
    name_filter: str = "",
    json: bool = False,
    markdown: bool = False,
    csv: bool = False,
) -> None:
    """Show the imatrix that `source` is, for every command that may be given one."""
    from gguftool.analysis.imatrix import describe_imatrix
    from gguftool.cli.shared.console import write
    from gguftool.cli.shared.show import show_tables, write_json
    from gguftool.model.companions import read_imatrix
    from gguftool.render.imatrix import imatrix_csv, imatrix_heading, imatrix_markdown, imatrix_table

    report = describe_imatrix(source.name, read_imatrix(source), model=model, name_filter=name_filter)
    if json:
        write_json(report)
    elif markdown:
        write(imatrix_markdown(report))
    elif csv:
        write(imatrix_csv(report))
    else:
        write(imatrix_heading(report) + "\n")
        show_tables([imatrix_table(report)])


def describe_if_imatrix(model: Model, name_filter: str = "") -> ImatrixReport | None:
    """Describe the imatrix that `model` is in truth, or return None where it is a model; damage is a remark."""
    from gguftool.analysis.imatrix import describe_imatrix
    from gguftool.cli.shared.console import remark
    from gguftool.errors import FormatError
    from gguftool.model.companions import read_imatrix

    source = imatrix_among((model,))
    if source is None:
        return None
    try:
        return describe_imatrix(source.name, read_imatrix(source), name_filter=name_filter)
    except FormatError as error:
        remark(f"not a sound imatrix: {error}")
        return None


def imatrix_among(models: Sequence[Model]) -> Source | None:
    """Return the imatrix in GGUF form that the only one of `models` is in truth, or None."""
    from gguftool.format.imatrix import is_imatrix

    if len(models) != 1 or len(models[0].files) != 1 or not is_imatrix(models[0].kvs):
        return None
    return models[0].files[0].source


def imatrix_instead(spec: str, error: FormatError) -> Source:
    """Return the legacy imatrix that `spec` is where it is no GGUF, or raise `error`, which said so."""
    from gguftool.format.imatrix import legacy_start
    from gguftool.storage.sources.locate import open_source

    if error.where == "magic" and error.source is not None and error.source == spec:
        source = open_source(spec)
        if legacy_start(source.read_at(0, min(source.size, 512))):
            return source
    raise error
