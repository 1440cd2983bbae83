"""The types that each tensor of the mix can have, and the bytes of each: from a model to quantize, or from quants.

A model to quantize offers the types of a pool, as far as the engine runs them on that tensor: whole blocks in a row,
rows that divide by the interleave, embeddings that can be looked up, no type that needs an imatrix without one.  A
tensor that llama-quantize does not change has one offer: its own type.  Several ready-made quants, or their
tensors.maps, offer the types that they have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from gguftool.cooking.damage.typical import typical_error
from gguftool.errors import Notes
from gguftool.format.engine_facts.embeddings import EMBEDDINGS, OUTPUT, TOKEN_EMBD, may_lack_imatrix
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.format.engine_facts.fallback import keeps_type
from gguftool.format.engine_facts.types import ImatrixPolicy, type_facts_of, written_type
from gguftool.format.ggml import TYPES, TypeTraits, find_type, nbytes, type_alias, type_name
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.tensors_map import MapEntry
from gguftool.model.hparams import text as text_of
from gguftool.model.model import Model
from gguftool.model.scales import owner_of
from gguftool.record import record

_KINDS = frozenset({"legacy", "k", "i", "trellis"})  # kinds of types in a default pool
_HOPELESS = 0.3  # a relative squared error that only models trained for the type tolerate
_NEEDS = frozenset({ImatrixPolicy.YES, ImatrixPolicy.ASSERTED})


@record
class Offer:
    """One tensor: `types` in the recipe's spelling, with the bytes of each.  `own` is the type without damage.

    `choice` is false for a tensor that is taken as it is: its bytes count, but no rule is written for it.
    """

    name: str
    dims: tuple[int, ...]
    types: tuple[str, ...]
    nbytes: tuple[int, ...]
    own: str | None = None
    choice: bool = True

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.dims)


@record
class Pool:
    """The types that may be made: `types`, empty for the engine's own; `imatrix`: one will be given."""

    engine: str
    types: tuple[str, ...] = ()
    imatrix: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The types, those with the fewest bits first."""
        return self.types or default_types(self.engine)


def default_types(engine: str) -> tuple[str, ...]:
    """All quantized types of `engine` for any model, without those that only rearrange the rows of another type."""
    found = [traits for traits in TYPES.values() if engine in traits.engines and is_common(traits)]
    return tuple(traits.alias for traits in sorted(found, key=lambda traits: traits.bits_per_weight))


def is_common(traits: TypeTraits) -> bool:
    """Whether a type is for weights of any model, and does not only rearrange the rows of another type."""
    common = traits.kind in _KINDS and traits.in_files and traits.interleaved_rows == 1
    return common and typical_error(traits.name) < _HOPELESS


def offer_types(name: str, dims: tuple[int, ...], types: Iterable[str], *, check_widths: bool = True) -> Offer:
    """An offer of `types` for a tensor; with `check_widths` off, rows count as if they were whole blocks.

    Raises `ValueError` for an unknown type, or for rows that are not whole blocks of a type.
    """
    found = {}
    for text in types:
        traits = find_type(text)
        size = None if traits is None else nbytes(traits.id, dims)
        if traits is not None and size is None and not check_widths:
            rows = math.prod(dims[1:])
            size = -(-math.prod(dims) * traits.type_size // traits.block_size) + rows * traits.row_meta_size
        if traits is None or size is None:
            raise ValueError(f"{name}: rows of {dims[0]:,} cannot have the type {text}")
        found[traits.alias] = size
    return Offer(name=name, dims=dims, types=tuple(found), nbytes=tuple(found.values()))


# --- a model to quantize ---------------------------------------------------------------------------------------------


def offers_of_source(model: Model, pool: Pool, extra: Mapping[str, Sequence[str]], notes: Notes) -> tuple[Offer, ...]:
    """The offers of every tensor of `model`; `extra` names types to offer in addition to the pool (locks, presets)."""
    bitnet = "bitnet" in text_of(model, ARCHITECTURE_KEY)
    offers = []
    for name, tensor in model.tensors.items():
        own = type_alias(tensor.info.type)
        as_is = Offer(name=name, dims=tensor.info.dims, types=(own,), nbytes=(tensor.nbytes,), own=own, choice=False)
        if (
            keeps_type(name, tensor.info.dims, type_name(tensor.info.type), pool.engine)
            or owner_of(model.tensors, name) is not None
            or not tensor.info.elements
            or tensor.info.type not in TYPES
        ):
            offers.append(as_is)
            continue
        wanted = [*pool.names, *extra.get(name, ())]
        types = {text for text in wanted if why_not(name, tensor.info.dims, text, pool, bitnet=bitnet) is None}
        if not types:
            types = _fallbacks(name, tensor.info.dims, wanted, pool, bitnet=bitnet)
            reason = f"no type of the pool fits; offered instead: {', '.join(sorted(types)) or 'nothing'}"
            notes.remark(reason, name)
        if not types:
            offers.append(as_is)
            continue
        found = offer_types(name, tensor.info.dims, sorted(types))
        offers.append(Offer(name=name, dims=found.dims, types=found.types, nbytes=found.nbytes, own=own))
    return tuple(offers)


def _fallbacks(name: str, dims: tuple[int, ...], wanted: Iterable[str], pool: Pool, *, bitnet: bool) -> set[str]:
    """The types that llama-quantize would write instead of the pool's, none of which fits."""
    written = (written_type(text, dims[0], pool.engine) for text in wanted if type_facts_of(text) is not None)
    found = (traits for traits in map(find_type, written) if traits is not None)
    return {traits.alias for traits in found if why_not(name, dims, traits.name, pool, bitnet=bitnet) is None}


