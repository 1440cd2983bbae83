"""Write importance matrices in either format, so that llama-quantize gets the same weights from both.

The legacy format has one number of calls for all matrices of a tensor, and readers divide by it. Dividing by numbers
other than powers of two would round the weights. So if the sums do not divide evenly, the calls are rounded to the
nearest power of two: quantizers see only the weights; llama-imatrix uses the calls to weigh files that it adds up.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from gguftool.errors import PlanError, printable
from gguftool.format.header import DEFAULT_ALIGNMENT, GENERAL_TYPE, Header, TensorInfo, round_up, serialize
from gguftool.format.imatrix import (
    COUNTS,
    F32,
    KEY_CHUNK_COUNT,
    KEY_CHUNK_SIZE,
    KEY_DATASETS,
    SUMS,
    USUAL_CHUNK,
    Imatrix,
    ImatrixEntry,
    ImatrixKind,
)
from gguftool.format.kv import KV, ValueType, encode_text, make_kv

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_NAME: Final = 63  # bytes of a tensor name that llama.cpp accepts
_MAX_I32: Final = (1 << 31) - 1


# --- GGUF ------------------------------------------------------------------------------------------------------------


def serialize_gguf(imatrix: Imatrix, chunk_size: int | None = None) -> bytes:
    """Serialize `imatrix` as a GGUF that llama-quantize reads.

    The calls of a legacy imatrix become `chunk_size` tokens each (default: its own, else 512, as in llama-imatrix).
    Raises `PlanError` if a name is too long, or the weights would change.
    """
    chunk = chunk_size or imatrix.chunk_size or USUAL_CHUNK
    scale = chunk if imatrix.kind is ImatrixKind.LEGACY else 1
    out = io.BytesIO()  # a single copy, as it may be gigabytes: `getvalue` does not make a second
    out.write(serialize(Header(kvs=_gguf_kvs(imatrix, chunk), tensors=tuple(_gguf_infos(imatrix)))))
    for entry in imatrix.entries.values():
        scaled = _scaled(entry, scale)
        for values in (scaled.sums, scaled.counts):
            out.write(values.astype("<f4", copy=False).tobytes())
            out.write(bytes(-out.tell() % DEFAULT_ALIGNMENT))
    return out.getvalue()


def _gguf_infos(imatrix: Imatrix) -> Iterator[TensorInfo]:
    offset = 0
    for entry in imatrix.entries.values():
        if len(encode_text(entry.name + SUMS)) > _MAX_NAME:
            raise PlanError(f"'{printable(entry.name + SUMS)}' is longer than the {_MAX_NAME} bytes llama.cpp reads")
        matrices, width = entry.sums.shape
        for suffix, columns in ((SUMS, width), (COUNTS, 1)):
            yield TensorInfo(name=entry.name + suffix, dims=(columns, matrices), type=F32, offset=offset)
            offset += round_up(4 * columns * matrices, DEFAULT_ALIGNMENT)


def _gguf_kvs(imatrix: Imatrix, chunk: int) -> tuple[KV, ...]:
    # llama-quantize prints the first dataset without checking that there is one.
    datasets = imatrix.datasets or ("",)
    return (
        make_kv(GENERAL_TYPE, ValueType.STRING, "imatrix"),
        make_kv(KEY_DATASETS, ValueType.ARRAY, datasets, element=ValueType.STRING),
        make_kv(KEY_CHUNK_COUNT, ValueType.UINT32, _chunks(imatrix, chunk)),
        make_kv(KEY_CHUNK_SIZE, ValueType.UINT32, chunk),
    )


def _chunks(imatrix: Imatrix, chunk: int) -> int:
    """Return the number of chunks: that of the file, else that of the entry with the most, as in llama-imatrix."""
    if imatrix.chunk_count is not None:
        return imatrix.chunk_count
    most = max((float(entry.counts.max()) for entry in imatrix.entries.values()), default=0.0)
    return int(most) if imatrix.kind is ImatrixKind.LEGACY else int(most) // chunk


def _scaled(entry: ImatrixEntry, scale: int) -> ImatrixEntry:
    """Multiply sums and counts of `entry` by `scale`; raise `PlanError` if that changes its weights."""
    import numpy as np

    if scale == 1:
        return entry
    factor = np.float32(scale)
    with np.errstate(over="ignore"):
        scaled = ImatrixEntry(name=entry.name, sums=entry.sums * factor, counts=entry.counts * factor)
    if not same_weights(entry, scaled):
        raise PlanError(
            f"with chunks of {scale:,} tokens the weights of '{printable(entry.name)}' would change by rounding; "
            "a power of two such as 512 changes none"
        )
    return scaled


def same_weights(one: ImatrixEntry, other: ImatrixEntry) -> bool:
    """Whether a quantizer would get the same weights from both, whatever the shape of their matrices."""
    import numpy as np

    if one is other:
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.array_equal(one.weights().ravel(), other.weights().ravel()))


# --- legacy ----------------------------------------------------------------------------------------------------------


def serialize_legacy(imatrix: Imatrix) -> bytes:
    """Serialize `imatrix` as a legacy file; `losses_of_legacy` lists the data that it cannot hold.

    Raises `PlanError` if an entry has more values than the format can count.
    """
    out = io.BytesIO()
    out.write(struct.pack("<i", len(imatrix.entries)))
    for entry in imatrix.entries.values():
        if entry.values > _MAX_I32:
            raise PlanError(f"'{printable(entry.name)}' has {entry.values:,} values, more than a legacy file can count")
        calls, sums = _legacy_sums(entry, imatrix)
        name = encode_text(entry.name)
        out.write(struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, entry.values))
        out.write(sums.tobytes())
    if imatrix.chunk_count is not None or imatrix.datasets:
        dataset = encode_text(imatrix.datasets[-1] if imatrix.datasets else "")  # the last one, as in llama-imatrix
        out.write(struct.pack("<ii", min(imatrix.chunk_count or 0, _MAX_I32), len(dataset)) + dataset)
    return out.getvalue()


def _legacy_sums(entry: ImatrixEntry, imatrix: Imatrix) -> tuple[int, NDArray[np.float32]]:
    """Return calls and sums with exactly the weights of the entry as quotients."""
    import numpy as np

    chunk = 1 if imatrix.kind is ImatrixKind.LEGACY else imatrix.chunk_size or USUAL_CHUNK
    calls = max(1, min(_MAX_I32, math.ceil(float(entry.counts.max()) / chunk)))
    power = 1 << min(30, round(math.log2(calls)))
    weights = entry.weights()
    with np.errstate(over="ignore"):
        tries = [(calls, entry.sums / np.float32(chunk)), (calls, weights * np.float32(calls))]
        for number, sums in (*tries, (power, weights * np.float32(power))):
            if np.array_equal(sums / np.float32(number), weights):
                return number, sums.astype("<f4", copy=False)
    return 1, weights.astype("<f4", copy=False)


def losses_of_legacy(imatrix: Imatrix) -> tuple[str, ...]:
    """List the data of `imatrix` that a legacy file cannot hold; it always holds the weights."""
    if imatrix.kind is ImatrixKind.LEGACY:
        return ()
    entries = imatrix.entries.values()
    several = sum(entry.counts.size > 1 for entry in entries)
    empty = sum(int((entry.counts == 0).sum()) for entry in entries)
    lost = []
    if several:
        lost.append(f"{several:,} entries have a count for each matrix; the legacy format has one for all")
    if empty:
        lost.append(f"{empty:,} matrices without data get weights of 1, as in llama-quantize")
    if imatrix.chunk_size is not None:
        lost.append(f"the chunk size, {imatrix.chunk_size:,} tokens, is left out: the legacy format does not hold it")
    if len(imatrix.datasets) > 1:
        lost.append(f"only the last of {len(imatrix.datasets):,} datasets is named: the legacy format holds one")
    return tuple(lost)
