"""One file or many shards as one logical model.

Here a file's tensors get their extents, sized by the type table and cross-checked against the gap to the next tensor.
`model/opening.py` finds the files of a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gguftool.errors import FormatError, printable
from gguftool.format.file_names import ShardName
from gguftool.format.ggml import nbytes, type_name
from gguftool.format.header import DEFAULT_ALIGNMENT, Header, TensorInfo, round_up
from gguftool.format.kv import KV, ByteOrder, ValueType, find_kv
from gguftool.record import record
from gguftool.storage.sources.source import Extent, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ARCHITECTURE = "general.architecture"
_MAX_NAME = 90  # characters of a name in a summary, escapes included: whatever a file says, a summary stays one line
_MAX_WORD = 30  # characters of an architecture in a summary
_MAX_TYPES = 8  # tensor types named in a summary


class Sizing(Enum):
    """How a tensor's size is known."""

    EXACT = "by type"  # the type is known and the gap in the file agrees
    GAP = "by gap"  # the type is unknown, or its rows are not whole blocks: all bytes up to the next tensor
    CONFLICT = "type and gap disagree"


@record
class Tensor:
    """A tensor: its name, type and shape, and where its bytes are.

    `padded_extent` reaches from its first byte to the next tensor; for the last tensor in the file, to the end of its
    padding, or of the file if its size is unknown. `type_nbytes` is its size by the type, None if that is unknown;
    `alignment` and `byte_order` are those of its file. All sizes in bytes.

    `take`, `reshape` and `named` make *views*: tensors made of parts of others, without reading a byte. For a view of
    several extents, `padded_extent` is one extent of a source that joins them.
    """

    info: TensorInfo
    padded_extent: Extent
    type_nbytes: int | None
    sizing: Sizing
    alignment: int
    byte_order: ByteOrder = ByteOrder.LITTLE

    def __repr__(self) -> str:
        return f"<Tensor '{_shown(self.name, _MAX_NAME)}': {self.type_name} {self.shape}, {self.nbytes:,} bytes>"

    @property
    def name(self) -> str:
        """The name, as untrusted as the file: quote it with `errors.printable`."""
        return self.info.name

    @property
    def type_name(self) -> str:
        """The ggml type, such as ``Q4_K``; ``type#N`` if it is unknown."""
        return type_name(self.info.type)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in NumPy's order, row length last: the reverse of the dims in the file (`info.dims`)."""
        return self.info.dims[::-1]

    @property
    def nbytes(self) -> int:
        """Bytes of data without padding, as far as known."""
        return self.padded_extent.length if self.type_nbytes is None else self.type_nbytes

    @property
    def extent(self) -> Extent:
        """The data without padding."""
        return Extent(source=self.padded_extent.source, offset=self.padded_extent.offset, length=self.nbytes)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The data without padding, as extents of its files, in order: one, or several for a view."""
        from gguftool.storage.sources.virtual import parts_of

        return parts_of(self.extent)

    @property
    def bits_per_weight(self) -> float:
        """True bits per element, row meta included; 0 for a tensor without elements."""
        return self.nbytes * 8 / self.info.elements if self.info.elements else 0.0

    def raw(self) -> bytes:
        """Read the data as stored, `nbytes` long: blocks of its type in its file's byte order, without padding.

        Raises `SourceError` if it cannot be read, or the file changed since it was opened.
        """
        return self.extent.read()

    def numpy(self) -> NDArray[Any]:
        """Read the data as an array of `shape`: float32, dequantized if needed; integer types keep their own dtype.

        Raises `PlanError` if the type cannot be dequantized here, or its size is in doubt, and `SourceError` as `raw`.
        """
        from gguftool.model.arrays import read_array  # numpy takes longer to load than a head to read

        return read_array(self)

    def take(self, axis: int, indices: Sequence[int]) -> Tensor:
        """A view of the slices `indices` of `axis`, in that order; they may repeat. Axis 0, `dims[0]`, is a row.

        Axes 2 and 3 can be cut for all types of the engines except I2_S, axis 1 between groups of rows that are packed
        together (single rows for most types), axis 0 only in lists of plain numbers. All indices in order give this
        tensor.

        Raises `PlanError` if an index is out of range, or this axis of this type cannot be cut.
        """
        from gguftool.model.views import take  # opening a model needs none of it

        return take(self, axis, indices)

    def reshape(self, dims: Sequence[int]) -> Tensor:
        """A view with other `dims` (ggml order: row length first); the number of elements and the row length stay.

        Raises `PlanError` if rows or the number of elements would differ.
        """
        from gguftool.model.views import reshape

        return reshape(self, dims)

    def named(self, name: str) -> Tensor:
        """A view under another name."""
        from gguftool.model.views import named

        return named(self, name)


@record
class ModelFile:
    """One GGUF file of a model; `shard` is its place in a set, by its name or its split keys, None if it has none."""

    source: Source
    header: Header
    shard: ShardName | None


@record
class Model:
    """One logical model: `kvs` of the file that carries the metadata, `tensors` of all files in model order.

    ``model[key]`` is the value of a metadata key, ``model.tensors[name]`` a tensor; ``len`` counts the tensors, and
    ``in`` finds keys and tensor names. `missing` names shards that the set lacks; `expected_tensors` is
    `split.tensors.count`; `remarks` describe what opening left out or decided; `donors` are sources of tensors other
    than the files, see `with_tensors`.
    """

    name: str
    files: tuple[ModelFile, ...]
    kvs: tuple[KV, ...]
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...] = ()
    expected_tensors: int | None = None
    remarks: tuple[str, ...] = ()
    donors: tuple[Source, ...] = ()

    __iter__ = None  # over keys or over tensors? `kvs` and `tensors` say which

    def __getitem__(self, key: str) -> Any:
        """Decode the value of the metadata key `key`: int, float, bool, str, or list; for duplicate keys, the first.

        Raises `KeyError` if there is no such key.
        """
        kv = self.get(key)
        if kv is None:
            found = f", but a tensor: model.tensors[{key!r}]" if key in self.tensors else ""
            raise KeyError(f"'{_shown(str(key), _MAX_NAME)}' is not a metadata key{found}")
        return kv.value()

    def __contains__(self, key: object) -> bool:
        """Whether `key` is a metadata key or the name of a tensor."""
        return key in self.tensors or any(kv.key == key for kv in self.kvs)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self.tensors)

    def __bool__(self) -> bool:
        """True, even for a model without tensors (a vocabulary): truth means that there is a model."""
        return True

    def __repr__(self) -> str:
        """One line of at most 200 characters: name, architecture, tensors, files, size."""
        gaps = f", {len(self.missing):,} shards missing" if self.missing else ""
        return f"<Model '{_shown(self.name, _MAX_NAME)}': {self._architecture}, {self._counts_text}{gaps}>"

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        from html import escape

        title = _text_of(self.get("general.name"), _MAX_NAME)
        rows = {
            "Model": _shown(self.name, _MAX_NAME),
            "Name": title,
            "Architecture": self._architecture,
            "Holds": self._counts_text,
            "Types": _types_in_words(self.tensors.values()),
            "Missing": f"{len(self.missing):,} shards" if self.missing else "",
        }
        cells = (f"<tr><th>{head}</th><td>{escape(text)}</td></tr>" for head, text in rows.items() if text)
        return f"<table>{''.join(cells)}</table>"

    @property
    def _architecture(self) -> str:
        return _text_of(self.get(_ARCHITECTURE), _MAX_WORD) or "no architecture"

    @property
    def _counts_text(self) -> str:
        size = sum(source.size for source in self.sources)
        files = "1 file" if len(self.files) == 1 else f"{len(self.files):,} files"
        return f"{len(self.tensors):,} tensors, {files}, {size:,} bytes"

    @property
    def version(self) -> int:
        """The GGUF version of the file with the metadata."""
        return self.files[0].header.version

    @property
    def byte_order(self) -> ByteOrder:
        """The byte order of the file with the metadata."""
        return self.files[0].header.byte_order

    @property
    def alignment(self) -> int:
        """The alignment of the file with the metadata, in bytes."""
        return self.files[0].header.alignment

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of all files, and of tensors from elsewhere."""
        return (*(file.source for file in self.files), *self.donors)

    def get(self, key: str) -> KV | None:
        """Return the first metadata entry under `key`, or None."""
        return find_kv(self.kvs, key)

    def with_tensors(self, tensors: Iterable[Tensor]) -> Model:
        """This model with `tensors` in place of its own, in this order: views, or tensors of other models.

        So views can be compared, hashed, exported and reported on before they are written. Metadata stay as they are,
        except for the keys of a split. Raises `PlanError` for duplicate names.
        """
        from gguftool.model.views import with_tensors

        return with_tensors(self, tensors)

    @property
    def is_complete(self) -> bool:
        """Whether no shard and no tensor is missing, as far as the files show."""
        return not self.missing and self.expected_tensors in (None, len(self.tensors))


