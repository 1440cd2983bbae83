"""The output's metadata: the donor's, byte for byte, except for keys about the file's own quantization.

`general.file_type`, `general.quantization_version` and `quantize.imatrix.*` are corrected to match the tensors in the
output.  If all tensors come from the donor, nothing changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from gguftool.format.engine_facts.embeddings import EMBEDDINGS_AND_OUTPUT
from gguftool.format.engine_facts.engines import BOTH, IK, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.fallback import fallback_type
from gguftool.format.file_names import SPLIT_KEYS
from gguftool.format.ftypes import FILE_TYPE_KEY, FType, ftype_name, ftype_of_majority, ftype_tensor_type, ftypes_of
from gguftool.format.ggml import TYPES, TypeTraits, find_type, type_alias, type_name
from gguftool.format.kv import INTEGERS, KV, ByteOrder, ValueType, find_kv, make_kv
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ORDER_KEY
from gguftool.model.padding import PADDING_KEY
from gguftool.record import record

QUANTIZATION_VERSION_KEY = "general.quantization_version"
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION in ggml/include/ggml.h of both engines
IMATRIX_PREFIX = "quantize.imatrix."
PROVENANCE_PREFIX = "gguftool.source."  # written by merge --provenance; true only for the tensors of that file
# Keys that describe how files store a model, not the model; every writer makes its own.
LAYOUT_KEYS = SPLIT_KEYS | {ORDER_KEY, PADDING_KEY}
# Prefixes of the keys that are corrected for the output.
MADE_TRUE = (FILE_TYPE_KEY, QUANTIZATION_VERSION_KEY, IMATRIX_PREFIX)


@record
class SelectedTensor:
    """One tensor of the output and the model that it comes from."""

    tensor: Tensor
    model: Model


@record
class OutputMetadata:
    """The output's metadata, and remarks on differences from the donor's."""

    kvs: tuple[KV, ...]
    remarks: tuple[str, ...]


def majority_type(tensors: Iterable[Tensor]) -> int | None:
    """The type id of most elements, over tensors of two or more dimensions; None without such tensors.

    Embeddings and the output do not count, because llama-quantize gives them their own types in most mixes.
    """
    votes: Counter[int] = Counter()
    for tensor in tensors:
        if len(tensor.info.shape) > 1 and tensor.info.name not in EMBEDDINGS_AND_OUTPUT:
            votes[tensor.info.type] += tensor.info.elements
    return max(votes, key=lambda type_id: (votes[type_id], -type_id), default=None)


def output_metadata(donor: Model, chosen: Sequence[SelectedTensor], *, keep_file_type: bool = False) -> OutputMetadata:
    """Adapt `donor`'s metadata to a file that holds the `chosen` tensors; keys of the layout are left out."""
    kvs = without_layout_keys(donor.kvs)
    if all(choice.model is donor for choice in chosen):
        return OutputMetadata(kvs=kvs, remarks=())
    remarks: list[str] = []
    kvs = without_provenance(kvs)
    if not keep_file_type:
        kvs = _with_file_type(kvs, donor, chosen, remarks)
    kvs = _with_quantization_version(kvs, donor.byte_order, chosen)
    kvs = _with_imatrix(kvs, donor, chosen, remarks)
    return OutputMetadata(kvs=kvs, remarks=tuple(remarks))


def with_preset(metadata: OutputMetadata, preset: FType) -> OutputMetadata:
    """Set the keys that llama-quantize writes for `preset`: its file type, whatever the tensors, and the version."""
    kvs = _with(metadata.kvs, make_kv(FILE_TYPE_KEY, ValueType.UINT32, preset.id))
    kvs = _with(kvs, make_kv(QUANTIZATION_VERSION_KEY, ValueType.UINT32, QUANTIZATION_VERSION))
    remarks = tuple(text for text in metadata.remarks if not text.startswith(FILE_TYPE_KEY))
    return OutputMetadata(kvs=kvs, remarks=remarks)


