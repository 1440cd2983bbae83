"""Commands on recipes: check, extract, expand, compact, convert."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from gguftool.analysis.lint.rules import Severity
from gguftool.analysis.recipe import check as check_recipe
from gguftool.analysis.recipe_compact import compact as compact_recipe
from gguftool.analysis.recipe_compact import expand as expand_recipe
from gguftool.analysis.recipe_compact import extract as extract_recipe
from gguftool.cli.shared.console import remark, write_exactly
from gguftool.cli.shared.grouped import GroupedCommand
from gguftool.cli.shared.options import Force, FullPaths, Json, ModelArgument, check_engine, local_path, one_format
from gguftool.cli.shared.presets import PresetOption, Pure, named_preset
from gguftool.cli.shared.running import file_plan
from gguftool.cli.shared.show import show
from gguftool.errors import FormatError, PlanError, listed
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.recipe import MAX_TEXT, Recipe, RecipeFormat, parse_any, render_any
from gguftool.model.companions import open_imatrix
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.model.preset import PresetMix
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Source

app: typer.Typer = typer.Typer(
    help="""Check recipes, take them from models, and convert them.

    Two ways to use it:

    \b
    gguftool recipe extract model.gguf -o my.recipe
    gguftool recipe check my.recipe --model model.gguf
    """,
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)


class FailOn(str, Enum):
    """The severity from which on findings make the exit code 1, the gravest first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


RecipeArgument = Annotated[str, typer.Argument(metavar="FILE", help="The recipe; - reads standard input.")]
PresetEngine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="llama.cpp|ik_llama.cpp",
        help="By whose rules types fall back, and whose preset. Default: llama.cpp, or the one with all types.",
        show_default=False,
    ),
]
ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="The model whose tensors are meant.")]
FromOption = Annotated[
    RecipeFormat | None,
    typer.Option("--from", help="The format of FILE. Default: what it looks like.", show_default=False),
]
ToOption = Annotated[RecipeFormat, typer.Option("--to", help="The format to write.")]
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


@app.command(cls=GroupedCommand)
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The recipe, or the model if there is a preset alone.")],
    preset: Annotated[
        str | None, typer.Argument(metavar="[PRESET]", help="The same as --preset PRESET.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The model whose tensors are meant.", show_default=False),
    ] = None,
    named: PresetOption = None,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="FILE", help="That of quantize: mixes differ by it.", show_default=False),
    ] = None,
    pure: Pure = False,
    engine: PresetEngine = None,
    form: FromOption = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="The severity of findings from which on the exit code is 1.")
    ] = FailOn.ERROR,
    json: Json = False,
    full_paths: FullPaths = False,
) -> None:
    """Show what a recipe does to a model, and what is wrong.

    Unmatched tensors, rules that match nothing or never apply, unknown types, rows that a type does not divide, up and
    gate in different types, and the size that comes out. The exit code is 1 where there are errors among these. With a
    preset, what no rule matches gets its types, as 'gguftool quantize' gives them.
    """
    check_engine(engine)
    chosen = named_preset(preset, named, engine or LLAMA_CPP)
    if model is None and chosen is None:
        raise typer.BadParameter("give --model MODEL, or a preset such as Q4_K_M for the model FILE")
    recipe = Recipe(rules=(), name=file) if model is None else _read(file, form, lenient=True)[0]
    if imatrix is not None:
        open_imatrix(imatrix)
    mix = None if chosen is None else PresetMix(preset=chosen, imatrix=imatrix is not None, pure=pure)
    report = check_recipe(recipe, _open_alone(file) if model is None else _open(model), mix, engine)
    show(report, one_format(json=json), full_paths=full_paths)
    if report.reaches(Severity[fail_on.name]):
        raise typer.Exit(1)


