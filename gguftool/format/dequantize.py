"""Raw blocks to floats, by `gguf.quants`, and floats to the bytes of a float type.

Only whole blocks of types without row metadata: what is asked for may start at any block of a tensor.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gguftool.format.ggml import TYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@lru_cache(maxsize=512)
def can_dequantize(type_id: int) -> bool:
    """Whether `dequantize` knows the type: found out with one block of zeros."""
    traits = TYPES.get(type_id)
    if traits is None or traits.row_meta_size or traits.interleaved_rows > 1:
        return False
    try:
        dequantize(bytes(traits.type_size), type_id)
    except (NotImplementedError, ValueError):
        return False
    return True


def dequantize(raw: bytes, type_id: int) -> NDArray[np.float32]:
    """Return the floats of whole little-endian blocks of `type_id`, one behind the other.

    Raises `NotImplementedError` or `ValueError` for a type that `gguf.quants` does not know.
    """
    import gguf
    import numpy as np
    from gguf.quants import dequantize as blocks_to_floats

    data: Any = np.frombuffer(raw, dtype=np.uint8)
    kind = gguf.GGMLQuantizationType(type_id)
    if kind == gguf.GGMLQuantizationType.F32:
        return np.asarray(data.view("<f4"))
    if kind == gguf.GGMLQuantizationType.F16:
        return np.asarray(data.view("<f2").astype(np.float32))
    with np.errstate(all="ignore"):  # hostile scales overflow; the infinities are the true values
        return np.asarray(blocks_to_floats(data, kind), dtype=np.float32)


def encode_floats(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return `values` as little-endian ``f32``, ``f16`` or ``bf16``, rounded to nearest, ties to even.

    Beyond the range of f16 is an infinity and NaN stays NaN, as in ggml (ggml/src/ggml-impl.h).
    """
    import numpy as np

    if dtype == "f32":
        return values.astype("<f4", copy=False).tobytes()
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    bits = values.astype("<f4", copy=False).view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype("<u2").tobytes()
