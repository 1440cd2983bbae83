"""The back ends offer what their tables say, and agree with each other and with the engine's own output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np  # noqa: TID253 - what is tested takes arrays
import pytest
from numpy.typing import NDArray  # noqa: TID253

from gguftool.errors import PlanError
from gguftool.format import quantizers
from gguftool.format.ggml import GGUF, LIBGGUF, TYPES, XLLAMACPP, find_type
from gguftool.format.quantizers import (
    Quantizer,
    best_quantizer,
    engine_makes,
    gguf_quantizer,
    libgguf_quantizer,
    plain_quantizer,
)
from gguftool.record import replace


@pytest.fixture(autouse=True)
def fresh_choice() -> Iterator[None]:
    best_quantizer.cache_clear()
    yield
    best_quantizer.cache_clear()


def rows(width: int = 512, count: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(count, width)).astype(np.float32)


def libgguf_backend() -> Quantizer:
    found = libgguf_quantizer()
    assert found is not None
    return found


def test_the_fastest_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_quantizer().name == XLLAMACPP
    monkeypatch.setitem(sys.modules, XLLAMACPP, None)
    best_quantizer.cache_clear()
    assert best_quantizer().name == LIBGGUF
    monkeypatch.setitem(sys.modules, LIBGGUF, None)
    best_quantizer.cache_clear()
    assert best_quantizer().name == GGUF


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_an_xllamacpp_that_exports_no_quantizer_is_passed_over(
    content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / XLLAMACPP
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    if content is not None:
        (package / "xllamacpp.abi3.so").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, XLLAMACPP, raising=False)
    assert best_quantizer().name == LIBGGUF


def test_an_xllamacpp_with_other_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = quantizers._ggml_library()
    assert library is not None
    traits = find_type("Q4_0")
    assert traits is not None
    with pytest.raises(PlanError, match=r"this xllamacpp \(.*\) does not make Q4_0: another release may"):
        quantizers._ggml_encoder(library, replace(traits, type_size=20))


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("name", libgguf_backend().types)
def test_llama_cpps_own_library_makes_the_bytes_of_libgguf(name: str, weighed: bool) -> None:
    traits = find_type(name)
    assert traits is not None
    weights = np.random.default_rng(6).random(512, dtype=np.float32) + 0.1
    given = weights if weighed or traits.needs_imatrix else None
    one, other = (maker.encoder(traits)(rows(), given) for maker in (best_quantizer(), libgguf_backend()))
    assert best_quantizer().name == XLLAMACPP
    assert bytes(one) == bytes(other)


def test_libggufs_table_is_what_it_makes() -> None:
    import libgguf

    sized = {
        traits.name
        for traits in TYPES.values()
        if traits.is_quantized and traits.in_files and libgguf.row_size(traits.id, traits.block_size)
    }
    assert sized == set(libgguf_backend().types)


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
    one, other = (maker.encoder(traits)(rows(), None) for maker in (libgguf_backend(), gguf_quantizer()))
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