def with_true_file_type(
    metadata: OutputMetadata, chosen: Sequence[SelectedTensor], order: ByteOrder, *, wanted: bool
) -> OutputMetadata:
    """If `wanted`, set the file type by the majority of the `chosen` tensors; else warn if it contradicts them."""
    old = find_kv(metadata.kvs, FILE_TYPE_KEY)
    tensors = [choice.tensor for choice in chosen]
    ftype = _true_file_type(tensors)
    if not wanted:
        if old is None or old.type not in INTEGERS or not contradicts(old.value(), tensors):
            return metadata
        writes = "leaves it out" if ftype is None else f"writes {ftype.id} ({ftype.name})"
        said = f"{FILE_TYPE_KEY} says {old.value()} ({ftype_name(old.value())}), but most elements are "
        said += f"{type_alias(majority_type(tensors) or 0)}; --true-file-type {writes}"
        return OutputMetadata(kvs=metadata.kvs, remarks=(*metadata.remarks, said))
    kvs = tuple(kv for kv in metadata.kvs if ftype is not None or kv.key != FILE_TYPE_KEY)
    if ftype is not None:
        kvs = _with(kvs, make_kv(FILE_TYPE_KEY, ValueType.UINT32, ftype.id, byte_order=order))
    kvs = _with_quantization_version(kvs, order, chosen)
    remarks = tuple(text for text in metadata.remarks if not text.startswith(FILE_TYPE_KEY))
    return OutputMetadata(kvs=kvs, remarks=remarks)


def contradicts(file_type: int, tensors: Sequence[Tensor]) -> bool:
    """Whether no engine makes a file of these tensors under `file_type`.

    True if it stands for floats but most elements are quantized, or if no tensor has its type or a fallback of it.
    """
    majority = majority_type(tensors)
    if majority is None:
        return False
    kinds = {found for ftype in ftypes_of(file_type) if (found := find_type(ftype.tensor_type))}
    if not kinds or majority in {kind.id for kind in kinds}:
        return False
    if all(kind.is_plain_float for kind in kinds):
        return majority not in TYPES or TYPES[majority].is_quantized
    if any(ftype.name == "MXFP4_MOE" for ftype in ftypes_of(file_type)) and type_name(majority) == "Q8_0":
        return False  # a dense model under that preset
    return not any(_made_as(tensor, kinds) for tensor in tensors if len(tensor.info.shape) > 1)


def _made_as(tensor: Tensor, kinds: Iterable[TypeTraits]) -> bool:
    """Whether the tensor has one of `kinds`, or the type that an engine falls back to for its rows."""
    own = type_name(tensor.info.type)
    wide = tensor.info.dims[0]
    return any(own == kind.name or own == fallback_type(kind.name, wide, engine) for kind in kinds for engine in BOTH)


def _true_file_type(tensors: Sequence[Tensor]) -> FType | None:
    majority = majority_type(tensors)
    if majority is None:
        return None
    ik_only = any(tensor.info.type in TYPES and TYPES[tensor.info.type].engines == IK for tensor in tensors)
    return ftype_of_majority(type_name(majority), IK_LLAMA_CPP if ik_only else LLAMA_CPP)


def without_provenance(kvs: Iterable[KV]) -> tuple[KV, ...]:
    """Leave out the keys that record where the tensors of an earlier merge came from."""
    return tuple(kv for kv in kvs if not kv.key.startswith(PROVENANCE_PREFIX))


