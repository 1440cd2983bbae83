"""The back ends offer what their tables say, and agree with each other and with the engine's own output."""

from __future__ import annotations

import pytest

from gguftool.format.ggml import GGUF, LIBGGUF, TYPES, find_type
from gguftool.format.quantizers import (
    best_quantizer,
    engine_makes,
    gguf_quantizer,
    plain_quantizer,
)


def rows(width: int = 512, count: int = 3) -> object:
    import numpy as np

    return np.random.default_rng(5).normal(size=(count, width)).astype(np.float32)


def test_the_extra_is_preferred() -> None:
    assert best_quantizer().name == LIBGGUF


def test_libggufs_table_is_what_it_makes() -> None:
    import libgguf

    sized = {
        traits.name
        for traits in TYPES.values()
        if traits.is_quantized and traits.in_files and libgguf.row_size(traits.id, traits.block_size)
    }
    assert sized == set(best_quantizer().types)


def test_ggufs_table_is_what_it_makes() -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    made = set()
    for kind in GGMLQuantizationType:
        try:
            quantize(rows(), kind)
        except NotImplementedError:
            continue
        made.add(kind.name)
    assert made - set(plain_quantizer().types) == set(gguf_quantizer().types)


@pytest.mark.parametrize("name", gguf_quantizer().types)
def test_without_weights_both_back_ends_make_the_same(name: str) -> None:
    traits = find_type(name)
    assert traits is not None
    one, other = (maker.encoder(traits)(rows(), None) for maker in (best_quantizer(), gguf_quantizer()))
    assert bytes(one) == bytes(other)
    assert len(one) == 3 * 512 // traits.block_size * traits.type_size


def test_every_type_has_its_makers() -> None:
    assert TYPES[0].quantized_by == ("gguftool",)
    by_name = {traits.name: traits.quantized_by for traits in TYPES.values()}
    assert by_name["Q4_0"] == (LIBGGUF, GGUF, "llama-quantize")
    assert by_name["IQ4_XS"] == (LIBGGUF, "llama-quantize")
    assert by_name["IQ4_KS"] == ("llama-quantize",)
    assert by_name["I32"] == by_name["Q4_0_4_4"] == ()
    assert plain_quantizer().types == ("F32", "F16", "BF16")


def test_engines_make_their_own_types() -> None:
    for traits in TYPES.values():
        for engine in ("llama.cpp", "ik_llama.cpp"):
            assert not engine_makes(traits.id, engine) or engine in traits.engines
