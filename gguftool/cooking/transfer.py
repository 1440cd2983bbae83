"""Transfer a mix to another model and engine: the same types for the same roles, at the same relative depth.

A tensor of the new model takes the type of the tensor with the same name in the old one.  If the models have different
numbers of layers, the first, the last and all layers between are matched in proportion, among the layers that have such
a tensor.  An impossible type is replaced by the nearest one in bits per weight and kind, and every replacement is
reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from gguftool.analysis.recipe_compact import compact
from gguftool.cooking.damage.typical import typical_error
from gguftool.cooking.offers import Pool, why_not
from gguftool.errors import PlanError, joined_problems, listed, printable
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.fallback import keeps_type, rows_fallback
from gguftool.format.engine_facts.types import type_facts_of
from gguftool.format.ftypes import no_such_type
from gguftool.format.ggml import TYPES, TypeTraits, find_type, nbytes, type_alias, type_name
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.recipe import Recipe
from gguftool.model.hparams import text as text_of
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, as_model
from gguftool.model.roles import Place, Role, tensor_places
from gguftool.model.scales import owner_of
from gguftool.record import record
from gguftool.storage.sources.locate import base_name

_OTHER_KIND = 0.05  # the distance of another kind, as a difference of log2 of bits per weight
_OTHER_ROWS = 0.05  # likewise rows that are packed together, or not
_SHOWN = 4
_USUAL_KINDS = frozenset({"float", "legacy", "k", "i", "trellis"})  # others are for models that were trained for them
# Roles that stand in for each other if a model lacks one.
_FAMILIES = (
    frozenset({Role.DENSE_FFN, Role.ROUTED_EXPERTS, Role.SHARED_EXPERTS}),
    frozenset({Role.ATTENTION, Role.RECURRENT}),
    frozenset({Role.EMBEDDING, Role.OUTPUT}),
)
_Stem = tuple[str, str]  # the stack of layers and the base, or no stack and the whole name


@record
class TransferOptions:
    """`engine`: the engine to follow; `substitutes`: pairs of types, the second instead of the first.

    `avoid`: types that are slow there; `cuda`: it runs on CUDA, where some types of ik_llama.cpp have no fast kernel;
    `imatrix`: one will be given to quantize.
    """

    engine: str = LLAMA_CPP
    substitutes: tuple[tuple[str, str], ...] = ()
    avoid: tuple[str, ...] = ()
    cuda: bool = False
    imatrix: bool = True


@record
class Substitution:
    """`tensors` of the new model get `given` instead of `wanted`, and the reason."""

    wanted: str
    given: str
    reason: str
    tensors: tuple[str, ...]


@record
class Side:
    """One of the two models in the mix; bytes are those of tensor data."""

    model: str
    nbytes: int
    elements: int

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of all tensors."""
        return self.nbytes * 8 / self.elements if self.elements else 0.0


@record
class Transfer:
    """The mix of `old` as a `recipe` for `new`; `matched`: tensors that only the new model has, and their counterparts.

    `matched` has pairs of names without layers, such as (``ffn_up_exps.weight``, ``ffn_up.weight``).
    """

    recipe: Recipe
    old: Side
    new: Side
    substitutions: tuple[Substitution, ...]
    matched: tuple[tuple[str, str], ...]


def transfer_recipe(model: ModelLike, target: ModelLike, options: TransferOptions | None = None) -> Transfer:
    """The mix of `model` as a recipe for `target`, with a rule for every tensor except scales.

    Raises as `open_model` does, and `PlanError` for unknown types, a model without layers of weights to take types
    from, or a tensor that cannot have any type of the engine.
    """
    options = options or TransferOptions()
    old, new = as_model(model), as_model(target)
    _check(options)
    depth, chooser = _Depths(old, new), _Chooser(options, "bitnet" in text_of(new, ARCHITECTURE_KEY))
    types: dict[str, str] = {}
    for name, tensor in new.tensors.items():
        if owner_of(new.tensors, name) is not None:
            continue  # it goes with its weight
        if _is_kept(tensor, options.engine):
            types[name] = type_alias(tensor.info.type)
        else:
            types[name] = chooser.given(tensor, depth.type_for(name))
    if not types:
        raise PlanError("has no tensors to give types to", source=new.name)
    recipe = compact(types, new.name)
    return Transfer(
        recipe=recipe,
        old=_side(old, {}),
        new=_side(new, types),
        substitutions=chooser.substitutions,
        matched=depth.matched,
    )


