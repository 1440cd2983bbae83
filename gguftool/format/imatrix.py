"""Importance matrices, in both formats: the legacy `.dat` of llama-imatrix, and the GGUF that replaced it.

Every tensor has a sum of squared activations for each column, and a count of summed values; from these,
`ImatrixEntry.weights` computes exactly the weights that llama-quantize passes to its quantizers. A file is held in
memory as a whole and the arrays are views of its bytes, so memory use is the file's size.

Legacy (little-endian): i32 entries; each i32 length, name, i32 calls, i32 values, f32 values; then, since 2024, i32
chunks, i32 length, dataset. All matrices of an expert tensor are concatenated and share one number of calls.
GGUF: `general.type` is "imatrix"; `imatrix.datasets`, `.chunk_count`, `.chunk_size`; tensors NAME.in_sum2 [width,
matrices] and NAME.counts [1, matrices] in F32, counts in tokens. Other tensors are statistics that quantizers ignore.

Source: llama.cpp tools/imatrix/imatrix.cpp (save_imatrix, save_imatrix_legacy, load_imatrix_legacy),
tools/quantize/quantize.cpp (load_imatrix), src/llama-quant.cpp (the size that an entry must have); ik_llama.cpp
examples/quantize/quantize.cpp reads the legacy format the same way, and no other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from gguftool.errors import FormatError, GGUFToolError, LimitError, PlanError, printable
from gguftool.format.cursor import NeedMoreData
from gguftool.format.header import MAGIC, Header, TensorInfo, is_imatrix, parse
from gguftool.format.kv import INTEGERS, ByteOrder, ValueType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Limits, with reasons.
MAX_IMATRIX: Final = 4 << 30  # bytes; held in memory; one of Kimi K2 (384 experts) has about 1.5 GiB
MAX_ENTRY_NAME: Final = 1024  # bytes; engines cut names at 63
USUAL_CHUNK: Final = 512  # tokens; the default of llama-imatrix, which it also assumes for legacy files

KEY_DATASETS: Final = "imatrix.datasets"
KEY_CHUNK_COUNT: Final = "imatrix.chunk_count"
KEY_CHUNK_SIZE: Final = "imatrix.chunk_size"
SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
F32: Final = 0  # ggml's id
_LEAST_ENTRY: Final = 17  # bytes: three numbers, a name of one byte, one value


class ImatrixKind(Enum):
    """The two file formats."""

    LEGACY = "legacy"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImatrixEntry:
    """One tensor's columns: `sums` of squares (matrices, width) and `counts` (matrices,), both float32.

    A legacy entry is one matrix with the values of all matrices, and counts chunks; an entry of a GGUF counts tokens.
    """

    name: str
    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    @property
    def values(self) -> int:
        """The number of values, in all matrices."""
        return int(self.sums.size)

    def weights(self) -> NDArray[np.float32]:
        """Return sums / counts, float32 (matrices, width); 1 for a matrix without tokens, as llama-quantize does."""
        import numpy as np

        counted = self.counts > 0
        divisors = np.where(counted, self.counts, np.float32(1))[:, None]
        result: NDArray[np.float32] = np.where(counted[:, None], self.sums / divisors, np.float32(1))
        return result

    def fits(self, dims: Sequence[int]) -> bool:
        """Whether it has a value for every column of every matrix of a tensor with `dims` (ggml order)."""
        return self.values == expected_values(dims)

    def weights_for(self, dims: Sequence[int]) -> NDArray[np.float32]:
        """Return the weights of a tensor with `dims` (ggml order), shape (dims[2] or 1, dims[0]).

        As in llama-quantize, only the number of values counts. Raises `PlanError` if that differs.
        """
        if not self.fits(dims):
            raise PlanError(self.misfit(dims))
        return self.weights().reshape(-1, dims[0] if dims else 1)

    def blank_matrices(self, dims: Sequence[int]) -> int:
        """Count the matrices of a tensor with `dims` with only zero weights; raises as `weights_for` does."""
        return int((~self.weights_for(dims).any(axis=1)).sum())

    def misfit(self, dims: Sequence[int]) -> str:
        """Describe how the entry differs from a tensor with `dims`."""
        shape = " x ".join(str(dim) for dim in dims)
        return (
            f"'{printable(self.name)}' has {self.values:,} values in the imatrix, but as a tensor of {shape} it needs "
            f"{expected_values(dims):,}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imatrix:
    """A whole file; `chunk_count` and `chunk_size` (tokens) are None if the file lacks them; `digest` is its sha256."""

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int | None = None
    chunk_size: int | None = None
    kind: ImatrixKind = ImatrixKind.GGUF
    digest: str = field(default="", kw_only=True)


def expected_values(dims: Sequence[int]) -> int:
    """Return the number of values that llama-quantize expects for a tensor: ne[0] * ne[2]."""
    return math.prod((*dims[:1], *dims[2:3]))


def parse_imatrix(data: bytes, name: str) -> Imatrix:
    """Parse a file of either format; `name` is for errors. Raises `FormatError`."""
    if len(data) > MAX_IMATRIX:
        raise LimitError(f"has {len(data):,} bytes; gguftool reads an imatrix of at most {MAX_IMATRIX:,}", source=name)
    try:
        made = _parse_gguf(data) if data[:4] == MAGIC else _parse_legacy(data)
    except GGUFToolError as error:
        error.source = name
        raise
    from hashlib import sha256

    return Imatrix(**made, digest=sha256(data).hexdigest())


def legacy_start(head: bytes) -> tuple[int, str] | None:
    """Return the number of entries and the first name, if `head`, the first bytes, looks like a legacy imatrix."""
    if len(head) < 16:
        return None
    entries, length = struct.unpack("<ii", head[:8])
    name = head[8 : 8 + length] if 4 <= length <= 256 else b""
    if not 1 <= entries <= 1 << 20 or not name.isascii() or not name.endswith(b".weight"):
        return None
    return entries, name.decode("ascii")


# --- legacy ----------------------------------------------------------------------------------------------------------


class _Reader:
    """A position in a legacy file that checks every length against the remaining bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0
        self.where = "start"

    @property
    def left(self) -> int:
        return len(self.data) - self.pos

    def fail(self, message: str, back: int = 0) -> NoReturn:
        raise FormatError(message, where=self.where, offset=self.pos - back)

    def take(self, size: int, what: str) -> int:
        """Skip `size` bytes and return where they start."""
        if size > self.left:
            self.fail(f"{size:,} bytes of {what} expected, but the file ends after {self.left:,}: truncated or damaged")
        self.pos += size
        return self.pos - size

    def number(self, what: str, least: int, most: int | None = None) -> int:
        value: int = struct.unpack_from("<i", self.data, self.take(4, f"the {what}"))[0]
        if value < least or (most is not None and value > most):
            limit = f"at least {least}" if value < least else f"at most {most:,}"
            self.fail(f"the {what} is {value:,}; expected {limit}", back=4)
        return value

    def text(self, what: str, least: int, most: int | None = None) -> str:
        size = self.number(f"length of the {what}", least, most)
        start = self.take(size, f"the {what}")
        return self.data[start : start + size].decode("utf-8", "surrogateescape")


