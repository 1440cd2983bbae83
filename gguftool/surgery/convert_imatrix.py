"""Conversion of importance matrices: a plan for a file of the other format."""

from __future__ import annotations

from pathlib import Path

from gguftool.errors import PlanError
from gguftool.format.imatrix import Imatrix, ImatrixKind
from gguftool.format.imatrix_write import losses_of_legacy, serialize_gguf, serialize_legacy
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.source import Source


def kind_of_name(output: Path) -> ImatrixKind | None:
    """Return the format that a file's ending stands for, None where it stands for none."""
    return {".dat": ImatrixKind.LEGACY, ".gguf": ImatrixKind.GGUF}.get(output.suffix.lower())


def plan_convert(
    source: Source, imatrix: Imatrix, output: Path, kind: ImatrixKind, chunk_size: int | None = None
) -> Plan:
    """Plan the file `output` that holds `imatrix`, read from `source`, in the format `kind`.

    `chunk_size` is what the chunks of a legacy file are taken for, in tokens. The remarks say what the legacy format
    cannot hold. Raises `PlanError` where it is in that format already, or cannot be said in it.
    """
    if kind is imatrix.kind:
        form = "a GGUF" if kind is ImatrixKind.GGUF else "in the legacy format"
        raise PlanError(f"is {form} already; --to {_other(kind).value} makes the other one", source=source.name)
    try:
        data = serialize_gguf(imatrix, chunk_size) if kind is ImatrixKind.GGUF else serialize_legacy(imatrix)
    except PlanError as error:
        error.source = source.name
        raise
    lost = losses_of_legacy(imatrix) if kind is ImatrixKind.LEGACY else ()
    return Plan(
        outputs=(OutputFile(path=output, head=data, copies=(), size=len(data)),), inputs=(source,), remarks=lost
    )


def _other(kind: ImatrixKind) -> ImatrixKind:
    return ImatrixKind.LEGACY if kind is ImatrixKind.GGUF else ImatrixKind.GGUF
