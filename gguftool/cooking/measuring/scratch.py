"""A scratch copy of the reference. Its tensors get other values in place: same type, same offsets, same metadata.

So the engine needs no kernel for the measured type, and a measurement writes one tensor, not a model. The copy shares
the reference's blocks if the file system can. It is made for one run and removed with its folder, so changes need no
journal. Each change is undone after its measurement, and at the end the copy must be the reference again, byte for
byte.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguftool.cooking.type_values import TypedTensor, TypeMaker, measure_rows
from gguftool.errors import ExecuteError, PlanError, printable
from gguftool.format.dequantize import Decoder, decoder_of, to_f32
from gguftool.format.ggml import TYPES, type_alias
from gguftool.model.model import Model, Tensor
from gguftool.record import record
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.digest import digest
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import whole
from gguftool.storage.system.fileio import close_quietly, write_fully
from gguftool.storage.system.names import open_file
from gguftool.storage.system.reflink import CLONE, KernelCopies, clone_grid
from gguftool.surgery.quantize.quantized_source import QuantizedSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_SHARE = 0.1  # the carrier may add at most this share of the type's own error
_STEP = 4 << 20


class NoCarrierError(PlanError):
    """The reference's own type cannot hold the values."""


@record
class Carried:
    """The errors of one written tensor: the type's relative squared error, and the carrier's."""

    error: float
    carrier_error: float


def plan_scratch(model: Model, folder: Path) -> Plan:
    """Plan the copies of the files of `model` in `folder`; raises `PlanError` if two have the same name."""
    outputs, names = [], set()
    for file in model.files:
        name = os.path.basename(file.source.name)
        if name in names:
            raise PlanError(
                f"two of its files are called '{printable(name)}', but engines load from one folder", source=model.name
            )
        names.add(name)
        copy = Copy(extent=whole(file.source), offset=0)
        outputs.append(OutputFile(path=folder / name, head=b"", copies=(copy,), size=file.source.size))
    return Plan(outputs=tuple(outputs), inputs=model.sources)


class Scratch:
    """A scratch copy of `model` in `folder`."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model = model
        self._plan = plan_scratch(model, folder)
        self._kernel = KernelCopies()
        self._changed: list[Tensor] = []

    @property
    def path(self) -> Path:
        """The file that an engine loads: the first of a set."""
        return self._plan.outputs[0].path

    def make(self) -> None:
        """Copy the reference; raises `ExecuteError` if there is no room."""
        execute(self._plan, Options(sync=False, resume=False, force=True))

    def write(self, maker: TypeMaker, typed: TypedTensor, threads: int | None = None) -> Carried:
        """Write the values of `typed` in place of the reference's tensor, in its type.

        Raises `NoCarrierError` if that type cannot hold them.
        """
        own = self.model.tensors[typed.tensor.name]
        self._changed.append(own)
        fd = self._open(own)
        try:
            carrier = self._carrier(maker, typed, fd, own)
            sums = measure_rows(typed, [(0, typed.tensor.info.rows)], threads=threads, carry=carrier)
        finally:
            close_quietly(fd)
        if not sums.carrier_error <= LARGEST_SHARE * sums.error:  # true for NaN, too, which infinities give
            raise NoCarrierError(
                f"'{printable(typed.tensor.name)}' at {typed.type} has a relative squared error of {sums.error:.2e}, "
                f"but {type_alias(own.info.type)}, in which the engine gets its values, would add "
                f"{sums.carrier_error:.2e}, over a tenth of it; give the model in F32 or BF16, or in F16",
                source=self.model.name,
            )
        return Carried(error=sums.error, carrier_error=sums.carrier_error)

    def restore(self) -> None:
        """Restore the bytes of every changed tensor."""
        while self._changed:
            self._restore(self._changed[-1])
            self._changed.pop()

    def verify(self) -> None:
        """Raise `ExecuteError` unless the copy is the reference, byte for byte."""
        for file, output in zip(self.model.files, self._plan.outputs, strict=True):
            copy = open_source(str(output.path))
            if copy.size != file.source.size or digest([whole(copy)]) != digest([whole(file.source)]):
                raise ExecuteError(
                    "the scratch copy no longer equals the reference, so the last measurements may be wrong: another "
                    "program wrote to it, or the disk failed; remove the output and measure again",
                    source=str(output.path),
                )

    def _open(self, tensor: Tensor) -> int:
        """Open the file of the copy that has `tensor`."""
        index = self.model.sources.index(tensor.padded_extent.source)
        return open_file(self._plan.outputs[index].path, os.O_RDWR, follow=False)

    def _carrier(self, maker: TypeMaker, typed: TypedTensor, fd: int, own: Tensor) -> _Carrier:
        try:
            source = maker.carried(typed)
        except PlanError as error:
            raise NoCarrierError(error.message, source=error.source, where=error.where) from None
        kind = own.info.type
        decoder = decoder_of(kind, own.byte_order, typed.tensor.info.dims)
        if decoder is None:
            raise NoCarrierError(f"{type_alias(kind)} cannot be decoded here", source=self.model.name)
        row = typed.tensor.info.width // TYPES[kind].block_size * TYPES[kind].type_size
        return _Carrier(typed=typed, source=source, decoder=decoder, fd=fd, start=own.extent.offset, row_bytes=row)

    def _restore(self, tensor: Tensor) -> None:
        """Copy the bytes of `tensor` back, sharing whole blocks again where the file system can."""
        extent, done = tensor.extent, 0
        fd = self._open(tensor)
        try:
            grid, opened = clone_grid(fd), extent.source.descriptor()
            begin = extent.offset if grid is None else -(-extent.offset // grid) * grid
            length = 0 if grid is None else (extent.end - begin) // grid * grid
            if opened is not None and length > 0:
                with opened as source:
                    done = self._kernel.attempt(CLONE, (source, begin), (fd, begin), length)
            self._copy(tensor, fd, extent.offset, begin if done else extent.end)
            if done:
                self._copy(tensor, fd, begin + done, extent.end)
        finally:
            close_quietly(fd)

    def _copy(self, tensor: Tensor, fd: int, first: int, last: int) -> None:
        source = tensor.extent.source
        for offset in range(first, last, _STEP):
            write_fully(fd, source.read_at(offset, min(_STEP, last - offset)), offset)


@record
class _Carrier:
    """Encodes values in the reference's type, writes them to the copy, and returns the values after that encoding.

    `source` is None if the values already have that type; then their own bytes are written.
    """

    typed: TypedTensor
    source: QuantizedSource | None
    decoder: Decoder
    fd: int
    start: int
    row_bytes: int

    def __call__(self, first: int, values: NDArray[Any]) -> NDArray[Any]:
        import numpy as np

        if self.source is None:
            extent = self.typed.typed.extent
            data: bytes | bytearray = extent.source.read_at(
                extent.offset + first * self.row_bytes, len(values) * self.row_bytes
            )
        else:
            with np.errstate(over="ignore"):
                data = self.source.encode(values, None)
        write_fully(self.fd, memoryview(data), self.start + first * self.row_bytes)
        return to_f32(self.decoder.decode(bytes(data))).reshape(values.shape)
