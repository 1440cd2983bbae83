"""Open the models that writers take tensors from: the labelled inputs of a merge, and the donor of a swap."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from gguftool.errors import FormatError, GGUFToolError, PlanError, did_you_mean, listed, printable
from gguftool.format.file_names import is_label_of, label_of_name, normal_label
from gguftool.format.header import TensorInfo
from gguftool.format.kv import ByteOrder
from gguftool.model.companions import find_maps
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.model.opening import ModelLike, StrPath, open_model, open_models
from gguftool.record import record, replace
from gguftool.storage.sources.locate import open_source, without_query
from gguftool.storage.sources.source import Extent, Source

# --- inputs of a merge: models, with the labels by which a recipe may refer to them ----------------------------------

_LABELLED = re.compile(r"(?P<label>[A-Za-z0-9_.+-]+)=(?P<spec>.+)", re.DOTALL)


@record
class Input:
    """One model to take tensors from; `given`: labels from the user, `claimed`: labels in file names and maps.

    Both are normalized. A given label takes precedence over a claimed one, even over one of another input.
    """

    model: Model
    given: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, the given ones first."""
        return (*self.given, *self.claimed)

    @property
    def name(self) -> str:
        """The model's name, for messages."""
        return self.model.name

    def is_labelled(self, type_id: int, *, given: bool) -> bool:
        """Whether a label stands for tensor type `type_id`: with `given` a label from the user, else a claimed one."""
        return any(is_label_of(label, type_id) for label in (self.given if given else self.claimed))


def open_inputs(arguments: Sequence[StrPath]) -> tuple[Input, ...]:
    """Open ``MODEL`` and ``LABEL=MODEL`` arguments, in their order; a file named twice counts once.

    Adjacent arguments without a label are pooled, so that a glob that the shell expanded is one input. Raises
    `SourceError` or `FormatError` as `open_models` does.
    """
    inputs: dict[frozenset[object], Input] = {}
    for label, specs in _runs([os.fspath(argument) for argument in arguments]):
        given = () if label is None else (normal_label(label),)
        for model in open_models(*specs):
            files = frozenset(source.file_key for source in model.sources)
            known = next((other for other in inputs if files <= other), None)
            if known is None:
                inputs[files] = Input(model=model, given=given, claimed=tuple(_claimed(model)))
            else:
                inputs[known] = replace(inputs[known], given=(*given, *inputs[known].given))
    return tuple(inputs.values())


def as_inputs(inputs: Input | ModelLike | Sequence[Input | ModelLike]) -> list[Input]:
    """Inputs unchanged, models as inputs without labels, and paths opened by `open_inputs`, adjacent ones pooled."""
    if isinstance(inputs, Input | Model | str | os.PathLike):
        inputs = [inputs]
    opened: list[Input] = []
    for _, run in groupby(inputs, lambda one: isinstance(one, Input | Model)):
        paths: list[StrPath] = []
        for one in run:
            if isinstance(one, Input):
                opened.append(one)
            elif isinstance(one, Model):
                opened.append(Input(model=one))
            else:
                paths.append(one)
        opened += open_inputs(paths)
    return opened


def models_named(arguments: Sequence[str]) -> tuple[str, ...]:
    """The models that ``MODEL`` and ``LABEL=MODEL`` arguments name, without their labels."""
    return tuple(spec for _, specs in _runs(arguments) for spec in specs)


def find_inputs(inputs: Sequence[Input], label: str) -> list[Input]:
    """Find the inputs with `label` (a folder may hold several); if none has it, `PlanError` lists the labels."""
    wanted = normal_label(label)
    found = [one for one in inputs if wanted in one.given] or [one for one in inputs if wanted in one.claimed]
    if found:
        return found
    known = sorted({known for candidate in inputs for known in candidate.labels})
    near = did_you_mean(label, known)
    raise PlanError(f"no input is labelled '{printable(label)}'; the labels are {listed(known) or 'none'}{near}")


def split_label(argument: str) -> tuple[str | None, str]:
    """Split ``LABEL=NAME``; without a label, or if there is a file of that whole name, the label is None."""
    match = None if os.path.lexists(argument) else _LABELLED.fullmatch(argument)
    return (None, argument) if match is None else (match["label"], match["spec"])


def _runs(arguments: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Group adjacent arguments without a label; each labelled argument is a group by itself."""
    pending: list[str] = []
    for argument in arguments:
        label, spec = split_label(argument)
        if label is None:
            pending.append(argument)
            continue
        if pending:
            yield None, pending
            pending = []
        yield label, [spec]
    if pending:
        yield None, pending


def _claimed(model: Model) -> Iterator[str]:
    by_name = label_of_name(model.files[0].source.name)
    if by_name is not None:
        yield by_name
    try:
        maps = find_maps(model.files)
    except GGUFToolError:
        return  # an unreadable map gives no label; the check of hashes reports its error
    if len(maps) == 1:  # several maps next to one set mean a mix, which has no single label
        entries = next(iter(maps.values()))
        by_map = label_of_name(entries[0].file) if entries else None
        if by_map is not None:
            yield by_map


# --- the donor of a swap ---------------------------------------------------------------------------------------------


@record
class Donor:
    """Tensors by name, their sources, and their GGUF model (None for safetensors).

    `byte_order` holds for all tensors except those in `big_endian`.
    """

    name: str
    tensors: Mapping[str, Tensor]
    sources: tuple[Source, ...]
    model: Model | None
    byte_order: ByteOrder = ByteOrder.LITTLE
    big_endian: frozenset[str] = frozenset()

    def byte_order_of(self, name: str) -> ByteOrder:
        """The byte order of a tensor's data."""
        return ByteOrder.BIG if name in self.big_endian else self.byte_order


def open_donor(spec: StrPath) -> Donor:
    """Open a GGUF model or a ``.safetensors`` file; raises `SourceError` or `FormatError` as `open_model` does."""
    spec = os.fspath(spec)
    return _open_safetensors(spec) if without_query(spec).lower().endswith(".safetensors") else _donor(open_model(spec))


def as_donor(donor: Donor | ModelLike) -> Donor:
    """`donor` itself, an open model as a donor, or the donor that `open_donor` opens at a path."""
    if isinstance(donor, Model):
        return _donor(donor)
    return donor if isinstance(donor, Donor) else open_donor(donor)


def _donor(model: Model) -> Donor:
    order = model.byte_order
    return Donor(name=model.name, tensors=model.tensors, sources=model.sources, model=model, byte_order=order)


def _open_safetensors(spec: str) -> Donor:
    from gguftool.format.safetensors import head_length, parse_safetensors

    source = open_source(spec)
    try:
        length = head_length(source.read_at(0, min(8, source.size)), source.size)
        listed = parse_safetensors(source.read_at(0, length), source.size)
    except FormatError as error:
        error.source = source.name
        raise
    found = {}
    for entry in listed:
        if entry.type_id is None:
            continue  # a dtype that ggml lacks; selecting this tensor raises an error that says so
        info = TensorInfo(name=entry.name, dims=entry.dims, type=entry.type_id, offset=0)
        size = entry.end - entry.begin
        found[entry.name] = Tensor(
            info=info,
            padded_extent=Extent(source=source, offset=length + entry.begin, length=size),
            type_nbytes=size,
            sizing=Sizing.EXACT,
            alignment=1,
            byte_order=ByteOrder.BIG if entry.big_endian else ByteOrder.LITTLE,
        )
    big = frozenset(entry.name for entry in listed if entry.big_endian)
    return Donor(name=spec, tensors=MappingProxyType(found), sources=(source,), model=None, big_endian=big)