def transfer_words(transfer: Transfer) -> tuple[str, ...]:
    """Lines that describe a transfer: both sizes, counterparts of tensors, and each replacement."""
    sides = (
        f"{printable(base_name(side.model) or side.model, 200)}: {side.nbytes:,} bytes, "
        f"{side.bits_per_weight:.4g} bits per weight"
        for side in (transfer.old, transfer.new)
    )
    return (
        "; by this recipe ".join(sides),
        *(
            f"{printable(one)} is only there; it takes the types of {printable(other)}"
            for one, other in transfer.matched
        ),
        *(f"{one.wanted} becomes {one.given} in {_count(one.tensors)}: {one.reason}" for one in transfer.substitutions),
    )


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} tensors ({listed(list(names), _SHOWN)})" if len(names) > 1 else printable(names[0])


def _check(options: TransferOptions) -> None:
    names = (*(text for pair in options.substitutes for text in pair), *options.avoid)
    unknown = [no_such_type(text) for text in names if find_type(text) is None]
    if unknown:
        raise PlanError(joined_problems(unknown))


def _is_kept(tensor: Tensor, engine: str) -> bool:
    kind = type_name(tensor.info.type)
    return not tensor.info.elements or keeps_type(tensor.info.name, tensor.info.dims, kind, engine)


def _side(model: Model, types: Mapping[str, str]) -> Side:
    size = 0
    for name, tensor in model.tensors.items():
        traits = find_type(types.get(name, ""))
        made = None if traits is None else nbytes(traits.id, tensor.info.dims)
        size += tensor.nbytes if made is None else made
    return Side(model=model.name, nbytes=size, elements=sum(one.info.elements for one in model.tensors.values()))


# --- which tensor of the old model corresponds to one of the new ------------------------------------------------------


class _Depths:
    """Finds the tensor of the old model that corresponds to one of the new: by name, then by layers in proportion."""

    def __init__(self, old: Model, new: Model) -> None:
        self._old = {name: tensor for name, tensor in old.tensors.items() if _is_choice(tensor)}
        if not self._old:
            raise PlanError("has no weights of a known type, so no mix can be taken from it", source=old.name)
        self._old_places, self._new_places = tensor_places(self._old), tensor_places(new.tensors)
        self._layers = _layers(self._old_places)
        self._new_layers = _layers(self._new_places)
        self._roles = {_stem(name, place): place.role for name, place in self._old_places.items()}
        self._matched: dict[str, str] = {}

    @property
    def matched(self) -> tuple[tuple[str, str], ...]:
        """Names that only the new model has, and their counterparts in the old one."""
        return tuple(self._matched.items())

    def type_for(self, name: str) -> TypeTraits:
        """The type that the mix has at the place of tensor `name` of the new model."""
        place = self._new_places[name]
        stem = _stem(name, place)
        like = stem if stem in self._layers else self._alike(stem, place)
        if like != stem:
            self._matched.setdefault(stem[1], like[1])
        here, there = self._new_layers[stem], self._layers[like]
        at = 0 if place.layer is None or len(here) < 2 else here.index(place.layer) * (len(there) - 1) / (len(here) - 1)
        layer = there[min(round(at), len(there) - 1)]
        return TYPES[self._old[_name(like, layer)].info.type]

    def _alike(self, stem: _Stem, place: Place) -> _Stem:
        """The stem of the old model that is most like `stem`: of its role, else of a similar role, else of any."""
        family = next((roles for roles in _FAMILIES if place.role in roles), frozenset({place.role}))
        for roles in (frozenset({place.role}), family, frozenset(Role)):
            found = [other for other, role in self._roles.items() if role in roles]
            if found:
                return max(found, key=lambda other: SequenceMatcher(None, other[1], stem[1]).ratio())
        raise LookupError(stem)