def _with_file_type(
    kvs: tuple[KV, ...], donor: Model, chosen: Sequence[SelectedTensor], remarks: list[str]
) -> tuple[KV, ...]:
    old = find_kv(kvs, FILE_TYPE_KEY)
    majority = majority_type(choice.tensor for choice in chosen)
    if old is None or majority is None or majority == _donor_majority(donor, old):
        return kvs
    name = TYPES[majority].name if majority in TYPES else f"type#{majority}"
    ftype = _true_file_type([choice.tensor for choice in chosen])
    before = ftype_name(old.value()) if old.type in INTEGERS else "no number"
    if ftype is None:
        remarks.append(f"{FILE_TYPE_KEY} left out (it was {before}): no file type stands for a majority of {name}")
        return tuple(kv for kv in kvs if kv.key != FILE_TYPE_KEY)
    if old.type is ValueType.UINT32 and old.value() == ftype.id:
        return kvs
    remarks.append(f"{FILE_TYPE_KEY} is now {ftype.id} ({ftype.name}), it was {before}: most elements are {name}")
    return _with(kvs, make_kv(FILE_TYPE_KEY, ValueType.UINT32, ftype.id, byte_order=donor.byte_order))


def _donor_majority(donor: Model, file_type: KV) -> int | None:
    """The donor's majority type; if it lacks tensors, the type that its file type stands for, or None."""
    if donor.is_complete and donor.tensors:
        return majority_type(donor.tensors.values())
    return ftype_tensor_type(file_type.value()) if file_type.type in INTEGERS else None


def _with_quantization_version(
    kvs: tuple[KV, ...], order: ByteOrder, chosen: Sequence[SelectedTensor]
) -> tuple[KV, ...]:
    old = find_kv(kvs, QUANTIZATION_VERSION_KEY)
    if not any(_is_quantized(choice.tensor) for choice in chosen) or (
        old is not None and old.type in INTEGERS and old.value() == QUANTIZATION_VERSION
    ):
        return kvs
    return _with(kvs, make_kv(QUANTIZATION_VERSION_KEY, ValueType.UINT32, QUANTIZATION_VERSION, byte_order=order))


def _with_imatrix(
    kvs: tuple[KV, ...], donor: Model, chosen: Sequence[SelectedTensor], remarks: list[str]
) -> tuple[KV, ...]:
    """Take `quantize.imatrix.*` from the model that all quantized tensors come from; drop it if there are several."""
    makers = {id(choice.model): choice.model for choice in chosen if _is_quantized(choice.tensor)}
    if makers.keys() == {id(donor)}:
        return kvs
    rest = tuple(kv for kv in kvs if not kv.key.startswith(IMATRIX_PREFIX))
    theirs = [kv for maker in makers.values() for kv in maker.kvs if kv.key.startswith(IMATRIX_PREFIX)]
    records = {tuple(_imatrix_record(maker)) for maker in makers.values()}
    if records == {tuple(_imatrix_record(donor))}:
        return kvs
    if len(records) == 1 and theirs:  # models quantized with the same imatrix carry the same keys
        return (*rest, *(kv for kv in next(iter(makers.values())).kvs if kv.key.startswith(IMATRIX_PREFIX)))
    if theirs or len(rest) < len(kvs):
        reasons = {0: "no tensor is quantized", 1: "the model that the quantized tensors come from has no such keys"}
        why = reasons.get(len(makers), f"the quantized tensors come from {len(makers)} models")
        remarks.append(f"{IMATRIX_PREFIX}* left out: {why}")
    return rest


def _imatrix_record(model: Model) -> list[tuple[str, ValueType, bytes]]:
    entries = [(kv.key, kv.type, bytes(kv.raw)) for kv in model.kvs if kv.key.startswith(IMATRIX_PREFIX)]
    return sorted(entries, key=lambda entry: entry[0])


def _is_quantized(tensor: Tensor) -> bool:
    traits = TYPES.get(tensor.info.type)
    return traits is None or traits.is_quantized


def _with(kvs: tuple[KV, ...], new: KV) -> tuple[KV, ...]:
    """Replace the entry under the key of `new`, or append it."""
    if find_kv(kvs, new.key) is None:
        return (*kvs, new)
    return tuple(new if kv.key == new.key else kv for kv in kvs)


def without_layout_keys(kvs: Iterable[KV]) -> tuple[KV, ...]:
    """Leave out the keys that describe how files store the model."""
    return tuple(kv for kv in kvs if kv.key not in LAYOUT_KEYS)
