"""A planned mix as text: its cost and basis, types, devices, rivals and curve; and as a chart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from gguftool.cooking.mix import CurvePoint, Mix
from gguftool.cooking.recipe_text import damage_words
from gguftool.errors import printable
from gguftool.record import record
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.screen import Verbatim, wrapped
from gguftool.render.table import Table, columns
from gguftool.render.units import format_size

_POINTS = 12  # of the curve in text
_BAR = 32  # characters; a bar that a narrow terminal cuts would lie, so the column is left out there
_BARS = "on a logarithmic scale"
_NEAR = 1.6  # rivals within this factor of the mix's size are shown


@record
class Recipe:
    """A recipe to copy: a narrow terminal breaks its comments into more comments, but no rule and no command."""

    text: str

    def as_text(self) -> str:
        """Render the recipe as it is."""
        return self.text

    def as_rich(self, width: int, /) -> str:
        """Render the recipe with comments of at most `width` columns."""
        lines = []
        for line in self.text.splitlines():
            comment = line.startswith("#") and not line.startswith("# run with:")
            lines += wrapped(line, width, later="#   ", whole_words=True) if comment else [line]
        return "".join(f"{line}\n" for line in lines)


@renders(Mix, Format.TEXT)
def mix_parts(mix: Mix, *, recipe: bool = True) -> Iterator[str | Table | Verbatim | Recipe]:
    """Yield the summary, tables of types, devices, rivals and the curve, and the recipe unless a file gets it."""
    yield _summary(mix)
    yield _types(mix)
    if mix.devices:
        yield _devices(mix)
    rivals = [one for one in mix.rivals if mix.nbytes / _NEAR <= one.nbytes <= mix.nbytes * _NEAR]
    if rivals:
        yield _rivals(mix)
    if len(mix.curve) > 1:
        yield _curve(mix)
    if mix.arguments:
        yield Verbatim(text=f"run it with\n  {printable(mix.arguments, 1 << 16)}\n")
    if recipe:
        yield Recipe(text=mix.recipe)


def _summary(mix: Mix) -> str:
    lines = [
        f"{printable(mix.model, 1000)}: {mix.bits_per_weight:.4g} bits per weight, {mix.nbytes:,} bytes of tensors "
        f"({format_size(mix.nbytes)}), for {printable(mix.target, 1000)}",
        damage_words(mix),
        f"at most {mix.gap:.2%} from the best mix under this model of damage",
        f"based on {printable(mix.basis, 1000)}" if mix.unit is not None else printable(mix.basis, 1000),
    ]
    return "\n".join(lines) + "\n"


def _types(mix: Mix) -> Table:
    chosen = sum(use.nbytes for use in mix.types) or 1
    rows = tuple(
        (
            use.type,
            f"{use.tensors:,}",
            f"{use.nbytes:,}",
            f"{use.nbytes / chosen:.1%}",
            f"{use.nbytes * 8 / use.elements:.4g}" if use.elements else "",
        )
        for use in mix.types
    )
    heads = columns("type", ">tensors", ">bytes", ">share", ">bpw")
    return Table(title="types", columns=heads, rows=rows, drop=("share", "tensors"))


def _devices(mix: Mix) -> Table:
    rows = tuple(
        (
            use.name,
            format_size(use.size),
            format_size(use.kv_cache),
            format_size(use.compute),
            format_size(use.weights),
            format_size(max(use.free, 0)),
            f"{use.tensors:,}",
        )
        for use in mix.devices
    )
    heads = columns("device", ">size", ">KV cache", ">compute", ">weights", ">free", ">tensors")
    return Table(title="devices", columns=heads, rows=rows, drop=("tensors", "compute", "KV cache", "size"))


def _rivals(mix: Mix) -> Table:
    """Compare mixes of similar size with the plans of their own sizes; show only sizes if nothing was measured."""
    near = [one for one in mix.rivals if mix.nbytes / _NEAR <= one.nbytes <= mix.nbytes * _NEAR]
    if mix.unit is None:
        sizes = tuple((printable(one.name), f"{one.nbytes:,}", f"{one.bits_per_weight:.3f}") for one in near)
        return Table(title="other mixes", columns=columns("mix", ">bytes", ">bpw", middle="mix"), rows=sizes)
    rows = tuple(
        (
            printable(one.name),
            f"{one.nbytes:,}",
            f"{one.bits_per_weight:.3f}",
            f"{one.damage:.4g}",
            "" if one.planned is None else f"{one.planned:.4g}",
            "" if one.planned is None or not one.damage else f"{one.planned / one.damage - 1:+.1%}",
        )
        for one in near
    )
    heads = columns("mix", ">bytes", ">bpw", f">{_label(mix)}", ">planned, same size", ">change", middle="mix")
    return Table(
        title="compared with other mixes", columns=heads, rows=rows, drop=("planned, same size", "bpw", "bytes")
    )


def _label(mix: Mix) -> str:
    return f"expected {mix.unit}" if mix.unit else "relative damage"


def _curve(mix: Mix) -> Table:
    points = _some(mix.curve)
    least = 1e-5 * max(point.damage for point in points)
    logs = [math.log(max(point.damage, least, 1e-300)) for point in points]
    low, high = min(logs), max(logs)
    rows = tuple(
        (
            f"{point.bits_per_weight:.3f}",
            format_size(point.nbytes),
            f"{point.damage:.4g}",
            "#" * max(1, round(_BAR * (log - low) / (high - low or 1.0))),
        )
        for point, log in zip(points, logs, strict=True)
    )
    heads = columns(">bpw", ">size", f">{_label(mix)}", _BARS)
    return Table(title="the best mixes at other sizes", columns=heads, rows=rows, drop=(_BARS,))


def _some(curve: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Pick points of a curve at roughly even steps of size."""
    count = min(_POINTS, len(curve))
    first, last = curve[0].nbytes, curve[-1].nbytes
    wanted = [first + (last - first) * at / max(count - 1, 1) for at in range(count)]
    picked = [min(curve, key=lambda point: abs(point.nbytes - size)) for size in wanted]
    return list({point.nbytes: point for point in picked}.values())


def mix_chart(mix: Mix, form: str) -> bytes:
    """Draw the curve of best mixes, with presets and recipes, as ``png`` or ``svg``.

    Raises `ImportError` without matplotlib.
    """
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    points = [point for point in mix.curve if point.damage > 0]
    axes.plot([point.bits_per_weight for point in points], [point.damage for point in points], label="best mixes")
    others = [one for one in mix.rivals if one.damage > 0]
    axes.scatter([one.bits_per_weight for one in others], [one.damage for one in others], s=14, color="tab:orange")
    for one in others:
        name = printable(one.name, 40).replace("$", r"\$")
        axes.annotate(name, (one.bits_per_weight, one.damage), fontsize=7, xytext=(3, 3), textcoords="offset points")
    if mix.damage > 0:
        axes.scatter([mix.bits_per_weight], [mix.damage], marker="*", s=120, color="tab:red", label="this mix")
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight")
    axes.set_ylabel(_label(mix))
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format=form, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()
