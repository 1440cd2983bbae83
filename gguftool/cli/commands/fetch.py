"""The fetch command: fetch a model, some of its tensors, or what a damaged file lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gguftool.cli.shared.console import progress_bar, remark
from gguftool.cli.shared.options import OptionalOutput, ThisFileOnly, local_path
from gguftool.cli.shared.running import carry_out, output_options, recover_first
from gguftool.cli.shared.show import show_receipt
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.errors import FormatError, LimitError
from gguftool.format.manifests import is_tensor_hashes, manifest_lines, parse_tensor_hashes
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.storage.plan import Plan, Receipt
from gguftool.storage.sources.locate import base_name, open_source
from gguftool.surgery.fetch import FetchOptions, plan_fetch, plan_fetch_files
from gguftool.surgery.repair import MAX_MANIFEST, Damage, DamageOptions, find_damage, hashes_of_tensors, plan_repair

Connections = Annotated[
    int | None, typer.Option("--jobs", metavar="N", min=1, help="Connections. Default: 8.", show_default=False)
]


@writer("align", "pad", "reserve", "force_sizes", jobs=Connections)
def fetch(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="hf://ORG/REPO/FILE, a URL, or a local model.", show_default=False),
    ] = None,
    output: OptionalOutput = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor",
            metavar="PATTERN",
            help="Take only these tensors: a name, or a regular expression to search for in the names. Repeatable.",
        ),
    ] = None,
    repair: Annotated[
        Path | None,
        typer.Option(
            "--repair",
            parser=local_path,
            metavar="FILE",
            help="Fetch only what this file lacks, or what the files of a set in this folder lack.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="The same as MODEL, to use with --repair.", show_default=False),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="MANIFEST",
            help="With --repair: tensor hashes as 'gguftool hash' prints them; fetch the tensors that differ.",
            show_default=False,
        ),
    ] = None,
    this_file_only: ThisFileOnly = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Fetch a model or some of its tensors; repair a download.

    Copies a single file byte for byte, and merges a set into one file; into a folder OUT, copies files as they are.
    With --tensor, OUT is a GGUF of these tensors, to merge or swap from. --repair looks for what is missing, zeroed or
    different in FILE and fetches only that.

    Two ways to use it:

    \b
    gguftool fetch hf://ORG/REPO/model.gguf -o model.gguf
    gguftool fetch --repair model.gguf --from hf://ORG/REPO/model.gguf
    """  # noqa: D301 - \b keeps the lines of a paragraph
    name = _one_model(model, source)
    if repair is not None:
        if tensor or layout.any:
            raise typer.BadParameter("--repair makes FILE equal to MODEL; it takes no option that changes the output")
        if repair.is_dir():
            _repair_set(name, repair, output, check, writing)
            return
        plan = _plan_repair(name, repair, output, check, writing)
    else:
        if check is not None:
            raise typer.BadParameter("--check goes with --repair; hash --check checks a file")
        if output is None:
            raise typer.BadParameter("-o OUT is needed, or --repair FILE")
        options = FetchOptions(patterns=tuple(tensor or ()), output=output_options(layout))
        plan = _plan_fetch(name, output, options, this_file_only=this_file_only)
    if plan is not None:
        carry_out(plan, writing)


def _plan_fetch(name: str, output: Path, options: FetchOptions, *, this_file_only: bool) -> Plan:
    opened = open_model(name, this_file_only=this_file_only)
    if not output.is_dir():
        return plan_fetch(opened, output, options)
    if options.patterns or not options.as_it_is:
        raise typer.BadParameter(f"files are copied into a folder as they are; -o {output}/NAME.gguf makes a new one")
    return plan_fetch_files(opened, output)


def _one_model(model: str | None, source: str | None) -> str:
    if (model is None) == (source is None):
        raise typer.BadParameter("name one MODEL, as the argument or with --from")
    return model or source or ""


def _plan_repair(name: str, file: Path, output: Path | None, check: str | None, writing: Writing) -> Plan | None:
    """Look for damage and plan its repair; if there is no damage, say so and return None."""
    (original,) = open_model(name, this_file_only=True).files
    hashes = None if check is None else _tensor_hashes(check)
    recover_first(str(file), dry_run=writing.dry_run)
    local = open_source(str(file))
    with progress_bar(local.size, "looking for damage") as progress:
        options = DamageOptions(hashes=hashes, jobs=writing.jobs, progress=progress)
        damage = find_damage(local, original, options)
    if not damage.found and (damage.is_proven or damage.sha256 is None) and output is None:
        _say_sound(file, damage, json=writing.json)
        return None
    return plan_repair(local, original, damage, output)


def _repair_set(name: str, folder: Path, output: Path | None, check: str | None, writing: Writing) -> None:
    """Repair the files of a set in `folder`, one after the other; fetch missing files whole."""
    if output is not None:
        raise typer.BadParameter("the files of a set are repaired where they are; it takes no -o OUT")
    model = open_model(name)
    absent = [file for file in model.files if not (folder / base_name(file.source.name)).exists()]
    if absent:
        whole = plan_fetch_files(model, folder)
        paths = {folder / base_name(file.source.name) for file in absent}
        outputs = tuple(one for one in whole.outputs if one.path in paths)
        carry_out(replace(whole, outputs=outputs), writing)
    for file in model.files:
        if file not in absent:
            plan = _plan_repair(file.source.name, folder / base_name(file.source.name), None, check, writing)
            if plan is not None:
                carry_out(plan, writing)


def _say_sound(file: Path, damage: Damage, *, json: bool) -> None:
    if damage.is_proven:
        remark(f"{file}: nothing to repair: its sha256 matches the recorded one")
    else:
        remark(f"{file}: no hole, no zeros and no difference in the head; no sha256 is recorded to compare with")
    if json:
        show_receipt(Receipt(paths=(), nbytes=0), json=True)


def _tensor_hashes(manifest: str) -> dict[str, str]:
    source = open_source(manifest)
    if source.size > MAX_MANIFEST:
        raise LimitError(
            f"{source.size:,} bytes; gguftool reads a manifest of at most {MAX_MANIFEST:,}", source=manifest
        )
    text = source.read_at(0, source.size).decode("utf-8", "surrogateescape")
    lines = [line for line in manifest_lines(text) if is_tensor_hashes(line)]  # sums of files may be among them
    if not lines:
        raise FormatError("holds no tensor hashes as gguftool hash prints them", source=manifest)
    return hashes_of_tensors(parse_tensor_hashes(lines, manifest))
