"""Label a model: its majority type, whether other types are mixed in, and whether `general.file_type` agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from gguftool.format.engine_facts.embeddings import EMBEDDINGS_AND_OUTPUT
from gguftool.format.ftypes import FILE_TYPE_KEY, FType, ftype_name, ftypes_of
from gguftool.format.ggml import find_type, type_name
from gguftool.format.kv import INTEGERS
from gguftool.model.model import Model, Tensor
from gguftool.model.roles import Place, Role
from gguftool.record import record


@record
class Claim:
    """The claim of `general.file_type`; `agrees` is None if there is nothing to compare."""

    number: int | None
    name: str
    agrees: bool | None
    text: str


@record
class Label:
    """A model in one line: the majority type, whether others are mixed in, bits per weight, size."""

    majority: str
    mix: bool
    bits_per_weight: float
    types: int
    nbytes: int
    claim: Claim


def label_of(model: Model, places: Mapping[str, Place]) -> Label:
    """Label `model`; `places` gives the role of each tensor by name."""
    tensors = tuple(model.tensors.values())
    matrices = [tensor for tensor in tensors if is_matrix(tensor)]
    # llama-quantize chooses the types of embeddings and output separately, so they do not count for the majority.
    majority = _majority([t for t in matrices if t.info.name not in EMBEDDINGS_AND_OUTPUT] or matrices or tensors)
    # Every quantizer leaves routers as they are, so another type only there makes no mix.
    mixed = {tensor.info.type for tensor in matrices if places[tensor.info.name].role is not Role.ROUTER}
    total, elements = sum(tensor.nbytes for tensor in tensors), sum(tensor.info.elements for tensor in tensors)
    return Label(
        majority=majority,
        mix=len(mixed) > 1,
        bits_per_weight=round(total * 8 / elements, 4) if elements else 0.0,
        types=len({tensor.info.type for tensor in tensors}),
        nbytes=total,
        claim=_claim(model, majority),
    )


def is_matrix(tensor: Tensor) -> bool:
    """Whether `tensor` is more than a vector; no quantizer touches norms and biases."""
    return sum(dim > 1 for dim in tensor.info.dims) > 1


def _majority(tensors: Sequence[Tensor]) -> str:
    """Name the type that most elements have; "" without tensors."""
    elements: Counter[int] = Counter()
    for tensor in tensors:
        elements[tensor.info.type] += tensor.info.elements
    return type_name(elements.most_common(1)[0][0]) if elements else ""


def _claim(model: Model, majority: str) -> Claim:
    kv = model.get(FILE_TYPE_KEY)
    if kv is None:
        return Claim(number=None, name="", agrees=None, text=f"{FILE_TYPE_KEY} is not set")
    if kv.type not in INTEGERS:
        return Claim(number=None, name="", agrees=None, text=f"{FILE_TYPE_KEY} is not a number but {kv.type.name}")
    number = int(kv.value())
    name, meant = ftype_name(number), ftypes_of(number)
    agrees = any(_means(ftype, majority) for ftype in meant) if meant and majority else None
    text = f"{FILE_TYPE_KEY} says {name} ({number})"
    if not meant:
        text = f"{FILE_TYPE_KEY} is {number}, a number that neither engine knows"
    elif agrees is False:
        usual = " or ".join(dict.fromkeys(ftype.tensor_type or ftype.majority_of for ftype in meant))
        text += f", so mostly {usual}; but most weights are {majority}"
    return Claim(number=number, name=name, agrees=agrees, text=text)


def _means(ftype: FType, majority: str) -> bool:
    """Whether `ftype` names the type `majority`, or a type that it was repacked from."""
    traits = find_type(majority)
    names = (majority, *(traits.repack_of if traits else ()))
    return bool({ftype.tensor_type, ftype.majority_of} & set(names))
