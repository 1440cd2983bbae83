"""The label of a model: its majority type, whether other types are mixed in, and whether `general.file_type` agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from gguftool.format.ftypes import FILE_TYPE_KEY, FType, ftype_name, ftypes_of
from gguftool.format.ggml import find_type, type_name
from gguftool.format.kv import INTEGERS
from gguftool.model.model import Model, Tensor
from gguftool.model.roles import Place, Role
from gguftool.record import record

# What llama-quantize treats apart from the mass of the weights: the majority is judged without these.
_APART = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})


@record
class Claim:
    """What `general.file_type` says; `agrees` is None where there is nothing to compare."""

    number: int | None
    name: str
    agrees: bool | None
    text: str


@record
class Label:
    """What a model is, in one line: the majority type, whether others are mixed in, true bits per weight, size."""

    majority: str
    mix: bool
    bits_per_weight: float
    types: int
    nbytes: int
    claim: Claim


def label_of(model: Model, places: Mapping[str, Place]) -> Label:
    """Return the label of `model`, whose tensors have the roles that `places` gives by name."""
    tensors = tuple(model.tensors.values())
    matrices = [tensor for tensor in tensors if is_matrix(tensor)]
    majority = _majority([t for t in matrices if t.info.name not in _APART] or matrices or tensors)
    # Every quantizer leaves routers as they are: they alone make no mix.
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
    """Whether `tensor` is more than a vector; norms and biases are quantized by nobody."""
    return sum(dim > 1 for dim in tensor.info.dims) > 1


def _majority(tensors: Sequence[Tensor]) -> str:
    """Return the name of the type that most elements have, empty where there are no tensors."""
    elements: Counter[int] = Counter()
    for tensor in tensors:
        elements[tensor.info.type] += tensor.info.elements
    return type_name(elements.most_common(1)[0][0]) if elements else ""


def _claim(model: Model, majority: str) -> Claim:
    kv = model.get(FILE_TYPE_KEY)
    if kv is None:
        return Claim(number=None, name="", agrees=None, text=f"{FILE_TYPE_KEY} is not set")
    if kv.type not in INTEGERS:
        return Claim(number=None, name="", agrees=None, text=f"{FILE_TYPE_KEY} is no number but {kv.type.name}")
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
    """Whether a file whose majority is `majority` may be called `ftype`: it, or what it was repacked from."""
    traits = find_type(majority)
    names = (majority, *(traits.repack_of if traits else ()))
    return bool({ftype.tensor_type, ftype.majority_of} & set(names))
