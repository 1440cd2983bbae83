"""The Pareto curve as SVG shapes: the best mixes at all sizes, other mixes for comparison, and the plan.

It is drawn twice, wide and narrow: text in a scaled drawing would be unreadable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gguftool.cooking.exploration import Exploration
from gguftool.cooking.mix import Mix
from gguftool.record import record
from gguftool.render.page_of_plan.names import Names
from gguftool.render.units import format_size

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34  # margins of a drawing
_HEIGHT = 300
_WIDTHS = (("wide", 860), ("narrow", 340))
_LABEL = 15  # characters of a name next to its dot
_CHARACTER, _LINE = 6.6, 13.0  # of a label
_SPAN = 1e-5  # of the largest damage: less is drawn at the bottom


@record
class Tick:
    """A line of the grid: its place and its number."""

    at: float
    text: str


@record
class Dot:
    """Another mix: its place, its description, and its name if there is space for it."""

    x: float
    y: float
    words: str
    label: str


@record
class Curve:
    """A drawing. `left` and `right` are the bits per weight at its sides, `top` and `bottom` logarithms of damage."""

    kind: str
    width: int
    height: int
    path: str
    columns: tuple[Tick, ...]
    lines: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    mark: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float
    frame: tuple[int, int, int, int]


def curves_of(plan: Exploration, names: Names) -> tuple[Curve, ...]:
    """Make the drawings; empty for a plan without a curve."""
    if len(plan.mix.curve) < 2 or not any(point.damage > 0 for point in plan.mix.curve):
        return ()
    return tuple(_curve(plan.mix, names, kind, width) for kind, width in _WIDTHS)


def _curve(mix: Mix, names: Names, kind: str, width: int) -> Curve:
    others = [one for one in mix.rivals if math.isfinite(one.damage)]
    bits = [point.bits_per_weight for point in mix.curve] + [one.bits_per_weight for one in others]
    least = _SPAN * max(point.damage for point in mix.curve)
    logs = [_log(damage, least) for damage in [*(point.damage for point in mix.curve), *(one.damage for one in others)]]
    left, right = min(bits), max(bits)
    bottom, top = min(logs), max(logs)
    frame = (_LEFT, _TOP, width - _RIGHT, _HEIGHT - _BOTTOM)

    def x_of(value: float) -> float:
        return frame[0] + (frame[2] - frame[0]) * (value - left) / ((right - left) or 1.0)

    def y_of(damage: float) -> float:
        return frame[3] - (frame[3] - frame[1]) * (_log(damage, least) - bottom) / ((top - bottom) or 1.0)

    points = [(x_of(point.bits_per_weight), y_of(point.damage)) for point in mix.curve]
    placed = [(x_of(one.bits_per_weight), y_of(one.damage), names.clean(one.name)) for one in others]
    words = [f"{names.clean(one.name)}: {format_size(one.nbytes)}, {one.damage:.4g}" for one in others]
    labels = _labels(placed, width)
    step = _step((right - left) / (width / 90))
    first = math.ceil(left / step)
    return Curve(
        kind=kind,
        width=width,
        height=_HEIGHT,
        path="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points),
        columns=tuple(
            Tick(at=x_of(at * step), text=f"{at * step:g}") for at in range(first, math.floor(right / step) + 1)
        ),
        lines=tuple(
            Tick(at=y_of(10.0**at), text=f"{10.0**at:g}") for at in range(math.ceil(bottom), math.floor(top) + 1)
        ),
        dots=tuple(
            Dot(x=x, y=y, words=text, label=label) for (x, y, _), text, label in zip(placed, words, labels, strict=True)
        ),
        mark=(x_of(mix.bits_per_weight), y_of(mix.damage)),
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        frame=frame,
    )


def _log(damage: float, least: float) -> float:
    return math.log10(max(damage, least, 1e-300))


def _step(rough: float) -> float:
    """Choose a round step of at least `rough`."""
    for step in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0):
        if step >= rough:
            return step
    return 4.0 * math.ceil(rough / 4)


def _labels(dots: Sequence[tuple[float, float, str]], width: int) -> list[str]:
    """Choose labels for the dots that have space next to them, so that no label covers another."""
    taken: list[tuple[float, float, float]] = []
    labels = []
    for x, y, name in dots:
        text = name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
        end = x + 6 + len(text) * _CHARACTER
        free = end < width and all(abs(y - other) > _LINE or x > stop or end < start for start, stop, other in taken)
        labels.append(text if free else "")
        if free:
            taken.append((x, end, y))
    return labels
