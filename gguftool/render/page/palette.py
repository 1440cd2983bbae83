"""A letter and a colour for each tensor type that a report shows.

Colours stand for bits per weight on one absolute scale, so that two reports can be compared by eye: viridis, from dark
violet (few bits) through green to yellow (many). Its lightness rises all the way, so it also works for colour-blind
readers and in grey. Floats and integers are grey. Colour is never the only sign: a page writes the type's name into
each cell, a terminal its letter; A has the fewest bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from string import ascii_uppercase

from gguftool.format.ggml import find_type
from gguftool.record import record

# (background, ink): viridis in ten steps (the fifth a bit lighter, for its ink), then floats of up to 16 bits, then
# wider ones. The ink is black or white, whichever has the better contrast.
COLOURS = (
    ("#440154", "#ffffff"),
    ("#482878", "#ffffff"),
    ("#3e4989", "#ffffff"),
    ("#31688e", "#ffffff"),
    ("#2a8b96", "#000000"),
    ("#1f9e89", "#000000"),
    ("#35b779", "#000000"),
    ("#6ece58", "#000000"),
    ("#b5de2b", "#000000"),
    ("#fde725", "#000000"),
    ("#b3b7be", "#000000"),
    ("#8c9098", "#000000"),
)
# Where the next step begins, in bits per weight: between types that people mix, never at one of them.
STEPS = (1.9, 2.45, 2.9, 3.7, 4.4, 4.9, 5.4, 5.9, 7.5)
_FLOATS = len(STEPS) + 1
NO_LETTER = "#"  # for the types beyond the alphabet


@record
class Ink:
    """The look of one type: its letter, and the index of its colours in `COLOURS`."""

    letter: str
    colour: int


def palette(bits: Mapping[str, float]) -> dict[str, Ink]:
    """Choose an ink for each type in `bits` (type name to bits per weight), fewest bits first, floats last."""
    ranked = sorted(bits, key=lambda name: (not _is_quantized(name), bits[name], name))
    letters = dict(zip(ranked, ascii_uppercase, strict=False))
    return {name: Ink(letter=letters.get(name, NO_LETTER), colour=_colour(name, bits[name])) for name in ranked}


def _colour(name: str, bits: float) -> int:
    return bisect_right(STEPS, bits) if _is_quantized(name) else _FLOATS + (bits > 16)


def _is_quantized(name: str) -> bool:
    traits = find_type(name)
    return traits is None or traits.is_quantized
