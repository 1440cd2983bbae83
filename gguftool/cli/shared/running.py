"""Run a plan for a command: show or execute it, and show the receipt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from gguftool.cli.shared.console import progress_bar, remark, remark_each
from gguftool.cli.shared.options import engines_named, one_format
from gguftool.cli.shared.show import show, show_receipt
from gguftool.cli.shared.signals import publishing
from gguftool.cli.shared.writing import LayoutFlags, Writing
from gguftool.errors import did_you_mean, printable
from gguftool.model.layout import ForceSizes, OutputOptions
from gguftool.model.padding import MAX_RESERVE, Filler
from gguftool.record import replace
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.preflight import check_targets
from gguftool.storage.plan import OutputFile, Plan, Receipt
from gguftool.storage.sources.source import Source


def output_options(
    layout: LayoutFlags, *, max_size: int | None = None, keep_file_type: bool = False, in_place: bool = False
) -> OutputOptions:
    """Read the options for the output's layout; raise `typer.BadParameter` for values that make no sense."""
    return OutputOptions(
        alignment=layout.align,
        force_sizes=_force_sizes(layout.force_sizes),
        filler=_filler(layout, in_place=in_place),
        max_size=max_size,
        keep_file_type=keep_file_type,
        engines=engines_named(layout.engine),
        anyway=layout.anyway,
    )


def _force_sizes(text: str | None) -> ForceSizes | None:
    if text is None:
        return None
    try:
        return ForceSizes(text)
    except ValueError:
        near = did_you_mean(text, [one.value for one in ForceSizes])
        raise typer.BadParameter(f"--force-sizes takes gap or type, not '{printable(text)}'{near}") from None


def _filler(layout: LayoutFlags, *, in_place: bool) -> Filler:
    if in_place and layout.reserve:
        raise typer.BadParameter("--reserve makes the head longer, which takes a new file: give -o OUT")
    if layout.reserve > MAX_RESERVE:
        raise typer.BadParameter(
            f"--reserve takes at most {MAX_RESERVE:,} bytes: engines read all of it at every start"
        )
    return Filler(pad=layout.pad, reserve=layout.reserve)


def carry_out(plan: Plan, writing: Writing, *, hash_files: bool = False, doing: str = "") -> Receipt | None:
    """Execute the plan and show its receipt; in a dry run, show the plan and return None.

    `doing`: the words of the progress bar; default: by where the bytes come from.

    `hash_files`: put the files' digests into the returned receipt; the user sees them only with --hash.
    """
    preview = plan.preview()
    remark_each(preview.remarks)
    if writing.dry_run:
        show(preview, one_format(json=writing.json))
        return None
    with progress_bar(preview.bytes_copied, doing or ("fetching" if preview.bytes_fetched else "writing")) as progress:
        options = Options(
            force=writing.force,
            sync=writing.sync,
            resume=writing.resume,
            jobs=writing.jobs,
            hash_files=writing.hash or hash_files,
            hash_parts=writing.hash,
            progress=progress,
            note=remark,
            publishing=publishing,
        )
        receipt = execute(plan, options)
    shown = receipt if writing.hash else replace(receipt, digests=None)
    show_receipt(shown, json=writing.json, model=plan.first_shard_path.name)
    return receipt


def recover_first(model: str, *, dry_run: bool) -> None:
    """Finish or undo an interrupted change in place before the next one; a dry run writes nothing."""
    if dry_run:
        return  # opening the model then refuses it, and names the command
    from gguftool.model.recovery import recover_model  # noqa: PLC0415 - the undo journal, only for --in-place

    for text in recover_model(model):
        remark(text)


def with_inputs(plan: Plan, read: Sequence[Source]) -> Plan:
    """Add the files that the command line read besides the models to the inputs: no output may be one of them."""
    return replace(plan, inputs=(*plan.inputs, *read))


def file_plan(path: Path, text: str, read: Sequence[Source]) -> Plan:
    """Plan a file of text; none of the sources `read` may be it."""
    data = text.encode("utf-8", "surrogateescape")
    return Plan(outputs=(OutputFile(path=path, head=data, copies=(), size=len(data)),), inputs=tuple(read))


def write_files(files: Sequence[tuple[Path, bytes]], read: Sequence[Source], *, force: bool) -> None:
    """Write files in one folder or several; write nothing if one must not be written or is one of `read`."""
    outputs = [OutputFile(path=path, head=data, copies=(), size=len(data)) for path, data in files]
    check_targets(Plan(outputs=tuple(outputs), inputs=tuple(read)), force=force)
    for output in outputs:  # a plan with several outputs is a set, which lies in one folder
        execute(Plan(outputs=(output,), inputs=tuple(read)), Options(force=force))
        remark(f"wrote {output.path}")
