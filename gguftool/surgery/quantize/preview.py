"""What quantizing would take: how much of what kind, and after a short trial for how long."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from gguftool.format.ggml import type_alias
from gguftool.record import record, replace
from gguftool.storage.plan import Plan, Preview, SourceUse
from gguftool.surgery.quantize.plan import Decision, Origin, Step
from gguftool.surgery.quantize.quantized_source import Quantized

_TRIAL = 64 << 10  # elements that are tried of each type: a tenth of a second of the slowest


@record
class SourceShare:
    """Tensors that come from one model as they are; `nbytes` without padding."""

    source: str
    tensors: int
    nbytes: int


@record
class MadeShare:
    """Tensors that are quantized to one type; `seconds` of one core by a short trial, None where nothing was tried."""

    type: str
    tensors: int
    elements: int
    nbytes: int
    seconds: float | None


@record
class QuantizePreview:
    """What a run would do; `seconds` of `threads` threads, None where there is nothing to quantize or to try."""

    plan: Preview
    copied: tuple[SourceShare, ...]
    reused: tuple[SourceShare, ...]
    quantized: tuple[MadeShare, ...]
    threads: int
    seconds: float | None


def preview_quantize(decision: Decision, plan: Plan, jobs: int | None = None) -> QuantizePreview:
    """Count what `decision` comes to, and try a few rows of each type; raises `SourceError` where those cannot be."""
    threads = jobs or os.cpu_count() or 1
    types: dict[int, list[Step]] = {}
    for step in decision.made:
        types.setdefault(step.tensor.info.type, []).append(step)
    shares = tuple(_type_share(type_id, steps) for type_id, steps in types.items())
    tried = [share.seconds for share in shares if share.seconds is not None]
    return QuantizePreview(
        plan=_with_made(plan.preview(), decision.made),
        copied=_shares(step for step in decision.steps if step.origin is Origin.COPIED),
        reused=_shares(step for step in decision.steps if step.origin is Origin.REUSED),
        quantized=shares,
        threads=threads,
        seconds=sum(tried) / threads if tried else None,
    )


def _with_made(preview: Preview, made: Sequence[Step]) -> Preview:
    """Return `preview` with what is read for the tensors that are `made`: a plan takes computed bytes for copies."""
    uses = {use.name: use.nbytes for use in preview.uses}
    fetched = preview.bytes_fetched
    for step in made:
        computed = step.tensor.gap.source
        if isinstance(computed, Quantized):
            more = computed.tensor.nbytes - computed.size
            uses[computed.name] += more
            fetched += more if computed.is_remote else 0
    return replace(
        preview,
        uses=tuple(SourceUse(name=name, nbytes=nbytes) for name, nbytes in uses.items()),
        bytes_copied=preview.bytes_copied - sum(step.tensor.nbytes for step in made),
        bytes_fetched=fetched,
    )


def _shares(steps: Iterable[Step]) -> tuple[SourceShare, ...]:
    models: dict[str, list[int]] = {}
    for step in steps:
        models.setdefault(step.model.name, []).append(step.tensor.nbytes)
    return tuple(SourceShare(source=name, tensors=len(sizes), nbytes=sum(sizes)) for name, sizes in models.items())


def _type_share(type_id: int, steps: list[Step]) -> MadeShare:
    elements = sum(step.tensor.info.elements for step in steps)
    largest = max(steps, key=lambda step: step.tensor.info.elements).tensor.gap.source
    return MadeShare(
        type=type_alias(type_id),
        tensors=len(steps),
        elements=elements,
        nbytes=sum(step.tensor.nbytes for step in steps),
        seconds=_cost(largest) * elements if isinstance(largest, Quantized) else None,
    )


def _cost(source: Quantized) -> float:
    """Return the seconds that an element takes, by a few rows."""
    rows = min(max(_TRIAL // source.width, 1), source.rows)
    source.read_at(0, source.row_size)  # wakes the disk and the processor's caches
    start = time.perf_counter()
    source.read_at(0, rows * source.row_size)
    return (time.perf_counter() - start) / (rows * source.width)
