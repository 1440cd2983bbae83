"""Convert an importance matrix: plan a file in the other format."""

from __future__ import annotations

from pathlib import Path

from gguftool.errors import PlanError
from gguftool.format.imatrix import Imatrix, ImatrixKind
from gguftool.format.imatrix_write import losses_of_legacy, serialize_gguf, serialize_legacy
from gguftool.model.opening import StrPath, as_source
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.source import Source


def kind_of_name(output: Path) -> ImatrixKind | None:
    """The format that the file's suffix stands for, or None."""
    return {".dat": ImatrixKind.LEGACY, ".gguf": ImatrixKind.GGUF}.get(output.suffix.lower())


def plan_convert_imatrix(
    source: Source | StrPath, imatrix: Imatrix, kind: ImatrixKind, output: StrPath, chunk_size: int | None = None
) -> Plan:
    """Plan `imatrix`, which was read from `source`, as the file `output` in the format `kind`.

    `chunk_size`: tokens in a chunk, which a legacy file does not record. Remarks name what the legacy format cannot
    hold. Raises `PlanError` if the imatrix is already in that format, or the format cannot express it.
    """
    source = as_source(source)
    if kind is imatrix.kind:
        form = "a GGUF" if kind is ImatrixKind.GGUF else "in the legacy format"
        raise PlanError(f"is already {form}; --to {_other(kind).value} makes the other one", source=source.name)
    try:
        data = serialize_gguf(imatrix, chunk_size) if kind is ImatrixKind.GGUF else serialize_legacy(imatrix)
    except PlanError as error:
        error.source = source.name
        raise
    lost = losses_of_legacy(imatrix) if kind is ImatrixKind.LEGACY else ()
    return Plan(
        outputs=(OutputFile(path=Path(output), head=data, copies=(), size=len(data)),), inputs=(source,), remarks=lost
    )


def _other(kind: ImatrixKind) -> ImatrixKind:
    return ImatrixKind.LEGACY if kind is ImatrixKind.GGUF else ImatrixKind.GGUF
