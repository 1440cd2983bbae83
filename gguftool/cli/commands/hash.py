"""The hash command: print sha256 of tensors and files, and check them against manifests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gguftool.analysis.verify import hash_files, hash_tensors, verify_manifest
from gguftool.cli.shared.console import progress_bar, write, write_exactly
from gguftool.cli.shared.options import Force, FullPaths, Json
from gguftool.cli.shared.show import show, show_receipt
from gguftool.errors import PlanError
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.render.format import Format
from gguftool.render.hashes import manifest_text, sums_text, verdicts_text
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Receipt
from gguftool.surgery.tensors_map import plan_tensors_map


def hash_(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A model; not needed with --check.", show_default=False)
    ] = None,
    files: Annotated[bool, typer.Option("--files", help="Hash whole files, in the format of sha256sum.")] = False,
    write_map: Annotated[
        bool, typer.Option("--map", help="Write tensors.map next to the shards of a set with one tensor per shard.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="MANIFEST",
            help="Check against a tensors.map or another manifest.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Threads. Default: one per core.")
    ] = None,
    force: Force = False,
    json: Json = False,
    full_paths: FullPaths = False,
) -> None:
    """Print the sha256 of each tensor's data, or check hashes.

    The hash of a tensor does not depend on head or layout: the same tensor in another file has the same hash. The last
    line hashes all data in header order, as llama-gguf-hash --sha256 does.

    Two ways to use it:

    \b
    gguftool hash model.gguf --files > model.sha256
    gguftool hash --check model.sha256
    """  # noqa: D301 - \b keeps the lines of a paragraph
    opened = open_model(model) if model is not None else None
    names = [file.source.name for file in opened.files] if opened is not None else []
    if check is not None:
        with progress_bar(0, "checking") as progress:
            verdicts = verify_manifest(check, opened, jobs, progress)
        if json:
            names += [verdict.name for verdict in verdicts if os.path.isabs(verdict.name)]  # of files, in the manifest
            show(verdicts, Format.JSON, full_paths=full_paths, paths=names)
        else:
            write(verdicts_text(verdicts))
        if any(verdict.ok is False for verdict in verdicts) or not any(verdict.ok for verdict in verdicts):
            raise typer.Exit(1)
        return
    if opened is None:
        raise typer.BadParameter("MODEL is needed, or --check MANIFEST")
    if write_map:
        show_receipt(_write_map(opened, force=force, jobs=jobs), json=json)
        return
    size = sum(file.source.size for file in opened.files)
    with progress_bar(size, "hashing") as progress:
        if files:
            hashes = hash_files(opened, jobs, progress)
        else:  # each byte counts for its tensor and for the whole
            hashes = hash_tensors(opened, jobs, lambda nbytes: progress(nbytes / 2))
    if json:
        show(hashes, Format.JSON, full_paths=full_paths, paths=names)
    elif files:
        write_exactly(sums_text(hashes))
    else:
        write(manifest_text(hashes))


def _write_map(model: Model, *, force: bool, jobs: int | None) -> Receipt:
    """Hash the shards of `model` and write tensors.map into their folder."""
    if any(source.is_remote for source in model.sources):
        raise PlanError("is not local, so no map can be written next to it; fetch it first", source=model.name)
    with progress_bar(sum(file.source.size for file in model.files), "hashing") as progress:
        hashes = hash_files(model, jobs, progress)
    folder = Path(model.files[0].source.name).parent
    plan = plan_tensors_map(model, {one.name: one.sha256 for one in hashes}, folder / "tensors.map")
    return execute(plan, Options(force=force))