def _is_choice(tensor: Tensor) -> bool:
    info = tensor.info
    return info.type in TYPES and bool(info.elements) and not keeps_type(info.name, info.dims, type_name(info.type))


def _stem(name: str, place: Place) -> _Stem:
    if place.layer is None:
        return "", name
    return place.stack, name.removeprefix(f"{place.stack}.").partition(".")[2]


def _name(stem: _Stem, layer: int) -> str:
    return f"{stem[0]}.{layer}.{stem[1]}" if stem[0] else stem[1]


def _layers(places: Mapping[str, Place]) -> dict[_Stem, list[int]]:
    """The layers that have a tensor of each stem, in order; [0] for tensors outside layers."""
    found: dict[_Stem, list[int]] = {}
    for name, place in places.items():
        found.setdefault(_stem(name, place), []).append(place.layer or 0)
    return {stem: sorted(layers) for stem, layers in found.items()}


# --- which type replaces another --------------------------------------------------------------------------------------


class _Chooser:
    """Gives a tensor the wanted type, or the nearest possible one, and records the difference."""

    def __init__(self, options: TransferOptions, bitnet: bool) -> None:
        self._options, self._bitnet = options, bitnet
        self._pool = Pool(engine=options.engine, imatrix=options.imatrix)
        self._substitutes = {_alias(one): _alias(other) for one, other in options.substitutes}
        self._avoid = frozenset(map(_alias, options.avoid))
        self._found: dict[tuple[str, str, str], list[str]] = {}

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        """All replacements, in the order in which they occurred."""
        return tuple(
            Substitution(wanted=wanted, given=given, reason=reason, tensors=tuple(names))
            for (wanted, given, reason), names in self._found.items()
        )

    def given(self, tensor: Tensor, wanted: TypeTraits) -> str:
        """The type that `tensor` gets if the mix has `wanted`."""
        name, dims = tensor.info.name, tensor.info.dims
        told = self._substitutes.get(wanted.alias)
        first, reason = (wanted.alias, "") if told is None else (told, "by --substitute")
        why = self._why_not(name, dims, first)
        given = first if why is None else self._nearest(name, dims, first)
        if given != wanted.alias:
            self._found.setdefault((wanted.alias, given, why or reason), []).append(name)
        return given

    def _why_not(self, name: str, dims: tuple[int, ...], alias: str) -> str | None:
        why = why_not(name, dims, alias, self._pool, bitnet=self._bitnet)
        if why is None and alias in self._avoid:
            return "it is slow there, by --avoid"
        facts = type_facts_of(alias)
        if why is None and self._options.cuda and self._options.engine == IK_LLAMA_CPP and facts is not None:
            if not facts.cuda:
                return f"{IK_LLAMA_CPP} does not multiply with it on CUDA"
            if not facts.mmq:
                return f"{IK_LLAMA_CPP} has no fast kernel for it on CUDA"
        return why

    def _nearest(self, name: str, dims: tuple[int, ...], alias: str) -> str:
        wanted = find_type(alias)
        kinds = {*_USUAL_KINDS, *(() if wanted is None else (wanted.kind,))}
        fits = [
            traits
            for traits in TYPES.values()
            if traits.in_files and traits.kind in kinds and self._why_not(name, dims, traits.alias) is None
        ]
        if wanted is None or not fits:
            raise PlanError(f"'{printable(name)}' cannot have any type of {self._options.engine}")
        return min(fits, key=lambda traits: _distance(wanted, traits)).alias


def _alias(text: str) -> str:
    traits = find_type(text)
    return text if traits is None else traits.alias


def _distance(wanted: TypeTraits, other: TypeTraits) -> tuple[float, float]:
    """The distance of a type from the wanted one; then the better of equally near ones; nearest is the same type in
    other rows.
    """
    if other.name == rows_fallback(wanted.name) or wanted.name == rows_fallback(other.name):
        return -1.0, 0.0
    bits = abs(math.log2(other.bits_per_weight / wanted.bits_per_weight))
    rows = (other.interleaved_rows > 1) != (wanted.interleaved_rows > 1)
    far = bits + _OTHER_KIND * (other.kind != wanted.kind) + _OTHER_ROWS * rows
    return round(far, 6), typical_error(other.name)