def why_not(name: str, dims: tuple[int, ...], type_text: str, pool: Pool, *, bitnet: bool = False) -> str | None:
    """Why a tensor cannot have a type in the engine of `pool`; None if it can."""
    traits = find_type(type_text)
    if traits is None:
        return f"'{type_text}' is not a type"
    facts = type_facts_of(traits.name)
    rows = dims[1] if len(dims) > 1 else 1
    embedded = name in EMBEDDINGS
    if pool.engine not in traits.engines or not traits.in_files:
        return f"{pool.engine} has no {traits.alias}"
    if traits.kind == "integer" or traits.name in ("F64", "I2_S"):
        return f"engines cannot multiply with {traits.alias}"
    if traits.kind == "ternary" and not bitnet:
        return f"{traits.alias} is for ternary weights, and this is not a BitNet"
    if dims[0] % traits.block_size:
        return f"rows of {dims[0]:,} are not whole blocks of {traits.alias}"
    if traits.interleaved_rows > 1 and (embedded or rows % traits.interleaved_rows):
        return f"{traits.alias} packs {traits.interleaved_rows} rows together"
    if facts is not None and pool.engine == IK_LLAMA_CPP:
        if embedded and IK_LLAMA_CPP in facts.no_token_embd:
            return f"embeddings cannot be looked up in {traits.alias}"
        if (not embedded or name == TOKEN_EMBD) and _misses_kernel(
            traits, dims[0], rows, facts.kernel_ne0, facts.kernel_ne1
        ):
            return f"the kernel of {traits.alias} takes rows of {facts.kernel_ne0} by {facts.kernel_ne1}"
    wants = facts is not None and facts.imatrix_policy(pool.engine) in _NEEDS
    if wants and not pool.imatrix and not may_lack_imatrix(name, pool.engine):
        return f"{traits.alias} needs an imatrix"
    return None


def _misses_kernel(traits: TypeTraits, ne0: int, rows: int, kernel_ne0: int, kernel_ne1: int) -> bool:
    packed = traits.is_quantized or traits.interleaved_rows > 1
    return packed and bool(ne0 % kernel_ne0 or rows % kernel_ne1)


# --- ready-made quants -----------------------------------------------------------------------------------------------


@record
class ReadyMade:
    """The tensors of one quant: name to dims, type and bytes."""

    name: str
    tensors: Mapping[str, tuple[tuple[int, ...], str, int]]

    @property
    def types(self) -> dict[str, str]:
        """The type of each tensor."""
        return {name: qtype for name, (_, qtype, _) in self.tensors.items()}


def ready_model(model: Model) -> ReadyMade:
    """The tensors of a model."""
    return ReadyMade(
        name=model.name,
        tensors={
            name: (tensor.info.dims, type_alias(tensor.info.type), tensor.nbytes)
            for name, tensor in model.tensors.items()
        },
    )


def ready_map(name: str, entries: Sequence[MapEntry]) -> ReadyMade:
    """The tensors in a tensors.map; bytes follow from the type, because published maps leave out row metadata."""
    found = {}
    for entry in entries:
        size = None if entry.type_id is None else nbytes(entry.type_id, entry.shape)
        spelled = entry.dtype if entry.type_id is None else type_alias(entry.type_id)
        found[entry.tensor] = (entry.shape, spelled, entry.nbytes if size is None else size)
    return ReadyMade(name=name, tensors=found)


def offers_of_ready(
    quants: Sequence[ReadyMade], allowed: Sequence[str], engine: str, notes: Notes
) -> tuple[Offer, ...]:
    """The offers of every tensor in `quants`: the types that they have, or those of them that are `allowed`.

    Different shapes are a problem in `notes`; types that `engine` lacks are left out.
    """
    found: dict[str, dict[str, int]] = {}
    dims_of: dict[str, tuple[int, ...]] = {}
    for quant in quants:
        for name, (dims, qtype, size) in quant.tensors.items():
            if _shape(dims_of.setdefault(name, dims)) != _shape(dims):
                notes.problem(f"{quant.name} has another shape", name)
                continue
            found.setdefault(name, {})[qtype] = size
    return tuple(_ready_offer(name, dims_of[name], types, allowed, engine, notes) for name, types in found.items())


def _ready_offer(
    name: str, dims: tuple[int, ...], types: Mapping[str, int], allowed: Sequence[str], engine: str, notes: Notes
) -> Offer:
    runs = {text: size for text, size in types.items() if why_not(name, dims, text, Pool(engine=engine)) is None}
    if not runs:
        runs = dict(types)
        notes.remark(f"{engine} may not run the available types ({', '.join(types)})", name)
    if len(runs) == 1 or keeps_type(name, dims, "", engine):
        text, size = min(runs.items(), key=lambda item: item[1])
        return Offer(name=name, dims=dims, types=(text,), nbytes=(size,), choice=False)
    wanted = {text: size for text, size in runs.items() if not allowed or text in allowed} or runs
    ordered = sorted(wanted, key=lambda text: wanted[text])
    return Offer(name=name, dims=dims, types=tuple(ordered), nbytes=tuple(wanted[text] for text in ordered))


def _shape(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Dims without trailing ones."""
    while len(dims) > 1 and dims[-1] == 1:
        dims = dims[:-1]
    return dims


def used_share(name: str, names: Mapping[str, object], experts: int, used: int) -> float:
    """The share of a tensor that one token uses: the experts in use, and next to nothing of the embedding."""
    if "_exps" in name and experts:
        return min(1.0, used / experts)
    return 0.0 if name in EMBEDDINGS and OUTPUT in names else 1.0