def _parse_legacy(data: bytes) -> dict[str, Any]:
    reader = _Reader(data)
    count = reader.number("number of entries", 1)
    if count * _LEAST_ENTRY > reader.left:
        reader.fail(
            f"{count:,} entries cannot be in the {reader.left:,} bytes that follow: not an imatrix, or damaged", 4
        )
    entries: dict[str, ImatrixEntry] = {}
    for index in range(count):
        reader.where = f"entry {index}"
        entry = _legacy_entry(reader)
        if entries.setdefault(entry.name, entry) is not entry:
            reader.fail("this name is used twice; names must differ")
    reader.where = "end"
    chunks = reader.number("number of chunks", 0) if reader.left else None  # older files end here
    dataset = reader.text("dataset's name", 0) if reader.left else ""
    return {
        "entries": MappingProxyType(entries),
        "datasets": (dataset,) if dataset else (),
        "chunk_count": chunks,
        "kind": ImatrixKind.LEGACY,
    }


def _legacy_entry(reader: _Reader) -> ImatrixEntry:
    import numpy as np

    name = reader.text("name", 1, MAX_ENTRY_NAME)
    reader.where = f"{reader.where}, '{printable(name, 80)}'"
    calls = reader.number("number of calls", 0)
    count = reader.number("number of values", 1)
    start = reader.take(4 * count, "values")
    sums = np.frombuffer(reader.data, dtype="<f4", count=count, offset=start).reshape(1, count)
    # llama-quantize divides by the calls unless they are 0, and else takes the values as they are.
    entry = ImatrixEntry(name=name, sums=sums, counts=np.array([calls or 1], dtype=np.float32))
    problem = _problem(entry)
    if problem:
        reader.fail(problem, back=4 * count)
    return entry


def _problem(entry: ImatrixEntry) -> str:
    """Describe invalid numbers of an entry; empty if there are none."""
    import numpy as np

    for what, numbers in (("values", entry.sums), ("counts", entry.counts)):
        # min and max return NaN if there is one, so one pass without temporary arrays finds everything.
        low, high = float(numbers.min()), float(numbers.max())
        if not (low >= 0 and math.isfinite(high)):
            bad = "NaN" if math.isnan(low) else f"{low:g}" if low < 0 else f"{high:g}"
            return f"the {what} hold {bad}; sums of squares and their counts must be finite and not negative"
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        largest = entry.sums.max(axis=1) / np.where(entry.counts > 0, entry.counts, np.float32(1))
    return "" if np.isfinite(largest).all() else "a value divided by its count is more than a float32 can hold"


