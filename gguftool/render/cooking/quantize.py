"""The output of `gguftool quantize --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.render.format import Format
from gguftool.render.plan import preview_parts
from gguftool.render.registry import renders
from gguftool.render.table import Table, columns
from gguftool.surgery.quantize.preview import QuantizePreview


@renders(QuantizePreview, Format.TEXT)
def quantize_preview_parts(preview: QuantizePreview) -> Iterator[str | Table]:
    """Yield where the tensors come from and how long quantizing takes, then the preview of the plan."""
    rows = [
        *((f"{share.tensors:,}", f"{share.nbytes:,}", f"copied from {share.source}", "") for share in preview.copied),
        *((f"{share.tensors:,}", f"{share.nbytes:,}", f"reused from {share.source}", "") for share in preview.reused),
        *(
            (f"{share.tensors:,}", f"{share.nbytes:,}", f"quantized to {share.type}", duration(share.seconds))
            for share in preview.quantized
        ),
    ]
    heads = columns(">tensors", ">bytes", "what", ">one core", wrap="what")
    yield Table(title="tensors", columns=heads, rows=tuple(rows), drop=("tensors",))
    yield f"{_time(preview)}\n"
    yield from preview_parts(preview.plan)


def _time(preview: QuantizePreview) -> str:
    if not preview.quantized:
        return "nothing to quantize"
    if preview.seconds is None:
        return "llama-quantize makes these first; the time it takes was not measured"
    threads = "1 thread" if preview.threads == 1 else f"{preview.threads} threads"
    return f"about {duration(preview.seconds)} of quantizing with {threads}, by a short trial"


def duration(seconds: float | None) -> str:
    """Format seconds for people: ``0.4 s``, ``12 s``, ``3 min``, ``2.5 h``; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
