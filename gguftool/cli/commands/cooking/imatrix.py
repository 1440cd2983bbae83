"""Commands on importance matrices: show, convert, alter, make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gguftool.cli.shared.console import counting_bar, remark
from gguftool.cli.shared.grouped import GroupedCommand
from gguftool.cli.shared.imatrices import show_imatrix
from gguftool.cli.shared.operations import by_label, operations
from gguftool.cli.shared.options import (
    Csv,
    FullPaths,
    Json,
    Markdown,
    ModelArgument,
    OutputOption,
    one_format,
    shell_words,
)
from gguftool.cli.shared.patterns import check_patterns
from gguftool.cli.shared.running import carry_out, file_plan, with_inputs
from gguftool.cli.shared.signals import Interrupted
from gguftool.cli.shared.writing import Writing, writer
from gguftool.errors import SourceError, did_you_mean, printable
from gguftool.format.imatrix import ImatrixKind
from gguftool.model.companions import read_imatrix
from gguftool.model.layout import OutputOptions
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.storage.execute.preflight import check_targets
from gguftool.storage.sources.locate import open_source
from gguftool.surgery.alter.alteration import alteration_of
from gguftool.surgery.alter.imatrix import plan_alter_imatrix
from gguftool.surgery.convert_imatrix import kind_of_name, plan_convert_imatrix
from gguftool.surgery.inputs import split_label

app: typer.Typer = typer.Typer(
    help="""Show, convert, alter and make importance matrices.

    Two ways to use it:

    \b
    gguftool imatrix show imatrix.gguf --model model.gguf
    gguftool imatrix convert imatrix.dat -o imatrix.gguf
    """,
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)


def _operation(name: str, metavar: str) -> Any:
    return typer.Option(name, metavar=metavar, help="As in alter.", show_default=False)


ImatrixArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="An imatrix file: the legacy .dat, or the GGUF form.")
]

ToOption = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="legacy|gguf", help="The format to write. Default: by OUT's ending.", show_default=False
    ),
]


@app.command(cls=GroupedCommand)
def show(
    file: ImatrixArgument,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Show which tensors of this model it covers.", show_default=False
        ),
    ] = None,
    name_filter: Annotated[
        str, typer.Option("--filter", metavar="REGEX", help="List only entries with names that match REGEX.")
    ] = "",
    json: Json = False,
    full_paths: FullPaths = False,
    markdown: Markdown = False,
    csv: Csv = False,
) -> None:
    """Show what is in an imatrix: chunks, datasets, entries.

    Lists each entry with how much data went into it, and with the experts that no token reached. With --model, also
    lists the tensors without an entry, and the entries that do not fit.
    """
    chosen = one_format(json=json, markdown=markdown, csv=csv)
    check_patterns([name_filter])
    opened = open_model(model) if model is not None else None
    show_imatrix(open_source(file), chosen, model=opened, name_filter=name_filter, full_paths=full_paths)


@app.command(cls=GroupedCommand)
@writer(without=("jobs", "no_resume", "hash_"))
def convert(
    file: ImatrixArgument,
    output: OutputOption,
    to: ToOption = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            "--chunk-size",
            metavar="N",
            min=1,
            max=1 << 20,
            help="Tokens per chunk, which a legacy file does not record. Default: 512, like llama-imatrix.",
            show_default=False,
        ),
    ] = None,
    *,
    writing: Writing,
) -> None:
    """Write an imatrix in the other format.

    The weights that llama-quantize derives from it stay the same to the last bit; a note names what else is lost.
    """
    kind = _kind(to, output)
    if chunk_size is not None and kind is ImatrixKind.LEGACY:
        raise typer.BadParameter("--chunk-size is for GGUF outputs; the legacy format does not hold it")
    source = open_source(file)
    plan = plan_convert_imatrix(source, read_imatrix(source), kind, output, chunk_size)
    carry_out(plan, replace(writing, resume=False))


@app.command(cls=GroupedCommand)
@writer(without=("jobs", "no_resume", "hash_"))
def alter(
    files: Annotated[
        list[str],
        typer.Argument(metavar="[LABEL=]FILE...", help="The imatrix to alter, then those of the donors of layers."),
    ],
    output: OutputOption,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The model before it was altered, for its number of layers and experts.",
            show_default=False,
        ),
    ] = None,
    drop: Annotated[list[str] | None, _operation("--drop", "WHAT")] = None,
    keep: Annotated[list[str] | None, _operation("--keep", "WHAT")] = None,
    rename: Annotated[list[str] | None, _operation("--rename", "REGEX=NEW")] = None,
    unfuse: Annotated[list[str] | None, _operation("--unfuse", "KIND")] = None,
    fuse: Annotated[list[str] | None, _operation("--fuse", "KIND")] = None,
    layers: Annotated[list[str] | None, _operation("--layers", "LIST|@FILE")] = None,
    experts: Annotated[list[str] | None, _operation("--experts", "LIST|@FILE")] = None,
    script: Annotated[
        list[str] | None,
        typer.Option("--script", metavar="FILE", help="A script of alter; operations not for an imatrix are skipped."),
    ] = None,
    *,
    writing: Writing,
) -> None:
    """Change an imatrix as `gguftool alter` changed its model.

    The altered model can then be quantized with it.

    The operations are those of alter, with the same lists. The format stays.
    """
    given = {
        **{"drop": drop, "keep": keep, "rename": rename, "unfuse": unfuse, "fuse": fuse},
        **{"layers": layers, "experts": experts},
    }
    words, scripts = operations(given, script or ())
    labelled = [split_label(name) for name in files]
    if any(label is None for label, _ in labelled[1:]):
        raise typer.BadParameter("only the first imatrix needs no label; give LABEL=FILE for the others")
    source = open_source(labelled[0][1])
    own = read_imatrix(source)
    opened = [own, *(read_imatrix(open_source(name)) for _, name in labelled[1:])]
    pairs = zip(labelled, opened, strict=True)
    donors = by_label((label, imatrix) for (label, _), imatrix in pairs if label is not None)
    alteration = alteration_of(words, OutputOptions())
    plan = plan_alter_imatrix(source, own, alteration, output, model=model, donors=donors)
    carry_out(with_inputs(plan, scripts), replace(writing, resume=False))


@app.command(cls=GroupedCommand)
@writer(without=("jobs", "no_resume", "hash_", "dry_run"))
def make(
    model: ModelArgument,
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="The text to run the model on.")],
    engine: Annotated[str, typer.Option("--engine", metavar="PATH", help="An installed llama-imatrix.")],
    output: OutputOption,
    to: ToOption = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            metavar="N",
            min=1,
            help="Run this many chunks, in parts, so that a killed run can resume. Default: all, in one run.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[int, typer.Option("--every", metavar="N", min=1, help="Chunks per part.")] = 50,
    context: Annotated[int, typer.Option("--ctx", metavar="N", min=8, help="Tokens per chunk.")] = 512,
    engine_options: Annotated[
        str, typer.Option("--engine-options", metavar="TEXT", help="More options for the engine, such as '-ngl 99'.")
    ] = "",
    *,
    writing: Writing,
) -> None:
    """Make an importance matrix with an installed llama-imatrix.

    With --chunks it works in parts: an interrupted run keeps its finished parts next to OUT, and the same command
    resumes.
    """
    from gguftool.cooking.imatrix_making import ImatrixJob, MakeHooks, made_imatrix  # noqa: PLC0415 - drives engines

    kind = _kind(to, output)
    if not text.is_file():
        raise SourceError("there is no such file", source=str(text))
    read = (*open_model(model).sources, open_source(str(text)))
    check_targets(file_plan(output, "", read), force=writing.force)  # before hours of work
    job = ImatrixJob(
        model=model,
        text=text,
        engine=engine,
        kind=kind,
        context=context,
        chunks=chunks,
        every=every,
        arguments=shell_words("--engine-options", engine_options),
    )
    try:
        with (
            counting_bar("making the imatrix", "chunks") as progress,
            made_imatrix(job, output, MakeHooks(progress=progress, note=remark)) as plan,
        ):
            carry_out(with_inputs(plan, read), replace(writing, resume=False))
    except Interrupted:
        kept = f"parts of {every:,} chunks are kept next to {output}: the same command resumes"
        remark(kept if chunks else "nothing to resume: all chunks are one run; with --chunks N it works in parts")
        raise


def _kind(to: str | None, output: Path) -> ImatrixKind:
    """Read the format from --to or the output's ending."""
    if to not in {None, "legacy", "gguf"}:
        near = did_you_mean(to, ("legacy", "gguf"))
        raise typer.BadParameter(f"--to takes legacy or gguf, not '{printable(to)}'{near}")
    kind = ImatrixKind(to) if to else kind_of_name(output)
    if kind is None:
        raise typer.BadParameter(f"'{output.name}' ends neither in .dat nor in .gguf: give --to legacy or --to gguf")
    return kind
