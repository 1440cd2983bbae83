"""Preview a quantization: how much is copied, reused and quantized, and how long that takes, from a short trial."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from gguftool.format.ggml import type_alias
from gguftool.record import record, replace
from gguftool.storage.plan import Plan, Preview, SourceUse
from gguftool.surgery.quantize.plan import Decision, TensorOrigin, TensorStep
from gguftool.surgery.quantize.quantized_source import QuantizedSource

_TRIAL = 64 << 10  # elements quantized to each type: the slowest type takes a tenth of a second


@record
class SourceShare:
    """Tensors copied from one model; `nbytes` without padding."""

    source: str
    tensors: int
    nbytes: int


@record
class QuantizedShare:
    """Tensors quantized to one type; `seconds` of one core, from a short trial, or None if nothing was tried."""

    type: str
    tensors: int
    elements: int
    nbytes: int
    seconds: float | None


@record
class QuantizePreview:
    """A preview of a run; `seconds` with `threads` threads, or None if there is nothing to quantize or to try."""

    plan: Preview
    copied: tuple[SourceShare, ...]
    reused: tuple[SourceShare, ...]
    quantized: tuple[QuantizedShare, ...]
    threads: int
    seconds: float | None


def preview_quantize(decision: Decision, plan: Plan, jobs: int | None = None) -> QuantizePreview:
    """Sum up `decision`, and time the types on a few rows each; raises `SourceError` if reading fails."""
    threads = jobs or os.cpu_count() or 1
    types: dict[int, list[TensorStep]] = {}
    for step in decision.made:
        types.setdefault(step.tensor.info.type, []).append(step)
    shares = tuple(_type_share(type_id, steps) for type_id, steps in types.items())
    tried = [share.seconds for share in shares if share.seconds is not None]
    return QuantizePreview(
        plan=_with_made(plan.preview(), decision.made),
        copied=_shares(step for step in decision.steps if step.origin is TensorOrigin.COPIED),
        reused=_shares(step for step in decision.steps if step.origin is TensorOrigin.REUSED),
        quantized=shares,
        threads=threads,
        seconds=sum(tried) / threads if tried else None,
    )


def _with_made(preview: Preview, made: Sequence[TensorStep]) -> Preview:
    """Correct `preview` for the tensors that are `made`: a plan counts computed bytes as if they were read."""
    uses = {use.name: use.nbytes for use in preview.uses}
    fetched = preview.bytes_fetched
    for step in made:
        computed = step.tensor.padded_extent.source
        if isinstance(computed, QuantizedSource):
            more = computed.tensor.nbytes - computed.size
            uses[computed.name] += more
            fetched += more if computed.is_remote else 0
    return replace(
        preview,
        uses=tuple(SourceUse(name=name, nbytes=nbytes) for name, nbytes in uses.items()),
        bytes_copied=preview.bytes_copied - sum(step.tensor.nbytes for step in made),
        bytes_fetched=fetched,
    )


def _shares(steps: Iterable[TensorStep]) -> tuple[SourceShare, ...]:
    models: dict[str, list[int]] = {}
    for step in steps:
        models.setdefault(step.model.name, []).append(step.tensor.nbytes)
    return tuple(SourceShare(source=name, tensors=len(sizes), nbytes=sum(sizes)) for name, sizes in models.items())


def _type_share(type_id: int, steps: list[TensorStep]) -> QuantizedShare:
    elements = sum(step.tensor.info.elements for step in steps)
    largest = max(steps, key=lambda step: step.tensor.info.elements).tensor.padded_extent.source
    return QuantizedShare(
        type=type_alias(type_id),
        tensors=len(steps),
        elements=elements,
        nbytes=sum(step.tensor.nbytes for step in steps),
        seconds=_cost(largest) * elements if isinstance(largest, QuantizedSource) else None,
    )


def _cost(source: QuantizedSource) -> float:
    """Measure the seconds that one element takes, on a few rows."""
    rows = min(max(_TRIAL // source.tensor.info.width, 1), source.tensor.info.rows)
    source.read_at(0, source.row_size)  # warms up the disk and the caches
    start = time.perf_counter()
    source.read_at(0, rows * source.row_size)
    return (time.perf_counter() - start) / (rows * source.tensor.info.width)
