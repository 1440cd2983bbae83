"""Scales that belong to a weight: ``X.scale`` and ``X.input_scale`` next to ``X.weight``.

llama.cpp multiplies the product of ``X.weight`` by ``X.scale``, whatever the weight's type: one factor, or one for each
expert.  NVFP4 files have them, because NVFP4's own scales have little range; BitNet files have them by architecture.
``X.input_scale`` is loaded but not used.  Both are part of the weight, which is garbage without them.  A tensor of such
a name with another shape is something else, such as Gemma 4's ``ffn_gate_inp.scale``.

Source: src/llama-model.cpp (load_tensors, the generic pass), src/llama-graph.cpp (build_lora_mm, build_lora_mm_id,
build_ffn) of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gguftool.format.header import TensorInfo
from gguftool.model.model import Tensor
from gguftool.record import record

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WEIGHT = ".weight"
_SCALE = ".scale"
SUFFIXES = (_SCALE, ".input_scale")
# Architectures that have scales for weights of any type. Source: llama.cpp src/models/bitnet.cpp.
SCALED_ARCHITECTURES = frozenset({"bitnet"})


def weight_name(name: str) -> str | None:
    """The weight that a tensor called `name` would be a scale of, or None for any other name."""
    stem = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), None)
    return None if stem is None else stem + _WEIGHT


def scale_names(weight: str) -> tuple[str, ...]:
    """The names of possible scales of `weight`; empty if it is not a weight."""
    stem = weight.removesuffix(_WEIGHT)
    return () if stem == weight else tuple(stem + suffix for suffix in SUFFIXES)


def is_scale_of(scale: TensorInfo, weight: TensorInfo) -> bool:
    """Whether `scale` has the shape of a scale of `weight`: one number, or one for each of its matrices."""
    return len(scale.shape) <= 1 and scale.elements in {1, _matrices(weight)}


def scales_of(tensors: Mapping[str, Tensor], weight: str) -> dict[str, Tensor]:
    """Those of `tensors` that are scales of the tensor called `weight`, by name."""
    owner = tensors.get(weight)
    if owner is None:
        return {}
    found = ((name, tensors.get(name)) for name in scale_names(weight))
    return {name: scale for name, scale in found if scale is not None and is_scale_of(scale.info, owner.info)}


def owner_of(tensors: Mapping[str, Tensor], name: str) -> str | None:
    """The name of the weight among `tensors` that the tensor called `name` is a scale of, or None."""
    weight = weight_name(name)
    return weight if weight is not None and name in scales_of(tensors, weight) else None


def factor_of(tensors: Mapping[str, Tensor], weight: str) -> Factor | None:
    """The factor by which llama.cpp multiplies the tensor called `weight`, or None."""
    scale = next((tensor for name, tensor in scales_of(tensors, weight).items() if name.endswith(_SCALE)), None)
    if scale is None or not scale.info.elements:
        return None
    matrix = tensors[weight].info.elements // scale.info.elements
    return Factor(tensor=scale, elements=max(matrix, 1))


@record
class Factor:
    """The numbers of the scale `tensor`; each applies to `elements` elements of the weight, in order."""

    tensor: Tensor
    elements: int

    @property
    def identity(self) -> str:
        """Where the numbers come from."""
        extent = self.tensor.extent
        return f"times {extent.source.identity} {extent.offset}+{extent.length}"

    def times(self, numbers: NDArray[Any], start: int) -> NDArray[Any]:
        """Multiply `numbers`, the weight's elements from `start` on, in any shape; the result is float32.

        Raises `SourceError` if the scale cannot be read, `PlanError` if it is of a type that cannot be decoded.
        """
        import numpy as np

        flat = np.array(numbers, dtype=np.float32).reshape(-1)
        factors, first = _read(self.tensor), start // self.elements
        for index in range(first, -(-(start + len(flat)) // self.elements)):
            begin = max(index * self.elements - start, 0)
            with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for infinities
                flat[begin : (index + 1) * self.elements - start] *= factors[index]
        return flat.reshape(numbers.shape)


@lru_cache(maxsize=64)
def _read(tensor: Tensor) -> NDArray[Any]:
    """Read the factors; cached, because each range of the weight needs them again."""
    import numpy as np

    return np.asarray(tensor.numpy(), dtype=np.float32).reshape(-1)


def _matrices(weight: TensorInfo) -> int:
    dims = weight.dims
    return weight.elements // (dims[0] * dims[1]) if len(dims) > 2 and dims[0] and dims[1] else 1
