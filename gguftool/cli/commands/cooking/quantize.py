"""The quantize command: quantize a model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

from gguftool.cli.shared.options import KeepFileType, MaxSize, OutputOption, check_engine
from gguftool.cli.shared.presets import PresetOption, Pure, named_preset
from gguftool.cli.shared.quantizing import (
    AllowRequantize,
    ImatrixOption,
    LlamaQuantizeOption,
    carry_out_decision,
    read_weights,
)
from gguftool.cli.shared.recipes import read_recipe
from gguftool.cli.shared.running import output_options, with_inputs
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.engines.llama_quantize import find_llama_quantize
from gguftool.errors import PlanError, printable
from gguftool.format.ftypes import no_such_type
from gguftool.format.pattern import literal
from gguftool.format.recipe import Recipe, make_rule
from gguftool.model.opening import open_model
from gguftool.surgery.quantize.external import ExternalJob
from gguftool.surgery.quantize.options import QuantizeOptions
from gguftool.surgery.quantize.plan import decide, plan_decision
from gguftool.surgery.quantize.relayout_source import plain_types


@writer("align", "pad", "reserve", "force_sizes", "anyway")
def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The model to quantize from: BF16, F16, F32, or what it can be.")
    ],
    output: OutputOption,
    mix: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET]", help="Short for --preset PRESET, as in llama-quantize.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="FILE", help="The recipe, which gives each tensor its type.", show_default=False
        ),
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor",
            metavar="PATTERN=TYPE",
            help="A tensor's name or a regular expression, and its type. Repeatable: the first match counts.",
        ),
    ] = None,
    preset: PresetOption = None,
    imatrix: ImatrixOption = None,
    reuse: Annotated[
        list[str] | None,
        typer.Option(
            "--reuse", metavar="MODEL", help="Copy tensors that MODEL already has in the wanted type. Repeatable."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="llama.cpp|ik_llama.cpp", help="Use this engine's presets and rules.")
    ] = "llama.cpp",
    pure: Pure = False,
    repack: Annotated[
        bool,
        typer.Option(
            "--repack",
            help="Only rearrange rows (Q4_K to Q4_K_R4, Q4_0_4_4 to Q4_0): no number changes. Default: to plain types.",
        ),
    ] = False,
    allow_requantize: AllowRequantize = False,
    llama_quantize: LlamaQuantizeOption = None,
    allow_kv_mismatch: Annotated[
        list[str] | None,
        typer.Option("--allow-kv-mismatch", metavar="KEY", help="Let models to reuse differ in KEY. Repeatable."),
    ] = None,
    max_size: MaxSize = None,
    keep_file_type: KeepFileType = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Quantize a model by a recipe, by rules, or by a preset.

    PRESET is a preset of llama-quantize, such as Q4_K_M.

    Copies the tensors that SOURCE or a model to reuse has in the wanted type, and quantizes the rest from SOURCE as
    llama-quantize would, while writing. A rule applies to all tensors that it matches; the others get the preset's
    type, or stay as they are.

    Two ways to use it:

    \b
    gguftool quantize model-BF16.gguf Q4_K_M -o model-Q4_K_M.gguf
    gguftool quantize model-BF16.gguf --recipe my.recipe -o mix.gguf
    """  # noqa: D301 - \b keeps the lines of a paragraph
    check_engine(engine)
    chosen = named_preset(mix, preset, engine)
    if recipe is not None and tensor is not None:
        raise typer.BadParameter("give either --recipe FILE or --tensor PATTERN=TYPE")
    if chosen is None and recipe is None and tensor is None and not repack:
        raise typer.BadParameter("give a preset such as Q4_K_M, --recipe FILE, or --tensor PATTERN=TYPE")
    tool = find_llama_quantize(llama_quantize) if llama_quantize is not None else None
    model = open_model(source)
    if recipe is not None:
        rules, *read = read_recipe(recipe)
    else:
        plain = plain_types(model) if repack and chosen is None else ()
        rules, read = _rules(tensor or plain, model.tensors), []
    weights, also = read_weights(imatrix)
    options = QuantizeOptions(
        engine=engine,
        requantize=allow_requantize,
        weights=weights,
        llama_quantize=tool,
        preset=chosen,
        pure=pure,
        repack=repack,
        allowed_mismatches=tuple(allow_kv_mismatch or ()),
        output=output_options(layout, max_size=max_size, keep_file_type=keep_file_type),
        reuse=tuple(open_model(spec) for spec in reuse or ()),
    )
    decision = decide(model, rules, options)
    plan = with_inputs(plan_decision(decision, output, options), (*read, *also))
    carry_out_decision(decision, plan, ExternalJob(options=options, output=output, threads=writing.jobs), writing)


def _rules(items: Collection[str], names: Collection[str]) -> Recipe:
    """Make rules from --tensor; a pattern that is the name of a tensor means only that tensor."""
    rules, problems = [], []
    for number, item in enumerate(items, start=1):
        pattern, equals, target = item.partition("=")
        try:
            if not equals:
                raise ValueError(f"'{printable(item, 80)}' has no '='; it is PATTERN=TYPE")
            exact = f"^{literal(pattern)}$" if pattern in names else pattern.strip()
            rule = make_rule(exact, target.strip(), line=number)
        except ValueError as error:
            problems.append(str(error))
            continue
        if rule.type_id is None and rule.label is None:
            problems.append(no_such_type(rule.target))
        rules.append(rule)
    if problems:
        raise PlanError("; ".join(problems), source="--tensor")
    return Recipe(rules=tuple(rules), name="--tensor")
