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
    help="""Check recipes, extract them from models, and convert them.

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
    """Findings of this severity or worse make the exit code 1; the worst comes first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


RecipeArgument = Annotated[str, typer.Argument(metavar="FILE", help="The recipe; - reads standard input.")]
PresetEngine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="llama.cpp|ik_llama.cpp",
        help="Use this engine's presets and fallback rules. Default: llama.cpp, or the engine that has all types.",
        show_default=False,
    ),
]
ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="The model that the recipe is for.")]
FromOption = Annotated[
    RecipeFormat | None,
    typer.Option("--from", help="The format of FILE. Default: detected.", show_default=False),
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
    file: Annotated[str, typer.Argument(metavar="FILE", help="The recipe, or the model if you give only a preset.")],
    preset: Annotated[
        str | None, typer.Argument(metavar="[PRESET]", help="The same as --preset PRESET.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The model that the recipe is for.", show_default=False),
    ] = None,
    named: PresetOption = None,
    imatrix: Annotated[
        str | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="The imatrix that quantize will use: mixes depend on it.",
            show_default=False,
        ),
    ] = None,
    pure: Pure = False,
    engine: PresetEngine = None,
    form: FromOption = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit 1 at findings of this severity or worse.")
    ] = FailOn.ERROR,
    json: Json = False,
    full_paths: FullPaths = False,
) -> None:
    """Show what a recipe does to a model, and what is wrong.

    Lists unmatched tensors, rules that match nothing or never apply, unknown types, rows that a type does not divide,
    up and gate in different types, and the resulting size. The exit code is 1 if there are errors among these. With a
    preset, tensors that no rule matches get its types, as with 'gguftool quantize'.
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
        str, typer.Option("--engine", metavar="llama.cpp|ik_llama.cpp", help="With --for: take this engine's types.")
    ] = LLAMA_CPP,
    substitute: Annotated[
        list[str] | None,
        typer.Option("--substitute", metavar="TYPE=TYPE,...", help="With --for: types to replace. Repeatable."),
    ] = None,
    avoid: Annotated[
        str | None,
        typer.Option(
            "--avoid", metavar="TYPE,...", help="With --for: types to avoid as slow there.", show_default=False
        ),
    ] = None,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="With --for: avoid types without a fast CUDA kernel in ik_llama.cpp.")
    ] = False,
    force: Force = False,
) -> None:
    """Print the recipe that reproduces a model's mix.

    Combines layers in one rule where it matches exactly the same tensors. With --for, carries the mix over to another
    model by role and relative depth, and replaces types that cannot be used there with the nearest.
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
    """Write a recipe with one rule for each tensor of the model."""
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
    """Write a recipe with few rules.

    They give the model's tensors the same types, and match no others.
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
    """Open FILE as the model, since --model is not given; the error says that a recipe needs --model."""
    try:
        return _open(file)
    except FormatError as error:
        raise PlanError(f"{error}; without --model, FILE is the model: a recipe needs --model MODEL") from error


def _open(spec: str) -> Model:
    """Open the model; warn if it is incomplete, because a recipe cannot be checked against missing tensors."""
    model = open_model(spec)
    for text in model.remarks:
        remark(text)
    if not model.is_complete:
        remark(f"the model is incomplete: only {len(model.tensors):,} tensors are checked; {listed(model.missing)}")
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
            raise PlanError(f"has {source.size:,} bytes, more than {MAX_TEXT:,}, a limit of gguftool", source=file)
        data = source.read_at(0, source.size)
    return parse_any(data, file, form, lenient=lenient), sources


def _remark_unmatched(recipe: Recipe, model: Model) -> None:
    names = [name for name, rule in recipe.assign(model.tensors).items() if rule is None]
    if names:
        remark(f"no rule matches {len(names):,} tensors: {listed(names)}")


def _write(
    recipe: Recipe,
    to: RecipeFormat,
    output: Path | None,
    inputs: Sequence[Source],
    *,
    header: Sequence[str] = (),
    force: bool,
) -> None:
    """Write the recipe to standard output, or to a file with the executor; only one format can hold a header."""
    text = render_any(recipe, to).rstrip("\n") + "\n"
    if to is RecipeFormat.RECIPE:
        text = "".join(f"# {line}\n" for line in header) + text
    if output is None:
        write_exactly(text)
        return
    execute(file_plan(output, text, inputs), Options(force=force))
    remark(f"wrote {len(recipe.rules):,} rules to {output}")
