"""The cook command: make the file that a recipe describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gguftool.cli.shared.console import remark, remark_each
from gguftool.cli.shared.maps import verify_maps
from gguftool.cli.shared.options import MaxSize, OutputOption, check_engine, local_path
from gguftool.cli.shared.quantizing import (
    AllowRequantize,
    ImatrixOption,
    LlamaQuantizeOption,
    carry_out_decision,
    read_weights,
)
from gguftool.cli.shared.recipes import read_recipe
from gguftool.cli.shared.running import carry_out, file_plan, output_options, with_inputs
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.cooking.making.cook import RECIPE_KEY, Cooked, plan_cook
from gguftool.cooking.making.gather import open_cook_inputs
from gguftool.cooking.making.published import check_published
from gguftool.engines.llama_quantize import find_llama_quantize
from gguftool.errors import without_secrets
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.recipe import render_recipe
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.render.cooking.card import card_of
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.preflight import check_targets
from gguftool.storage.sources.locate import base_name, is_url
from gguftool.surgery.merge import MergeOptions
from gguftool.surgery.quantize.external import ExternalJob
from gguftool.surgery.quantize.options import QuantizeOptions


@writer("align", "pad", "reserve", "force_sizes", "anyway")
def cook(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, which gives each tensor its type.")],
    sources: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="[LABEL=]MODEL",
            help="A model to make it from; {QTYPE} in a name stands for each type of the recipe. Repeatable.",
        ),
    ],
    output: OutputOption,
    imatrix: ImatrixOption = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="llama.cpp|ik_llama.cpp", help="Quantize by this engine's rules.")
    ] = LLAMA_CPP,
    allow_requantize: AllowRequantize = False,
    llama_quantize: LlamaQuantizeOption = None,
    kv_from: Annotated[
        str | None,
        typer.Option(
            "--kv-from", metavar="MODEL", help="Take the metadata from here, as merge does.", show_default=False
        ),
    ] = None,
    allow_kv_mismatch: Annotated[
        list[str] | None,
        typer.Option("--allow-kv-mismatch", metavar="KEY", help="Let models differ in KEY. Repeatable."),
    ] = None,
    max_size: MaxSize = None,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Store the recipe in the file, and where each tensor came from.")
    ] = False,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card",
            parser=local_path,
            metavar="FILE",
            help="Write a model card, such as README.md.",
            show_default=False,
        ),
    ] = None,
    trusted_keys: Annotated[
        str | None,
        typer.Option(
            "--trusted-keys",
            metavar="FILE",
            help="Require maps signed by these GPG keys. Default: the keys of gpg, and no signature needed.",
            show_default=False,
        ),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not check hashes of maps or signatures.")] = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Make the file that a recipe describes.

    Copies each tensor that an input has in the recipe's type, and quantizes the rest from the input with plain floats.
    Fetches only the ranges of remote inputs that it needs.

    Two ways to use it:

    \b
    gguftool cook my.recipe --from model-BF16.gguf -o mix.gguf
    gguftool cook my.recipe --from model-BF16.gguf --provenance -o mix.gguf
    """  # noqa: D301 - \b keeps the lines of a paragraph
    check_engine(engine)
    tool = find_llama_quantize(llama_quantize) if llama_quantize is not None else None
    rules, file = read_recipe(recipe)
    text = file.read_at(0, file.size).decode("utf-8", "surrogateescape")
    text = render_recipe(rules) if "\0" in text else text  # UTF-16, as a Windows shell writes
    inputs, gathered = open_cook_inputs(sources, rules)
    if not no_verify:
        remark_each(check_published(gathered, trusted_keys))
    weights, also = read_weights(imatrix)
    options = output_options(layout, max_size=max_size)
    options = replace(options, texts=((RECIPE_KEY, text),)) if provenance else options
    mismatches = tuple(allow_kv_mismatch or ())
    merge = MergeOptions(
        kv_from=kv_from and open_model(kv_from), allowed_mismatches=mismatches, provenance=provenance, output=options
    )
    quantize = QuantizeOptions(
        engine=engine,
        requantize=allow_requantize,
        weights=weights,
        llama_quantize=tool,
        allowed_mismatches=mismatches,
        output=options,
    )
    cooked = plan_cook(rules, inputs, output, merge, quantize)
    cooked = replace(cooked, plan=with_inputs(cooked.plan, (file, *also)))
    words = (
        "cook",
        base_name(recipe),
        *(word for spec in sources for word in ("--from", _shared(spec))),
        *(() if imatrix is None else ("--imatrix", _shared(imatrix))),
        "-o",
        output.name,
    )
    page = None if card is None else file_plan(card, card_of(cooked.plan, text, words), cooked.plan.inputs)
    if not writing.dry_run:
        if page is not None:
            both = replace(page, outputs=(*cooked.plan.outputs, *page.outputs))
            check_targets(both, force=writing.force)  # before hours of work
        if not no_verify:
            verify_maps([one.model for one in inputs], cooked.plan)
    written = _carry_out(cooked, output, writing)
    if written and page is not None:
        execute(page, Options(force=writing.force))
        remark(f"wrote {card}")


def _shared(spec: str) -> str:
    """A --from as a card shows it: an address without secrets, or a name without local folders."""
    return without_secrets(spec) if is_url(spec.partition("=")[2] or spec) else base_name(spec.rstrip("/"))


def _carry_out(cooked: Cooked, output: Path, writing: Writing) -> bool:
    if cooked.decision is None:
        return carry_out(cooked.plan, writing) is not None
    job = ExternalJob(options=cooked.options, output=output, threads=writing.jobs)
    return carry_out_decision(cooked.decision, cooked.plan, job, writing)