def shape_text(shape: Sequence[int]) -> str:
    """Format a shape, or dims, as people write it: ``256 x 6``."""
    return " x ".join(map(str, shape)) or "a scalar"


def _shown(text: str, limit: int) -> str:
    """`text` fit for a terminal, at most `limit` characters; unlike that of `printable`, the limit includes escapes."""
    shown = printable(text[: limit + 1], limit + 1)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def _text_of(kv: KV | None, limit: int) -> str:
    """The start of a string value, fit for a terminal; empty for anything else. Longer strings are not decoded."""
    if kv is None or kv.type is not ValueType.STRING:
        return ""
    return _shown(kv.raw[8 : 8 + 4 * (limit + 1)].decode("utf-8", "surrogateescape"), limit)


def _types_in_words(tensors: Iterable[Tensor]) -> str:
    """The tensor types and their counts, the largest by bytes first."""
    counts: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for tensor in tensors:
        kind = tensor.info.type
        counts[kind] = counts.get(kind, 0) + 1
        sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
    kinds = sorted(sizes, key=lambda kind: -sizes[kind])
    more = f" and {len(kinds) - _MAX_TYPES:,} more" if len(kinds) > _MAX_TYPES else ""
    return ", ".join(f"{counts[kind]:,} x {type_name(kind)}" for kind in kinds[:_MAX_TYPES]) + more


