"""The fetch command: a model, some of its tensors, or what a damaged file lacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import (
    Align,
    DryRun,
    Force,
    ForceSizesOption,
    HashOption,
    Json,
    NoResume,
    NoSync,
    OptionalOutput,
    Pad,
    Reserve,
    ThisFileOnly,
    filler_of,
    local_path,
)

if TYPE_CHECKING:
    from gguftool.storage.plan import Plan
    from gguftool.surgery.repair import Damage


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
            help="Take these tensors only: a name, or a regular expression that is searched in the names. Repeatable.",
        ),
    ] = None,
    repair: Annotated[
        Path | None,
        typer.Option(
            "--repair",
            parser=local_path,
            metavar="FILE",
            help="Fetch only what this file lacks.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="MODEL", help="The same as MODEL, to be said with --repair.", show_default=False
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="MANIFEST",
            help="With --repair: tensors' hashes, as 'gguftool hash' prints them; those that differ are fetched.",
            show_default=False,
        ),
    ] = None,
    this_file_only: ThisFileOnly = False,
    align: Align = None,
    pad: Pad = False,
    reserve: Reserve = 0,
    force_sizes: ForceSizesOption = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Connections. Default: 8.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    force: Force = False,
    no_sync: NoSync = False,
    no_resume: NoResume = False,
    hash_: HashOption = False,
    json: Json = False,
) -> None:
    """Fetch a model or some of its tensors, or repair a download.

    A model of one file comes byte for byte, a set as one merged file; where OUT is a folder, files come as they are.
    With --tensor OUT is a GGUF of these tensors, to merge or swap from. --repair looks for what is missing, zeroed or
    different in FILE and fetches that alone.
    """
    from gguftool.cli.shared.writing import Writing, carry_out

    name = _one_model(model, source)
    if repair is not None:
        if tensor or align or pad or reserve or force_sizes:
            raise typer.BadParameter("--repair makes FILE what MODEL is; it takes no option that changes the output")
        plan = _plan_repair(name, repair, output, check, jobs, dry_run=dry_run, json=json)
    else:
        if check is not None:
            raise typer.BadParameter("--check goes with --repair; 'gguftool hash --check' checks a file")
        if output is None:
            raise typer.BadParameter("-o OUT is needed, or --repair FILE")
        from gguftool.cli.shared.writing import force_sizes_of
        from gguftool.model.layout import OutputOptions
        from gguftool.model.opening import open_model
        from gguftool.surgery.fetch import FetchOptions, plan_fetch, plan_fetch_files

        options = FetchOptions(
            patterns=tuple(tensor or ()),
            output=OutputOptions(
                alignment=align, force_sizes=force_sizes_of(force_sizes), filler=filler_of(pad, reserve)
            ),
        )
        opened = open_model(name, this_file_only=this_file_only)
        if output.is_dir():
            if tensor or not options.as_it_is:
                raise typer.BadParameter(f"into a folder files come as they are; -o {output}/NAME.gguf makes a new one")
            plan = plan_fetch_files(opened, output)
        else:
            plan = plan_fetch(opened, output, options)
    if plan is not None:
        writing = Writing(force=force, sync=not no_sync, resume=not no_resume, jobs=jobs, hash=hash_)
        carry_out(plan, writing, dry_run=dry_run, json=json)


def _one_model(model: str | None, source: str | None) -> str:
    if (model is None) == (source is None):
        raise typer.BadParameter("name one MODEL, as the argument or with --from")
    return model or source or ""


def _plan_repair(
    name: str, file: Path, output: Path | None, check: str | None, jobs: int | None, *, dry_run: bool, json: bool
) -> Plan | None:
    """Look for damage and plan its repair; None where there is none, which is said."""
    from gguftool.cli.shared.console import progress_bar
    from gguftool.cli.shared.writing import recover_first
    from gguftool.model.opening import open_model
    from gguftool.storage.sources.locate import open_source
    from gguftool.surgery.repair import find_damage, plan_repair

    recover_first(str(file), dry_run=dry_run)
    local = open_source(str(file))
    (original,) = open_model(name, this_file_only=True).files
    hashes = None if check is None else _tensor_hashes(check)
    with progress_bar(local.size, "looking for damage") as progress:
        damage = find_damage(local, original, hashes, jobs, progress)
    if not damage.found and (damage.is_proven or damage.sha256 is None) and output is None:
        _say_sound(file, damage, json=json)
        return None
    return plan_repair(local, original, damage, output)


def _say_sound(file: Path, damage: Damage, *, json: bool) -> None:
    from gguftool.cli.shared.console import remark
    from gguftool.cli.shared.show import show_receipt
    from gguftool.storage.plan import Receipt

    if damage.is_proven:
        remark(f"{file}: nothing to repair, its sha256 is the recorded one")
    else:
        remark(f"{file}: no hole, no zeros and no difference in the head; nobody recorded a sha256 to compare with")
    if json:
        show_receipt(Receipt(paths=(), nbytes=0), json=True)


def _tensor_hashes(manifest: str) -> dict[str, str]:
    from gguftool.errors import FormatError
    from gguftool.format.manifests import is_tensor_hashes, manifest_lines, parse_tensor_hashes
    from gguftool.storage.sources.locate import open_source
    from gguftool.surgery.repair import MAX_MANIFEST, hashes_of_tensors

    source = open_source(manifest)
    text = source.read_at(0, min(source.size, MAX_MANIFEST)).decode("utf-8", "surrogateescape")
    lines = [line for line in manifest_lines(text) if is_tensor_hashes(line)]  # sums of files may be among them
    if not lines:
        raise FormatError("holds no hashes of tensors; 'gguftool hash MODEL' prints them", source=manifest)
    return hashes_of_tensors(parse_tensor_hashes(lines, manifest))
