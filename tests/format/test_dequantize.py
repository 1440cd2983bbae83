"""Widening to F32: exact for every F16, whatever its byte order."""

from __future__ import annotations

import numpy as np  # noqa: TID253 - what is tested makes arrays
import pytest

from gguftool.format.dequantize import to_f32

ALL = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("values", ["finite", "all"])
def test_every_f16_is_widened_exactly(order: str, values: str) -> None:
    halves = ALL.view(np.float16)
    halves = halves[np.isfinite(halves)] if values == "finite" else halves
    wide = to_f32(halves.astype(f"{order}f2"))
    assert wide.dtype == np.float32
    assert wide.flags.c_contiguous
    numbers = ~np.isnan(halves)
    assert np.array_equal(wide[numbers].view(np.uint32), halves[numbers].astype(np.float32).view(np.uint32))
    assert np.array_equal(np.isnan(wide), ~numbers)


def test_what_f32_cannot_hold_becomes_an_infinity() -> None:
    assert np.array_equal(to_f32(np.array([1e300, -1e300, 0.5])), np.float32([np.inf, -np.inf, 0.5]))
    assert to_f32(np.empty(0, np.float16)).shape == (0,)
