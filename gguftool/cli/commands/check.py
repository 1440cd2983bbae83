"""The check command: find what is wrong with a model, and where it will run."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.analysis.lint.check import MAX_TOKENS, CheckOptions, check_each, codes
from gguftool.analysis.lint.rules import Severity
from gguftool.analysis.placement import parse_rules
from gguftool.cli.shared.console import remark_each
from gguftool.cli.shared.options import FullPaths, Json, ModelsArgument, ThisFileOnly, engines_named, one_format
from gguftool.cli.shared.show import show
from gguftool.errors import did_you_mean, printable


def check(
    models: ModelsArgument,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="Check for llama.cpp or ik_llama.cpp. Default: both; what concerns only one of them is an info.",
            show_default=False,
        ),
    ] = None,
    select: Annotated[
        str,
        typer.Option(
            "--select", metavar="CODES", help="Only rules with codes that begin so: F,S01.", show_default=False
        ),
    ] = "",
    ignore: Annotated[
        str,
        typer.Option("--ignore", metavar="CODES", help="Leave out rules with codes that begin so.", show_default=False),
    ] = "",
    fail_on: Annotated[
        str,
        typer.Option("--fail-on", metavar="error|warning|info", help="Exit 1 at findings of this severity or worse."),
    ] = "error",
    place: Annotated[
        list[str] | None,
        typer.Option(
            "--place",
            metavar="REGEX=DEVICE",
            help="Place tensors as llama.cpp's -ot does: the first match counts.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data", help="Also read all data: hash shards that have a tensors.map next to them.")
    ] = False,
    load: Annotated[
        str | None,
        typer.Option(
            "--load",
            metavar="ENGINE",
            help="Also ask this engine: it loads the head, with holes in place of data. 'xllamacpp', or the path of a "
            "llama-cli, llama-completion, llama-perplexity or llama-server.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        int | None,
        typer.Option(
            "--run",
            metavar="N",
            min=1,
            max=MAX_TOKENS,
            help="With --load: also generate N tokens over zeros, to find types that lack a kernel.",
            show_default=False,
        ),
    ] = None,
    this_file_only: ThisFileOnly = False,
    json: Json = False,
    full_paths: FullPaths = False,
    sarif: Annotated[
        bool, typer.Option("--sarif", help="Print SARIF 2.1.0, which GitHub's code scanning shows.")
    ] = False,
) -> None:
    """Find what is wrong, and which engines will not run it.

    Groups findings by cause, the worst first, each with the command that fixes it, if there is one. docs/lint.md
    explains their codes. Exit code 1: findings, 2: not a readable GGUF.

    Two ways to use it:

    \b
    gguftool check model.gguf --engine ik_llama.cpp
    gguftool check 'models/*.gguf' --json
    """  # noqa: D301 - \b keeps the lines of a paragraph
    threshold = _severity(fail_on)
    if load == "":
        raise typer.BadParameter("--load needs the name of an engine: xllamacpp, or the path of a program")
    if run and not load:
        raise typer.BadParameter("--run needs an engine to run it in: --load ENGINE")
    options = CheckOptions(
        engines=engines_named(engine),
        select=_codes("--select", select),
        ignore=_codes("--ignore", ignore),
        places=parse_rules(place or []),
        this_file_only=this_file_only,
        read_data=data,
        load=load or "",
        run=run or 0,
    )
    checked = check_each(models, options)
    reports = checked.reports
    for report in reports:
        remark_each(report.remarks)
    show(reports[0] if len(reports) == 1 else checked, one_format(json=json, sarif=sarif), full_paths=full_paths)
    if not all(report.readable for report in reports):
        raise typer.Exit(2)
    if any(report.reaches(threshold) for report in reports):
        raise typer.Exit(1)


def _severity(text: str) -> Severity:
    try:
        return Severity[text.upper()]
    except KeyError:
        near = did_you_mean(text, [one.name.lower() for one in Severity])
        raise typer.BadParameter(f"--fail-on takes error, warning or info, not '{printable(text)}'{near}") from None


def _codes(option: str, text: str) -> tuple[str, ...]:
    wanted = tuple(part.strip().upper() for part in text.split(",") if part.strip())
    for part in wanted:
        if not any(code.startswith(part) for code in codes()):
            near = did_you_mean(part, codes())
            text = f"{option}: no code begins with '{printable(part)}'{near}; docs/lint.md lists them"
            raise typer.BadParameter(text)
    return wanted
