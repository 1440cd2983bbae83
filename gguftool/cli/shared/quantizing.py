"""Shared by commands that quantize: options, reading an imatrix, and running an installed llama-quantize."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.cli.shared.console import remark
from gguftool.cli.shared.options import one_format
from gguftool.cli.shared.running import carry_out
from gguftool.cli.shared.show import show
from gguftool.cli.shared.writing import Writing
from gguftool.model.companions import read_imatrix
from gguftool.record import replace
from gguftool.storage.execute.preflight import check_targets, translate_os_errors
from gguftool.storage.plan import Plan
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Source
from gguftool.surgery.quantize.external import ExternalJob, made_externally
from gguftool.surgery.quantize.options import Weights
from gguftool.surgery.quantize.plan import Decision, plan_decision
from gguftool.surgery.quantize.preview import preview_quantize

ImatrixOption = Annotated[
    str | None,
    typer.Option("--imatrix", metavar="FILE", help="The importance matrix, legacy or GGUF.", show_default=False),
]
AllowRequantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Also quantize tensors that are already quantized in the model.")
]
LlamaQuantizeOption = Annotated[
    str | None,
    typer.Option(
        "--llama-quantize",
        metavar="PATH",
        help="Let this llama-quantize of the engine make the tensors; gives you all types of ik_llama.cpp.",
        show_default=False,
    ),
]


def read_weights(name: str | None) -> tuple[Weights | None, tuple[Source, ...]]:
    """Read the imatrix; return it with the file it was read from."""
    if name is None:
        return None, ()
    source = open_source(name)
    return Weights(imatrix=read_imatrix(source), name=name), (source,)


def carry_out_decision(decision: Decision, plan: Plan, job: ExternalJob, writing: Writing) -> bool:
    """Show what `plan`, made from `decision`, would do, or do it; return whether the output was written."""
    if writing.dry_run:
        for text in plan.remarks:
            remark(text)
        show(preview_quantize(decision, plan, writing.jobs), one_format(json=writing.json))
        return False
    if job.options.llama_quantize is None or not decision.pending:
        return carry_out(plan, writing, doing="quantizing" if decision.pending else "") is not None
    with translate_os_errors(plan):
        check_targets(plan, force=writing.force)  # before hours of work
    with made_externally(decision, job, remark) as made:
        final = plan_decision(decision.with_made(made), job.output, job.options)
        return carry_out(replace(final, inputs=plan.inputs), replace(writing, resume=False)) is not None
