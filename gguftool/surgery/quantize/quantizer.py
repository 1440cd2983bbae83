"""Quantize one tensor: choose the back end and the weights, or report why it cannot be done.

The result is a tensor with a source that computes its bytes when they are read (`quantized_source.py`), or with a
`Pending` source that an installed llama-quantize replaces before the plan is carried out (`external.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguftool.engines.llama_quantize import LlamaQuantize
from gguftool.errors import Notes, PlanError, listed
from gguftool.format.dequantize import Decoder, decoder_of
from gguftool.format.engine_facts.embeddings import TOKEN_EMBD, may_lack_imatrix
from gguftool.format.engine_facts.presets.llama_cpp import needs_imatrix
from gguftool.format.engine_facts.stand_ins import stand_in
from gguftool.format.engine_facts.types import ImatrixPolicy, type_facts
from gguftool.format.ggml import EXTERNAL, GGUF, LIBGGUF, PLAIN, TYPES, nbytes, type_alias
from gguftool.format.imatrix import ImatrixEntry
from gguftool.format.kv import ByteOrder
from gguftool.format.quantizers import (
    Encode,
    Quantizer,
    best_quantizer,
    engine_makes,
    plain_quantizer,
)
from gguftool.format.quants.relayout import relayout_of
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.model.scales import Factor
from gguftool.record import record, replace
from gguftool.storage.sources.source import Extent, Source
from gguftool.surgery.quantize.native_wheels import how_to_install, this_machine
from gguftool.surgery.quantize.options import QuantizeOptions
from gguftool.surgery.quantize.quantized_source import MAX_ROW, QuantizedSource
from gguftool.surgery.quantize.relayout_source import RelayoutSource


@record
class Pending(Source):
    """`nbytes` bytes that an installed llama-quantize makes before the plan is carried out; `key` identifies them."""

    nbytes: int
    key: str

    @property
    def name(self) -> str:
        """The name of the back end."""
        return EXTERNAL

    @property
    def size(self) -> int:
        """Bytes that will be made."""
        return self.nbytes

    @property
    def identity(self) -> str:
        """The tensor, its input, and the program that makes it."""
        return self.key

    def read_at(self, offset: int, length: int) -> bytes:
        """Raise `PlanError`: these bytes are not made yet."""
        raise PlanError(f"{length:,} bytes at {offset:,} are not made yet", source=self.name)


@dataclass(slots=True)
class TensorQuantizer:
    """Turns tensors of `source` into other types, or reports in `notes` why that cannot be done.

    `other_way`: how a caller gets a type that no back end makes; default: by the options of quantize.
    """

    source: Model
    options: QuantizeOptions
    notes: Notes
    other_way: str | None = None
    backend: Quantizer = field(default_factory=best_quantizer, init=False)
    encoders: dict[int, tuple[str, Encode]] = field(default_factory=dict, init=False)
    unweighed: list[str] = field(default_factory=list, init=False)

    @property
    def weighs(self) -> bool:
        """Whether the back end uses an imatrix."""
        return self.options.llama_quantize is not None or self.backend.weighs

    def quantize(self, tensor: Tensor, wanted: int, factor: Factor | None = None) -> tuple[Tensor, ImatrixEntry | None]:
        """Turn `tensor`, times `factor`, into type id `wanted`; the second item is its imatrix entry, or None.

        If that cannot be done, `tensor` is returned unchanged, and `notes` gets the problem.
        """
        name = tensor.info.name
        change = relayout_of(tensor.info.type, wanted, tensor.info.dims)
        if change is not None and factor is None and tensor.sizing is Sizing.EXACT:
            self.notes.remark(f"rows rearranged, from {type_alias(tensor.info.type)}: no number changes", name)
            return self._tensor(tensor, wanted, RelayoutSource(tensor=tensor, change=change, wanted=wanted)), None
        if self.options.repack:
            own = type_alias(tensor.info.type)
            self.notes.problem(
                f"{own} and {type_alias(wanted)} do not hold the same numbers, as --repack requires", name
            )
            return tensor, None
        problem, decoder = self._problem(tensor)
        if problem or decoder is None:
            self.notes.problem(problem, name)
            return tensor, None
        plain = PLAIN in TYPES[wanted].quantized_by
        entry = None if plain else self._entry(tensor, wanted)
        bytes_of: Source
        if self.options.llama_quantize is not None and not plain:
            if not engine_makes(wanted, self.options.engine):
                self.notes.problem(f"the llama-quantize of {self.options.engine} makes no {type_alias(wanted)}", name)
                return tensor, None
            bytes_of = self._pending(tensor, wanted, entry, self.options.llama_quantize, factor)
        else:
            found = self._encoder(wanted, name)
            if found is None:
                return tensor, None
            bytes_of = QuantizedSource(
                tensor=tensor,
                traits=TYPES[wanted],
                maker=found[0],
                weighed=self._digest(entry),
                decoder=decoder,
                encode=found[1],
                entry=entry,
                factor=factor,
            )
        return self._tensor(tensor, wanted, bytes_of), entry

    def _tensor(self, tensor: Tensor, wanted: int, bytes_of: Source) -> Tensor:
        return Tensor(
            info=replace(tensor.info, type=wanted),
            padded_extent=Extent(source=bytes_of, offset=0, length=bytes_of.size),
            type_nbytes=bytes_of.size,
            sizing=Sizing.EXACT,
            alignment=1,  # computed bytes have no padding to keep
        )

    def _pending(
        self, tensor: Tensor, wanted: int, entry: ImatrixEntry | None, tool: LlamaQuantize, factor: Factor | None
    ) -> Pending:
        size = nbytes(wanted, tensor.info.dims) or 0
        what = f"{tensor.padded_extent.source.identity} {tensor.padded_extent.offset} to {wanted} by {tool.identity}"
        scaled = "" if factor is None else f" {factor.identity}"
        return Pending(nbytes=size, key=f"{what} imatrix {self._digest(entry)}{scaled}")

    def _digest(self, entry: ImatrixEntry | None) -> str:
        return self.options.weights.imatrix.digest if self.options.weights is not None and entry is not None else ""

    def _problem(self, tensor: Tensor) -> tuple[str, Decoder | None]:
        """Why `tensor` cannot be read as numbers, or the decoder that reads it."""
        own = TYPES.get(tensor.info.type)
        if own is None or tensor.type_nbytes is None or tensor.sizing is Sizing.CONFLICT:
            return f"it is {type_alias(tensor.info.type)} here, and its size or type is in doubt", None
        if not own.is_plain_float and not self.options.requantize:
            return (
                f"it is {own.alias} here, and quantizing again loses more; --allow-requantize does it, but a BF16 or "
                "F16 source is better"
            ), None
        decoder = decoder_of(tensor.info.type, ByteOrder.LITTLE, tensor.info.dims)
        if decoder is None:
            return f"it is {own.alias} here, which cannot be dequantized; give a BF16 or F16 source", None
        if tensor.info.dims[0] > MAX_ROW:
            return f"a row of more than {MAX_ROW:,} elements, a limit of gguftool: a row is held in memory", None
        if not own.is_plain_float:
            self.notes.remark(f"quantized again, from {own.alias}", tensor.info.name)
        return "", decoder

    def _encoder(self, wanted: int, name: str) -> tuple[str, Encode] | None:
        traits = TYPES[wanted]
        quantizer = plain_quantizer() if PLAIN in traits.quantized_by else self.backend
        if traits.name not in quantizer.types:
            self.notes.problem(_not_offered(wanted, quantizer, self.options.engine, self.other_way), name)
            return None
        if wanted not in self.encoders:
            self.encoders[wanted] = (f"{quantizer.name} {quantizer.version}", quantizer.encoder(traits))
        return self.encoders[wanted]

    # --- weights ---

    def _entry(self, tensor: Tensor, wanted: int) -> ImatrixEntry | None:
        """The imatrix entry of `tensor`, looked up as llama-quantize does."""
        name, weights = tensor.info.name, self.options.weights
        entry = self._found(name, weights.imatrix.entries) if weights is not None and self.weighs else None
        if entry is not None and not entry.fits(tensor.info.dims):
            if name != TOKEN_EMBD:
                self.notes.problem(f"the imatrix belongs to another model: {entry.misfit(tensor.info.dims)}", name)
                return None
            self.notes.remark("its entry in the imatrix has another size and is ignored, as in llama-quantize", name)
            entry = None
        if entry is None:
            self._without_weights(name, wanted)
        elif entry.blank_matrices(tensor.info.dims):
            self.notes.remark(
                "its weights in the imatrix, or those of an expert, are all 0: then most types lose all of its "
                "numbers, in llama-quantize too",
                name,
            )
        return entry

    def _found(self, name: str, entries: Mapping[str, ImatrixEntry]) -> ImatrixEntry | None:
        """The entry under `name`, or the one that the engine uses instead."""
        other = None if name in entries else stand_in(name, entries, self.options.engine)
        if other is not None:
            part = other.rpartition(".weight")[0].rpartition(".")[2]
            self.notes.remark(f"no entry in the imatrix; uses that of {part}, as {self.options.engine} does", name)
        return entries.get(other or name)

    def _without_weights(self, name: str, wanted: int) -> None:
        rules = type_facts(wanted)
        policy = ImatrixPolicy.NO if rules is None else rules.imatrix_policy(self.options.engine)
        preset = self.options.preset
        if preset is not None and needs_imatrix(preset.name, TYPES[wanted].name):
            policy = ImatrixPolicy.YES
        exempt = may_lack_imatrix(name, self.options.engine)
        if policy is ImatrixPolicy.ASSERTED or (policy is ImatrixPolicy.YES and not exempt):
            has = "--imatrix FILE gives one" if self.options.weights is None else "the given one has no entry for it"
            self.notes.problem(f"{type_alias(wanted)} needs an imatrix; {has}", name)
        elif self.options.weights is not None:
            self.unweighed.append(name)

    def finish(self) -> None:
        """Report problems of the imatrix as a whole; call it after the last tensor."""
        weights, notes = self.options.weights, self.notes
        if weights is None:
            return
        entries = weights.imatrix.entries
        if not any(name in entries or stand_in(name, entries, self.options.engine) for name in self.source.tensors):
            have = listed(list(entries), 3)
            notes.problem(f"the imatrix belongs to another model: it has {have}, and no tensor of", self.source.name)
        elif self.unweighed and not self.weighs:
            way = how_to_install(this_machine())
            notes.remark(f"gguf.quants ignores the imatrix; back ends that use it: {way}", self.unweighed[0])
        else:
            for name in self.unweighed:
                notes.remark("not in the imatrix, so quantized without it", name)


def _not_offered(wanted: int, quantizer: Quantizer, engine: str, other_way: str | None) -> str:
    """The message that `quantizer` does not make the type `wanted`, with the ways to get it."""
    ways = []
    makers = TYPES[wanted].quantized_by
    if quantizer.name == GGUF and LIBGGUF in makers:
        ways.append(f"a back end that makes it: {how_to_install(this_machine())}")
    if engine_makes(wanted, engine) and other_way is None:
        ways.append(f"--llama-quantize PATH drives one of {engine}")
    ways.append(other_way or "--reuse MODEL takes it from a model that has it")
    return f"{quantizer.name} does not make {type_alias(wanted)}; {', '.join(ways)}"