def tensors_of(source: Source, header: Header) -> tuple[Tensor, ...]:
    """Place the tensors of one file, in header order.

    Raises `FormatError` if data would be outside the file.
    """
    alignment = header.alignment
    data_offset = round_up(header.length, alignment)  # Header.data_offset would compute both again, for every file
    ends = _next_offsets(header.tensors)
    return tuple(
        _place(source, index, info, data_offset, end, alignment, header.byte_order)
        for index, (info, end) in enumerate(zip(header.tensors, ends, strict=True))
    )


def _next_offsets(infos: Sequence[TensorInfo]) -> list[int | None]:
    """For each tensor, the offset of the next one in the file, or None for the last; infos may be in any order."""
    order = sorted(range(len(infos)), key=lambda index: infos[index].offset)
    ends: list[int | None] = [None] * len(infos)
    for here, after in pairwise(order):
        ends[here] = infos[after].offset
    return ends


def _place(
    source: Source,
    index: int,
    info: TensorInfo,
    data_offset: int,
    end: int | None,
    alignment: int,
    byte_order: ByteOrder,
) -> Tensor:
    size = nbytes(info.type, info.dims)
    start = data_offset + info.offset
    room = source.size - start
    if room < (size or 0):
        raise FormatError(
            f"{type_name(info.type)} data of {size or 0:,} bytes at {start:,} ends outside the file of "
            f"{source.size:,} bytes: truncated, or the offset is damaged",
            source=source.name,
            where=f"tensor info {index}, '{printable(info.name, 80)}'",
            offset=start,
        )
    if end is None:
        gap = room if size is None else min(room, round_up(size, alignment))
    else:
        gap = min(data_offset + end, source.size) - start
    return Tensor(
        info=info,
        padded_extent=Extent(source=source, offset=start, length=gap),
        type_nbytes=size,
        sizing=_sizing(size, gap, alignment),
        alignment=alignment,
        byte_order=byte_order,
    )


def _sizing(size: int | None, gap: int, alignment: int) -> Sizing:
    if size is None:
        return Sizing.GAP
    # The engines' tools pad to 32 whatever the alignment key says, so use the larger of the two.
    return Sizing.EXACT if size <= gap < size + max(alignment, DEFAULT_ALIGNMENT) else Sizing.CONFLICT
