from __future__ import annotations

from itertools import pairwise

import pytest

from gguftool.format.ggml import TYPES
from gguftool.render.page.palette import COLOURS, NO_LETTER, palette

SCALE = [back for back, _ in COLOURS[:-2]]  # without the greys of floats

# How people without one kind of cone, or without colours, see linear RGB (Viénot, Brettel and Mollon, 1999).
BLIND = {
    "red": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "green": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
    "all": ((0.2126, 0.7152, 0.0722),) * 3,
}


def linear(colour: str) -> tuple[float, ...]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return tuple(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)


def lightness(rgb: tuple[float, ...]) -> float:
    """CIE L*, 0 to 100."""
    y = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def contrast(one: str, other: str) -> float:
    dark, light = sorted(
        sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True)) + 0.05
        for colour in (one, other)
    )
    return light / dark


@pytest.mark.parametrize(("back", "ink"), COLOURS)
def test_ink_is_legible_on_its_colour(back: str, ink: str) -> None:
    assert contrast(back, ink) >= 4.5  # WCAG AA; the page shows the same pair in both modes


@pytest.mark.parametrize("kind", BLIND)
def test_more_bits_are_lighter_for_every_eye(kind: str) -> None:
    seen = [
        lightness(tuple(sum(a * b for a, b in zip(row, linear(colour), strict=True)) for row in BLIND[kind]))
        for colour in SCALE
    ]
    assert all(after - before >= 2 for before, after in pairwise(seen)), seen


def test_a_type_has_the_same_colour_in_every_report() -> None:
    alone = palette({"Q4_K": 4.5})["Q4_K"].colour
    among = palette({"Q4_K": 4.5, "IQ1_S": 1.56, "Q2_K": 2.63, "Q8_0": 8.5, "F32": 32.0})
    assert among["Q4_K"].colour == alone


def test_colours_follow_bits_per_weight_and_floats_are_apart() -> None:
    known = {traits.name: traits for traits in TYPES.values()}
    bits = {name: traits.type_size * 8 / traits.block_size for name, traits in known.items()}
    inks = palette(bits)
    quantized = sorted((bits[name], inks[name].colour) for name in bits if known[name].is_quantized)
    assert [colour for _, colour in quantized] == sorted(colour for _, colour in quantized)
    assert {colour for _, colour in quantized} == set(range(len(SCALE)))
    assert {inks[name].colour for name in ("F16", "BF16", "F32", "I32")} == {len(SCALE), len(SCALE) + 1}


def test_letters_rank_by_bits_and_end_with_the_alphabet() -> None:
    inks = palette({f"type#{number}": float(number) for number in range(100, 130)})
    letters = [ink.letter for ink in inks.values()]
    assert letters[:3] == ["A", "B", "C"]
    assert letters[25:] == ["Z", *[NO_LETTER] * 4]
