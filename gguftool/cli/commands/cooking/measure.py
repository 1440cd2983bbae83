"""The measure command: measure what types do to a model."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from gguftool import __version__
from gguftool.cli.shared.console import counting_bar, remark, remark_each
from gguftool.cli.shared.options import DryRun, Json, ModelArgument, OutputOption, check_engine, one_format, shell_words
from gguftool.cli.shared.patterns import check_patterns
from gguftool.cli.shared.show import show
from gguftool.cli.shared.signals import Interrupted
from gguftool.cooking.measuring.bench import Setup
from gguftool.cooking.measuring.groups import Grouping, parse_grouping
from gguftool.cooking.measuring.run import ErrorSetup, Hooks, MeasureReport, Selection, measure_errors, plan_measure
from gguftool.cooking.measuring.run import measure as measure_model
from gguftool.format.engine_facts.engines import ENGINES


def measure(
    model: ModelArgument,
    output: OutputOption,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="The text to measure on; not one that an imatrix was made from."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="PATH",
            help="An installed llama-perplexity; with --errors llama.cpp or ik_llama.cpp, for its rules.",
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--types", metavar="TYPE,...", help="Types to measure, such as q3_K,iq4_xs. Repeatable."),
    ] = None,
    tensors: Annotated[
        list[str] | None,
        typer.Option("--tensors", metavar="PATTERN", help="Only tensors that match. Repeatable. Default: all weights."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="none|role|layer|REGEX=NAME",
            help="Measure together: a role such as ffn_down, a layer, or what REGEX matches (NAME may contain \\1).",
        ),
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="FILE", help="The importance matrix to quantize with.", show_default=False),
    ] = None,
    quants: Annotated[
        list[str] | None,
        typer.Option("--quants", metavar="MODEL", help="A ready-made quant to measure tensors of. Repeatable."),
    ] = None,
    context: Annotated[
        int, typer.Option("--ctx", metavar="N", min=16, max=1 << 20, help="Tokens per chunk; half are scored.")
    ] = 512,
    chunks: Annotated[int, typer.Option("--chunks", metavar="N", min=1, max=1 << 20, help="Chunks at most.")] = 8,
    engine_options: Annotated[
        str, typer.Option("--engine-options", metavar="TEXT", help="More options for the engine, such as '-ngl 99'.")
    ] = "",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Time limit for one run of the engine.")
    ] = 7 * 86400.0,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, help="Engines to run at once, each on its share of the cores.")
    ] = 1,
    scheduler: Annotated[
        str,
        typer.Option("--scheduler", metavar="ADDRESS", help="Measure on the workers of a dask.distributed scheduler."),
    ] = "",
    errors: Annotated[
        bool, typer.Option("--errors", help="Only the error table: no engine, no text; MODEL may be remote.")
    ] = False,
    any_width: Annotated[
        bool,
        typer.Option(
            "--any-width",
            help="Also measure types that a tensor's rows cannot hold, as if several rows were one: for comparisons.",
        ),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Measure what quantizing each tensor does to the output.

    Measures each tensor in each of --types; --group measures several tensors together.

    Each measurement is a line of OUT, written as soon as it is done; after an interruption, the same command resumes.

    Two ways to use it:

    \b
    gguftool measure m.gguf --text t.txt --engine ./llama-perplexity -o m.jsonl
    gguftool measure model-BF16.gguf --errors --types q4_K,q6_K -o errors.jsonl
    """  # noqa: D301 - \b keeps the lines of a paragraph
    selection = Selection(
        patterns=tuple(tensors or ()),
        types=tuple(name for text in types or () for name in text.split(",") if name),
        grouping=_grouping(group or []),
    )
    check_patterns(selection.patterns)
    if errors:
        _refuse(text=text, group=group, scheduler=scheduler, engine_options=engine_options, dry_run=dry_run)
        error_setup = ErrorSetup(
            model=model,
            imatrix=imatrix,
            quants=tuple(quants or ()),
            engine=_rules(engine),
            any_width=any_width,
            version=__version__,
        )
        with counting_bar("measuring errors", "tensors") as progress:
            report = measure_errors(error_setup, selection, output, Hooks(progress=progress))
        _finish(report, json=json)
        return
    if text is None or engine is None:
        raise typer.BadParameter("give --text FILE and --engine PATH of a llama-perplexity, or --errors")
    if not selection.types:
        raise typer.BadParameter("give --types, near the bits per weight that you want, such as --types q3_K")
    setup = Setup(
        model=_absolute(model),
        text=_absolute(text),
        engine=_absolute(engine),
        imatrix=None if imatrix is None else _absolute(imatrix),
        quants=tuple(map(_absolute, quants or ())),
        context=context,
        chunks=chunks,
        arguments=shell_words("--engine-options", engine_options),
        seconds=timeout,
        any_width=any_width,
        version=__version__,
    )
    if dry_run:
        plan = plan_measure(setup, selection, output, jobs=jobs, scheduler=scheduler)
        remark_each(plan.remarks)
        show(plan, one_format(json=json))
        return
    try:
        with counting_bar("measuring", "lines") as progress:
            hooks = Hooks(progress=progress, note=remark)
            report = measure_model(setup, selection, output, hooks, jobs=jobs, scheduler=scheduler)
    except Interrupted:
        remark(f"{output} has the measurements so far; the same command resumes from there")
        raise
    _finish(report, json=json)


def _finish(report: MeasureReport, *, json: bool) -> None:
    remark_each(report.remarks)
    show(report, one_format(json=json))
    if report.failed:
        raise typer.Exit(2)


def _absolute(name: str) -> str:
    """Make the name of a local file absolute: workers of a cluster run in other folders."""
    return os.path.abspath(name) if os.path.exists(name) else name


def _grouping(texts: list[str]) -> Grouping:
    try:
        return parse_grouping(texts)
    except ValueError as error:
        raise typer.BadParameter(f"--group: {error}") from None


def _rules(engine: str | None) -> str:
    """Choose the engine whose rules pick the tensors of the error table."""
    if engine is None:
        return next(iter(ENGINES))
    check_engine(engine)
    return engine


def _refuse(**given: object) -> None:
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if named:
        raise typer.BadParameter(f"--errors runs no engine: leave out {', '.join(named)}")
