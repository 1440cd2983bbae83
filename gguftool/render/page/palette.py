"""A letter and a colour for each tensor type that a report shows.

Types are ranked by bits per weight, so A has the fewest bits and colours run from red (few bits) over yellow to blue
(many); floats are grey.  The letter alone tells types apart: colour is never the only sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase

from gguftool.format.ggml import find_type
from gguftool.record import record

# (background, ink), few bits first, after ColorBrewer's Spectral with its ends lightened for dark pages; the last is
# for floats.
COLOURS = (
    ("#b5174f", "#ffffff"),
    ("#d53e4f", "#ffffff"),
    ("#f46d43", "#1a1a1a"),
    ("#fdae61", "#1a1a1a"),
    ("#fee08b", "#1a1a1a"),
    ("#f3f3a8", "#1a1a1a"),
    ("#cfe88a", "#1a1a1a"),
    ("#abdda4", "#1a1a1a"),
    ("#66c2a5", "#1a1a1a"),
    ("#3288bd", "#ffffff"),
    ("#7365bd", "#ffffff"),
    ("#8c8f98", "#1a1a1a"),
)
_FLOAT = len(COLOURS) - 1
_STEPS = _FLOAT - 1
NO_LETTER = "#"  # for the types beyond the alphabet


@record
class Ink:
    """The look of one type: its letter, and the index of its colours in `COLOURS`."""

    letter: str
    colour: int


def palette(bits: Mapping[str, float]) -> dict[str, Ink]:
    """An ink for each type of `bits` (type name to bits per weight), ranked by them."""
    quantized, floats = _ranked(bits, quantized=True), _ranked(bits, quantized=False)
    letters = dict(zip((*quantized, *floats), ascii_uppercase, strict=False))
    colours = {name: _step(rank, len(quantized)) for rank, name in enumerate(quantized)}
    return {
        name: Ink(letter=letters.get(name, NO_LETTER), colour=colours.get(name, _FLOAT))
        for name in (*quantized, *floats)
    }


def _ranked(bits: Mapping[str, float], *, quantized: bool) -> list[str]:
    return sorted((name for name in bits if _is_quantized(name) is quantized), key=lambda name: (bits[name], name))


def _is_quantized(name: str) -> bool:
    traits = find_type(name)
    return traits is None or traits.is_quantized


def _step(rank: int, count: int) -> int:
    return round(rank * _STEPS / (count - 1)) if count > 1 else _STEPS - 2
