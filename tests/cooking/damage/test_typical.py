"""Typical errors of types are those of real files of the engines, and types without a number follow their bits."""

from __future__ import annotations

import pytest

from gguftool.cooking.damage.typical import LOSSLESS, log_typical, typical_error
from gguftool.format.ggml import TYPES
from gguftool.model.opening import open_model
from tests.support.paths import FIXTURES

np = pytest.importorskip("numpy")

ENGINES = FIXTURES / "engines"


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "IQ4_KS", "IQ4_XS", "IQ5_K"])
def test_files_of_the_engines_have_about_these_errors(name: str) -> None:
    original = open_model(str(ENGINES / "tiny-llama-BF16.gguf"))
    made = open_model(str(ENGINES / f"tiny-llama-{name}.gguf"))
    errors = []
    for tensor in made.tensors.values():
        if tensor.type_name == name and "blk" in tensor.name:
            exact = original.tensors[tensor.name].numpy().astype(np.float64)
            errors.append(float(((tensor.numpy() - exact) ** 2).sum() / (exact**2).sum()))
    assert len(errors) > 5
    assert 1 / 1.5 < np.median(errors) / typical_error(name) < 1.5


def test_every_type_has_a_positive_error_that_is_no_surprise_for_its_bits() -> None:
    for traits in TYPES.values():
        assert LOSSLESS <= typical_error(traits.name) < 1
        if traits.is_quantized and 2 < traits.bits_per_weight < 7:
            expected = typical_error("q4_K") * 4 ** (4.5 - traits.bits_per_weight)
            assert abs(log_typical(traits.name) - np.log(expected)) < 2.5, traits.name
    assert typical_error("nobody-knows") == pytest.approx(2 * typical_error("q4_K"), rel=0.01)