@app.command(cls=GroupedCommand)
def extract(
    model: ModelArgument,
    to: ToOption = RecipeFormat.RECIPE,
    output: RecipeOutput = None,
    target: Annotated[
        str | None,
        typer.Option("--for", metavar="MODEL", help="Carry the mix over to this model.", show_default=False),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="llama.cpp|ik_llama.cpp", help="With --for: whose types are taken.")
    ] = LLAMA_CPP,
    substitute: Annotated[
        list[str] | None,
        typer.Option("--substitute", metavar="TYPE=TYPE,...", help="With --for: types to replace. Repeatable."),
    ] = None,
    avoid: Annotated[
        str | None,
        typer.Option("--avoid", metavar="TYPE,...", help="With --for: types that are slow there.", show_default=False),
    ] = None,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="With --for: avoid what ik_llama.cpp has no fast CUDA kernel for.")
    ] = False,
    force: Force = False,
) -> None:
    """Print the recipe that reproduces a model's mix.

    Layers are taken together where that says exactly the same tensors. With --for, the mix is carried over to another
    model by role and relative depth, and types that cannot be there are replaced by the nearest.
    """
    opened = _open(model)
    if target is None:
        if substitute or avoid or cuda:
            raise typer.BadParameter("--substitute, --avoid and --cuda go with --for MODEL")
        _write(extract_recipe(opened), to, output, opened.sources, force=force)
        return
    from gguftool.cooking.transfer import TransferOptions, transfer_recipe, transfer_words  # noqa: PLC0415 - for --for

    check_engine(engine)
    options = TransferOptions(engine=engine, substitutes=_pairs(substitute or ()), avoid=_words(avoid or ""), cuda=cuda)
    other = _open(target)
    transfer = transfer_recipe(opened, other, options)
    words = transfer_words(transfer)
    for text in words:
        remark(text)
    _write(transfer.recipe, to, output, (*opened.sources, *other.sources), header=words, force=force)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _pairs(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = [word.partition("=") for text in texts for word in _words(text)]
    if not all(one and equals and other for one, equals, other in pairs):
        raise typer.BadParameter("--substitute takes TYPE=TYPE, several with commas")
    return tuple((one, other) for one, _, other in pairs)


@app.command(cls=GroupedCommand)
def expand(
    file: RecipeArgument,
    model: ModelOption,
    form: FromOption = None,
    to: ToOption = RecipeFormat.RECIPE,
    output: RecipeOutput = None,
    force: Force = False,
) -> None:
    """Write a recipe out: one rule for each tensor of the model."""
    recipe, sources = _read(file, form)
    opened = _open(model)
    _remark_unmatched(recipe, opened)
    _write(expand_recipe(recipe, opened.tensors), to, output, (*sources, *opened.sources), force=force)


@app.command(cls=GroupedCommand)
def compact(
    file: RecipeArgument,
    model: ModelOption,
    form: FromOption = None,
    to: ToOption = RecipeFormat.RECIPE,
    output: RecipeOutput = None,
    force: Force = False,
) -> None:
    """Write a recipe in few rules.

    They give the model's tensors the same types, and no others any.
    """
    recipe, sources = _read(file, form)
    opened = _open(model)
    _remark_unmatched(recipe, opened)
    assigned = {name: rule for name, rule in recipe.assign(opened.tensors).items() if rule is not None}
    _write(compact_recipe(assigned, recipe.name), to, output, (*sources, *opened.sources), force=force)


@app.command(cls=GroupedCommand)
def convert(
    file: RecipeArgument,
    to: Annotated[RecipeFormat, typer.Option("--to", help="The format to write.")],
    form: FromOption = None,
    output: RecipeOutput = None,
    force: Force = False,
) -> None:
    """Write a recipe in another format, rule by rule.

    custom-q is for ik_llama.cpp, tensor-type and tensor-type-file for llama.cpp; each in its engine's exact type names.
    """
    recipe, sources = _read(file, form)
    _write(recipe, to, output, sources, force=force)


def _open_alone(file: str) -> Model:
    """Open FILE, which is the model if there is no --model; say so if it is no GGUF but perhaps a recipe."""
    try:
        return _open(file)
    except FormatError as error:
        raise PlanError(f"{error}; without --model, FILE is the model: a recipe needs --model MODEL") from error


def _open(spec: str) -> Model:
    """Open the model; warn if it is incomplete, since a recipe cannot be judged by missing tensors."""
    model = open_model(spec)
    for text in model.remarks:
        remark(text)
    if not model.is_complete:
        remark(f"the model is incomplete, only {len(model.tensors):,} tensors are looked at; {listed(model.missing)}")
    return model


def _read(file: str, form: RecipeFormat | None, *, lenient: bool = False) -> tuple[Recipe, tuple[Source, ...]]:
    """Read a recipe from a file or standard input; raise `SourceError` or `PlanError`."""
    sources: tuple[Source, ...] = ()
    if file == "-":
        data = sys.stdin.buffer.read(MAX_TEXT + 1)
    else:
        source = open_source(file)
        sources = (source,)
        if source.size > MAX_TEXT:
            raise PlanError(
                f"has {source.size:,} bytes; a limit of gguftool: a recipe has {MAX_TEXT:,} at most", source=file
            )
        data = source.read_at(0, source.size)
    return parse_any(data, file, form, lenient=lenient), sources


def _remark_unmatched(recipe: Recipe, model: Model) -> None:
    names = [name for name, rule in recipe.assign(model.tensors).items() if rule is None]
    if names:
        remark(f"{len(names):,} tensors are matched by no rule: {listed(names)}")


def _write(
    recipe: Recipe,
    to: RecipeFormat,
    output: Path | None,
    inputs: Sequence[Source],
    *,
    header: Sequence[str] = (),
    force: bool,
) -> None:
    """Write the recipe to standard output, or to a file with the executor; only one format has room for a header."""
    text = render_any(recipe, to).rstrip("\n") + "\n"
    if to is RecipeFormat.RECIPE:
        text = "".join(f"# {line}\n" for line in header) + text
    if output is None:
        write_exactly(text)
        return
    execute(file_plan(output, text, inputs), Options(force=force))
    remark(f"wrote {len(recipe.rules):,} rules to {output}")