# --- GGUF ------------------------------------------------------------------------------------------------------------


def _parse_gguf(data: bytes) -> dict[str, Any]:
    try:
        header = parse(data, len(data))
    except NeedMoreData as signal:  # cannot be: the buffer is the file
        raise FormatError(f"{signal.needed:,} bytes expected, but the file has {len(data):,}", where="head") from None
    if not is_imatrix(header.kvs):
        raise FormatError('a GGUF, but not an imatrix: general.type is not "imatrix"', where="metadata KV")
    entries = {entry.name: entry for entry in _gguf_entries(header, data)}
    if not entries:
        raise FormatError(f"no tensor has a name like NAME{SUMS}: this imatrix has no entries", where="tensor infos")
    return {
        "entries": MappingProxyType(entries),
        "datasets": _datasets(header),
        "chunk_count": _counted(header, KEY_CHUNK_COUNT, 0),
        "chunk_size": _counted(header, KEY_CHUNK_SIZE, 1),
        "kind": ImatrixKind.GGUF,
    }


def _datasets(header: Header) -> tuple[str, ...]:
    kv = header.get(KEY_DATASETS)
    if kv is None:
        return ()
    if kv.type is not ValueType.ARRAY or kv.element_type is not ValueType.STRING:
        raise FormatError(f"{KEY_DATASETS} is {kv.type.name}, expected an array of strings", where="metadata KV")
    return tuple(text for text in kv.value() if text)


def _counted(header: Header, key: str, least: int) -> int | None:
    kv = header.get(key)
    if kv is None:
        return None
    value = kv.value() if kv.type in INTEGERS else None
    if value is None or not least <= value < 1 << 32:
        found = kv.type.name if value is None else f"{value:,}"
        raise FormatError(f"{key} is {found}, expected a number from {least} to 2^32 - 1", where="metadata KV")
    return int(value)


def _gguf_entries(header: Header, data: bytes) -> Iterator[ImatrixEntry]:
    infos = {info.name: info for info in header.tensors}
    for name in infos:
        if name.endswith(COUNTS) and name.removesuffix(COUNTS) + SUMS not in infos:
            raise FormatError(f"there is no '{printable(name.removesuffix(COUNTS) + SUMS)}'", where=_named(name))
    _refuse_overlaps(infos.values(), len(data))
    data_offset = header.data_offset
    for name, info in infos.items():
        if not name.endswith(SUMS):
            continue
        counts = infos.get(name.removesuffix(SUMS) + COUNTS)
        if counts is None:
            raise FormatError(f"there is no '{printable(name.removesuffix(SUMS) + COUNTS)}'", where=_named(name))
        if info.elements == 0 or info.elements != math.prod(info.dims[:2]) or counts.elements != _rows(info):
            raise FormatError(
                f"{_shape(info)} values with {_shape(counts)} counts; expected width x matrices, and 1 x matrices",
                where=_named(name),
            )
        entry = ImatrixEntry(
            name=name.removesuffix(SUMS),
            sums=_floats(info, header.byte_order, data, data_offset).reshape(_rows(info), -1),
            counts=_floats(counts, header.byte_order, data, data_offset),
        )
        problem = _problem(entry)
        if problem:
            raise FormatError(problem, where=_named(name), offset=data_offset + info.offset)
        yield entry


def _refuse_overlaps(infos: Iterable[TensorInfo], size: int) -> None:
    """Refuse more tensor data than the file has bytes: tensors that overlap would multiply the work."""
    claimed = 4 * sum(info.elements for info in infos if info.name.endswith((SUMS, COUNTS)))
    if claimed > size:
        raise FormatError(
            f"{claimed:,} bytes of sums and counts expected, but the file has {size:,}: truncated or damaged",
            where="tensor infos",
        )


def _named(name: str) -> str:
    return f"tensor '{printable(name, 80)}'"


def _rows(info: TensorInfo) -> int:
    return math.prod(info.dims[1:2])


def _shape(info: TensorInfo) -> str:
    return " x ".join(f"{dim:,}" for dim in info.dims) or "1"


def _floats(info: TensorInfo, order: ByteOrder, data: bytes, data_offset: int) -> NDArray[np.float32]:
    """Return the elements of a tensor as a view of the file, or as a copy if the byte order differs."""
    import numpy as np

    start, size = data_offset + info.offset, 4 * info.elements
    if info.type != F32:
        raise FormatError(f"has type {info.type}, but an imatrix is in F32", where=_named(info.name))
    if start + size > len(data):
        raise FormatError(
            f"{size:,} bytes expected, but the file ends at {len(data):,}: truncated or damaged",
            where=_named(info.name),
            offset=start,
        )
    found = np.frombuffer(data, dtype=f"{order.value}f4", count=info.elements, offset=start)
    return found if order is ByteOrder.LITTLE else found.astype("<f4")
