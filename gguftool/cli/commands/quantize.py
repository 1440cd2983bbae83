"""The command that quantizes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import (
    Align,
    DryRun,
    Force,
    ForceSizesOption,
    HashOption,
    Jobs,
    Json,
    KeepFileType,
    NoResume,
    NoSync,
    OutputOption,
    Pad,
    Reserve,
    filler_of,
    size_option,
)
from gguftool.cli.shared.writing import Writing, carry_out, force_sizes_of, read_recipe, with_inputs
from gguftool.record import replace

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe
    from gguftool.storage.plan import Plan
    from gguftool.storage.sources.source import Source
    from gguftool.surgery.quantize.external import ExternalJob
    from gguftool.surgery.quantize.options import Weights
    from gguftool.surgery.quantize.plan import Decision


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The model to quantize from: BF16, F16, F32, or what it can be.")
    ],
    output: OutputOption,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE", help="Which tensor comes in which type.", show_default=False),
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor",
            metavar="PATTERN=TYPE",
            help="A tensor's name or a regular expression, and its type. Repeatable, the first that matches counts.",
        ),
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="FILE", help="The importance matrix, legacy or GGUF.", show_default=False),
    ] = None,
    reuse: Annotated[
        list[str] | None,
        typer.Option(
            "--reuse", metavar="MODEL", help="Copy tensors that are there in the wanted type already. Repeatable."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="llama.cpp|ik_llama.cpp", help="By whose rules types fall back.")
    ] = "llama.cpp",
    pure: Annotated[
        bool, typer.Option("--pure", help="No types of their own for token embeddings and output under a general rule.")
    ] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize also what is quantized in SOURCE.")
    ] = False,
    llama_quantize: Annotated[
        str | None,
        typer.Option(
            "--llama-quantize",
            metavar="PATH",
            help="Let this llama-quantize of the engine make the tensors: the way to all types of ik_llama.cpp.",
            show_default=False,
        ),
    ] = None,
    allow_kv_mismatch: Annotated[
        list[str] | None,
        typer.Option("--allow-kv-mismatch", metavar="KEY", help="Let models to reuse differ in KEY. Repeatable."),
    ] = None,
    max_size: Annotated[
        int | None, size_option("--max-size", help="Write a set of files up to this size; OUT is their prefix.")
    ] = None,
    keep_file_type: KeepFileType = False,
    align: Align = None,
    pad: Pad = False,
    reserve: Reserve = 0,
    force_sizes: ForceSizesOption = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    no_resume: NoResume = False,
    hash_: HashOption = False,
    json: Json = False,
) -> None:
    """Make only the tensors anew that a recipe changes.

    What SOURCE or a model to reuse has in the wanted type is copied, the rest is quantized from SOURCE while it is
    written, as llama-quantize would. Tensors that no rule matches stay as they are.
    """
    from gguftool.engines.llama_quantize import find_llama_quantize
    from gguftool.model.layout import OutputOptions
    from gguftool.model.opening import open_model
    from gguftool.surgery.quantize.external import ExternalJob
    from gguftool.surgery.quantize.options import QuantizeOptions
    from gguftool.surgery.quantize.plan import decide, plan_decision

    _check_engine(engine)
    if (recipe is None) == (tensor is None):
        raise typer.BadParameter("give either --recipe FILE or --tensor PATTERN=TYPE")
    tool = find_llama_quantize(llama_quantize) if llama_quantize is not None else None
    model = open_model(source)
    rules, read = read_recipe(recipe)
    rules = rules or _rules(tensor or (), model.tensors)
    weights, also = _weights(imatrix)
    options = QuantizeOptions(
        engine=engine,
        requantize=allow_requantize,
        weights=weights,
        llama_quantize=tool,
        pure=pure,
        allowed_mismatches=tuple(allow_kv_mismatch or ()),
        output=OutputOptions(
            alignment=align,
            force_sizes=force_sizes_of(force_sizes),
            filler=filler_of(pad, reserve),
            max_size=max_size,
            keep_file_type=keep_file_type,
        ),
        reuse=tuple(open_model(spec) for spec in reuse or ()),
    )
    decision = decide(model, rules, options)
    plan = with_inputs(plan_decision(decision, output, options), (*read, *also))
    if dry_run:
        _show_preview(decision, plan, jobs, json=json)
        return
    writing = Writing(force=force, sync=not no_sync, resume=not no_resume, jobs=jobs, hash=hash_)
    if tool is None or not decision.pending:
        carry_out(plan, writing, dry_run=False, json=json)
        return
    job = ExternalJob(options=options, output=output, threads=jobs)
    _made_by(job, decision, plan, replace(writing, resume=False), json=json)


def _made_by(job: ExternalJob, decision: Decision, plan: Plan, writing: Writing, *, json: bool) -> None:
    """Let an installed llama-quantize make what it is to make, then carry out the plan with that."""
    from gguftool.cli.shared.console import remark
    from gguftool.storage.execute.preflight import check_targets, translate_os_errors
    from gguftool.surgery.quantize.external import made_externally
    from gguftool.surgery.quantize.plan import plan_decision

    with translate_os_errors(plan):
        check_targets(plan, force=writing.force)  # before hours of work
    with made_externally(decision, job, remark) as made:
        final = plan_decision(decision.with_made(made), job.output, job.options)
        carry_out(replace(final, inputs=plan.inputs), writing, dry_run=False, json=json)


def _check_engine(engine: str) -> None:
    from gguftool.format.engine_facts.engines import ENGINES

    if engine not in ENGINES:
        raise typer.BadParameter(f"--engine takes {' or '.join(ENGINES)}, not '{engine}'")


def _rules(items: Collection[str], names: Collection[str]) -> Recipe:
    """Return the rules of --tensor; a pattern that is a tensor's name means that tensor alone."""
    from gguftool.errors import PlanError, printable
    from gguftool.format.ftypes import no_such_type
    from gguftool.format.pattern import literal
    from gguftool.format.recipe import Recipe, make_rule

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


def _weights(name: str | None) -> tuple[Weights | None, tuple[Source, ...]]:
    """Return the imatrix, and the file it was read from."""
    if name is None:
        return None, ()
    from gguftool.model.companions import read_imatrix
    from gguftool.storage.sources.locate import open_source
    from gguftool.surgery.quantize.options import Weights

    source = open_source(name)
    return Weights(imatrix=read_imatrix(source), name=name), (source,)


def _show_preview(decision: Decision, plan: Plan, jobs: int | None, *, json: bool) -> None:
    from gguftool.cli.shared.console import remark
    from gguftool.cli.shared.show import show
    from gguftool.render.quantize import quantize_preview_text
    from gguftool.surgery.quantize.preview import preview_quantize

    for text in plan.remarks:
        remark(text)
    preview = preview_quantize(decision, plan, jobs)
    show(preview, quantize_preview_text, json=json)
