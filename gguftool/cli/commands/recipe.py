"""Commands on recipes: check, extract, expand, compact, convert."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import Force, Json, ModelArgument, local_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gguftool.format.recipe import Recipe
    from gguftool.model.model import Model
    from gguftool.storage.sources.source import Source

app = typer.Typer(
    help="Check recipes, take them from models, and turn them into each other's formats.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)


class Form(str, Enum):
    """The formats of recipes on the command line."""

    RECIPE = "recipe"
    CUSTOM_Q = "custom-q"
    TENSOR_TYPE_FILE = "tensor-type-file"
    TENSOR_TYPE = "tensor-type"


class Severity(str, Enum):
    """From which severity on findings make the exit code 1."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


RecipeArgument = Annotated[str, typer.Argument(metavar="FILE", help="The recipe; - reads standard input.")]
ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="The model whose tensors are meant.")]
FromOption = Annotated[
    Form | None, typer.Option("--from", help="The format of FILE. Default: what it looks like.", show_default=False)
]
ToOption = Annotated[Form, typer.Option("--to", help="The format to write.")]
RecipeOutput = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        parser=local_path,
        metavar="OUT",
        help="The file to write instead of standard output.",
    ),
]


@app.command()
def check(
    file: RecipeArgument,
    model: ModelOption,
    form: FromOption = None,
    fail_on: Annotated[
        Severity, typer.Option("--fail-on", help="The severity of findings from which on the exit code is 1.")
    ] = Severity.ERROR,
    json: Json = False,
) -> None:
    """Say what a recipe would do to a model, and what is wrong with it.

    Unmatched tensors, rules that match nothing or never apply, unknown types, rows that a type does not divide, up and
    gate in different types, and the size that comes out. The exit code is 1 where there are errors among these.
    """
    from gguftool.analysis.lint import rules as lint_rules
    from gguftool.analysis.recipe import check as check_recipe
    from gguftool.cli.shared.console import write
    from gguftool.cli.shared.show import show_tables, write_json
    from gguftool.render.recipe import report_tables, summary_text

    recipe, _ = _read(file, form, lenient=True)
    report = check_recipe(recipe, _open(model))
    if json:
        write_json(report)
    else:
        write(summary_text(report) + "\n")
        show_tables(report_tables(report))
    if report.reaches(lint_rules.Severity[fail_on.name]):
        raise typer.Exit(1)


@app.command()
def extract(
    model: ModelArgument, to: ToOption = Form.RECIPE, output: RecipeOutput = None, force: Force = False
) -> None:
    """Print the recipe that reproduces a model's mix.

    Layers are taken together where that says exactly the same tensors.
    """
    from gguftool.analysis.recipe_compact import extract as extract_recipe

    opened = _open(model)
    _show(extract_recipe(opened), to, output, opened.sources, force=force)


@app.command()
def expand(
    file: RecipeArgument,
    model: ModelOption,
    form: FromOption = None,
    to: ToOption = Form.RECIPE,
    output: RecipeOutput = None,
    force: Force = False,
) -> None:
    """Write a recipe out: one rule for each tensor of the model."""
    from gguftool.analysis.recipe_compact import expand as expand_recipe

    recipe, sources = _read(file, form)
    opened = _open(model)
    _remark_unmatched(recipe, opened)
    _show(expand_recipe(recipe, opened.tensors), to, output, (*sources, *opened.sources), force=force)


@app.command()
def compact(
    file: RecipeArgument,
    model: ModelOption,
    form: FromOption = None,
    to: ToOption = Form.RECIPE,
    output: RecipeOutput = None,
    force: Force = False,
) -> None:
    """Say a recipe in few rules that give the model's tensors the same types, and no others any."""
    from gguftool.analysis.recipe_compact import compact as compact_recipe

    recipe, sources = _read(file, form)
    opened = _open(model)
    _remark_unmatched(recipe, opened)
    assigned = {name: rule for name, rule in recipe.assign(opened.tensors).items() if rule is not None}
    _show(compact_recipe(assigned, recipe.name), to, output, (*sources, *opened.sources), force=force)


@app.command()
def convert(
    file: RecipeArgument,
    to: Annotated[Form, typer.Option("--to", help="The format to write.")],
    form: FromOption = None,
    output: RecipeOutput = None,
    force: Force = False,
) -> None:
    """Write a recipe in another format, rule by rule.

    custom-q is for ik_llama.cpp, tensor-type and tensor-type-file for llama.cpp; each in its engine's exact type names.
    """
    recipe, sources = _read(file, form)
    _show(recipe, to, output, sources, force=force)


def _open(spec: str) -> Model:
    """Open the model; what it lacks is said, because a recipe cannot be judged by it."""
    from gguftool.cli.shared.console import remark
    from gguftool.errors import listed
    from gguftool.model.opening import open_model

    model = open_model(spec)
    for text in model.remarks:
        remark(text)
    if not model.is_complete:
        remark(f"the model is incomplete, only {len(model.tensors):,} tensors are looked at; {listed(model.missing)}")
    return model


def _read(file: str, form: Form | None, *, lenient: bool = False) -> tuple[Recipe, tuple[Source, ...]]:
    """Read a recipe from a file or standard input; raise `SourceError` or `PlanError`."""
    from gguftool.errors import PlanError
    from gguftool.format.recipe import MAX_TEXT, RecipeFormat, parse_any
    from gguftool.storage.sources.locate import open_source

    sources: tuple[Source, ...] = ()
    if file == "-":
        data = sys.stdin.buffer.read(MAX_TEXT + 1)
    else:
        source = open_source(file)
        sources = (source,)
        if source.size > MAX_TEXT:
            raise PlanError(f"has {source.size:,} bytes; a recipe has {MAX_TEXT:,} at most", source=file)
        data = source.read_at(0, source.size)
    return parse_any(data, file, None if form is None else RecipeFormat(form.value), lenient=lenient), sources


def _remark_unmatched(recipe: Recipe, model: Model) -> None:
    from gguftool.cli.shared.console import remark
    from gguftool.errors import listed

    names = [name for name, rule in recipe.assign(model.tensors).items() if rule is None]
    if names:
        remark(f"{len(names):,} tensors are matched by no rule: {listed(names)}")


def _show(recipe: Recipe, to: Form, output: Path | None, inputs: Sequence[Source], *, force: bool) -> None:
    """Write the recipe to standard output, or to a file as any other output is written."""
    from gguftool.cli.shared.console import remark, write, write_bytes
    from gguftool.errors import printable
    from gguftool.format.recipe import RecipeFormat, render_any
    from gguftool.storage.execute.executor import execute
    from gguftool.storage.execute.options import Options
    from gguftool.storage.plan import OutputFile, Plan

    text = render_any(recipe, RecipeFormat(to.value)).rstrip("\n") + "\n"
    data = text.encode("utf-8", "surrogateescape")
    if output is not None:
        made = OutputFile(path=output, head=data, copies=(), size=len(data))
        execute(Plan(outputs=(made,), inputs=tuple(inputs)), Options(force=force))
        remark(f"wrote {len(recipe.rules):,} rules to {output}")
    elif sys.stdout.isatty():
        write("".join(printable(line, len(line)) + "\n" for line in text.splitlines()))
    else:
        write_bytes(data)
