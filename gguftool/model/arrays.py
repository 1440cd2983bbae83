"""A tensor's data as a NumPy array.

The array is filled step by step, so the bytes that are read and decoded at once stay small compared with it. A tensor
is inside its file, so the array is at most a few dozen times as large as the bytes that it is read from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguftool.errors import PlanError, printable
from gguftool.format.dequantize import Decoder, decoder_of
from gguftool.format.ggml import TYPES
from gguftool.format.kv import ByteOrder
from gguftool.model.model import Sizing, Tensor
from gguftool.storage.sources.source import byte_reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEP = 1 << 20  # bytes of data that are decoded at once


def read_array(tensor: Tensor) -> NDArray[Any]:
    """Read `tensor` as an array of its `shape`: float32, or the dtype of an integer type.

    Raises `PlanError` if the type cannot be dequantized here, or the size is in doubt; `SourceError` if the data cannot
    be read.
    """
    import numpy as np

    decoder = _decoder_for(tensor)
    try:
        array = np.empty(tensor.shape, dtype=_dtype_of(tensor.info.type))
    except ValueError:  # no elements, but without the zero the product of dims would be too large
        raise PlanError(
            f"'{printable(tensor.name)}' has the shape {tensor.shape}, too large for an array",
            source=tensor.extent.source.name,
        ) from None
    flat, extent, done = array.reshape(-1), tensor.extent, 0
    step = max(_STEP // decoder.unit_bytes, 1) * decoder.unit_bytes
    take = byte_reader(extent.source.stream(extent.offset, extent.length))
    with np.errstate(over="ignore", invalid="ignore"):  # F64 beyond float32 becomes an infinity
        for start in range(0, extent.length, step):
            numbers = decoder.decode(take(min(step, extent.length - start)))
            flat[done : done + len(numbers)] = numbers
            done += len(numbers)
    return array


def _dtype_of(type_id: int) -> str:
    traits = TYPES[type_id]
    return f"int{8 * traits.type_size}" if traits.kind == "integer" else "float32"


def _decoder_for(tensor: Tensor) -> Decoder:
    name, source = printable(tensor.name), tensor.extent.source.name
    if tensor.sizing is Sizing.CONFLICT:
        raise PlanError(
            f"'{name}' is {tensor.type_name}, which takes {tensor.nbytes:,} bytes, but its place has "
            f"{tensor.padded_extent.length:,}; raw() reads them undecoded",
            source=source,
        )
    decoder = decoder_of(tensor.info.type, tensor.byte_order, tensor.info.dims)
    if decoder is None or tensor.type_nbytes is None:
        order = "" if tensor.byte_order is ByteOrder.LITTLE else ", big-endian"
        raise PlanError(
            f"'{name}' is {tensor.type_name} of shape {tensor.shape}{order}, which cannot be dequantized here; "
            "raw() reads its bytes",
            source=source,
        )
    return decoder
