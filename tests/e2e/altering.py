"""Alter tiny models, quantize them both ways, and compare them with what NumPy makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gguftool as api
from gguftool.format.engine_facts.engines import LLAMA_CPP
from tests.e2e.engine import SAME, Prediction
from tests.support.tiny_models import MODELS, TinyModel, quantization, read

Predict = Callable[..., list[Prediction]]

NO_SYNC = api.Options(sync=False)
TYPES = {"q4_K": "q8_0", "q6_K": "mxfp4"}  # of matrices with rows of whole blocks of 256: of those with narrower rows


class Quantized:
    """Tiny models quantized to a type, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, wide: str = "q4_K", model: TinyModel | None = None) -> Path:
        """Make `model`, or the one of `MODELS`, in the type `wide`; another model needs another name."""
        made = self._folder / f"{name}-{wide}.gguf"
        if not made.exists():
            model = model or MODELS[name]()
            floats = model.write(self._folder / f"{name}-f32.gguf")
            quantize(floats, made, quantization(model, wide, TYPES[wide]))
        return made


def quantize(source: Path, output: Path, types: Sequence[tuple[str, str]]) -> Path:
    recipe = api.parse_recipe("\n".join(f"^{re.escape(name)}$={kind}" for name, kind in types))
    options = api.QuantizeOptions(requantize=True)
    api.execute(api.plan_quantize(source, recipe, output, options), NO_SYNC)
    return output


def dequantize(path: Path) -> Path:
    """Write the model at `path` as F32 beside it, unless it is there."""
    output = path.with_name(f"f32-{path.name}")
    names = [(name, "f32") for name in api.open_model(path).tensors]
    return output if output.exists() else quantize(path, output, names)


def alter(path: Path, alteration: api.Alteration, output: Path, donors: Mapping[str, Path] | None = None) -> Path:
    opened = {label: api.open_model(donor) for label, donor in (donors or {}).items()}
    api.execute(api.plan_alter(api.open_model(path), alteration, output, donors=opened), NO_SYNC)
    return output


def mainline(**operations: object) -> api.Alteration:
    """An alteration for llama.cpp; ik_llama.cpp does not read all that it reads."""
    return api.Alteration(engines=(LLAMA_CPP,), **operations)  # type: ignore[arg-type]


def assert_weights(path: Path, expected: TinyModel) -> None:
    """Assert that a file has the tensors of `expected`, and their numbers to the last bit."""
    found = read(path)
    assert set(found.weights) == set(expected.weights)
    different = [
        name
        for name, array in found.weights.items()
        if array.shape != expected.weights[name].shape or array.tobytes() != expected.weights[name].tobytes()
    ]
    assert different == []


def assert_agrees(altered: Path, oracle: TinyModel, predict: Predict) -> Prediction:
    """Assert that `altered` runs, and predicts as `oracle` does when both are F32; return what the F32 predict."""
    assert_weights(altered, oracle)
    expected = oracle.write(altered.with_name("oracle.gguf"))
    found, wanted, _ = predict(dequantize(altered), expected, altered)
    assert found.distance(wanted) < SAME
    return found
