"""A small model, a text and a fake engine: what the tests of measuring have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguftool.cooking.measure_lines import (
    Basis,
    Carrier,
    ErrorLine,
    FloorLine,
    KldLine,
    Line,
    ScaleLine,
    Scores,
)
from gguftool.cooking.measuring.bench import Setup
from gguftool.cooking.measuring.groups import Grouping, parse_grouping
from gguftool.cooking.measuring.run import Measuring, Selection
from gguftool.record import replace
from tests.support.fake_perplexity import make_fake
from tests.support.paths import FIXTURES

MODEL = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
CONTEXT, CHUNKS = 128, 2
BASIS = Basis(model="m", text="t", imatrix=None, engine="e", options="-c 512", gguftool="1")
SCORES = Scores(
    kld=0.002,
    kld_se=0.0001,
    same_top=0.97,
    same_top_se=0.01,
    ppl=34.5,
    ppl_se=1.5,
    ppl_ratio=1.01,
    ppl_ratio_se=0.002,
    tokens=510,
    chunks=2,
    by_chunk=(0.001, 0.003),
)
LINES: tuple[Line, ...] = (
    FloorLine(scores=replace(SCORES, kld=-1e-6, by_chunk=None), base_ppl=34.4, basis=BASIS),
    KldLine(
        group="attn_v",
        tensors=("blk.0.attn_v.weight", "blk.1.attn_v.weight"),
        type="q3_K",
        censored=False,
        scores=SCORES,
        carrier=Carrier(type="f16", error=1e-8),
        basis=BASIS,
    ),
    KldLine(group="x\n\x1b", tensors=("x",), type="iq4_xs", censored=True, scores=SCORES, carrier=None, basis=BASIS),
    ErrorLine(
        tensor="x", type="q4_0", error=0.01, weighted_error=None, rows=512, of=9000, source="a.gguf", basis=BASIS
    ),
    ScaleLine(factor=1.07, predicted=0.1, actual=0.107, recipe="sha", basis=BASIS),
)


def make_setup(folder: Path, mode: str = "ok", **changes: Any) -> Setup:
    """What to measure: the tiny model on a text in `folder`, with a fake engine."""
    text = folder / "text.txt"
    text.write_bytes(b"It was a bright cold day in April. " * 40)
    engine = make_fake(folder / mode.replace(" ", "-"), mode)
    fields = {"model": str(MODEL), "text": str(text), "engine": str(engine), "context": CONTEXT, "chunks": CHUNKS}
    return Setup(**{**fields, "version": "1", **changes})


def selection(*types: str, patterns: tuple[str, ...] = (r"blk\.0\.attn_",), group: tuple[str, ...] = ()) -> Selection:
    """Tensors at types; by default the four of one attention."""
    grouping = parse_grouping(group) if group else Grouping()
    return Selection(patterns=patterns, types=types or ("q4_0",), grouping=grouping)


def measuring(setup: Setup, output: Path, chosen: Selection | None = None, **options: Any) -> Measuring:
    """A run of `measure` that can begin."""
    return Measuring(setup, chosen or selection(), output, **options)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a measure file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
