"""The options of `plan`, and its result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gguftool.cooking.damage.evidence import InputFile
from gguftool.cooking.devices import Context, Device
from gguftool.cooking.items import UP_GATE
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.recipe import Recipe
from gguftool.record import record


@record
class Target:
    """The goal, one of: `size` of the whole file, `bits` per weight, `tensor_bytes` of all tensors' data, or
    `most_damage` in nats, as fast as possible.  Budgets of devices are in `MixOptions.devices`.

    Raises `ValueError` if bits or damage are not a finite number.
    """

    size: int | None = None
    bits: float | None = None
    tensor_bytes: int | None = None
    most_damage: float | None = None

    def __post_init__(self) -> None:
        for what, value in (("bits per weight", self.bits), ("damage", self.most_damage)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{value:g} {what}: expected a finite number, such as 4.5 bits or a damage of 0.02")

    @property
    def in_words(self) -> str:
        """The target in words; empty if there is none."""
        if self.size is not None:
            return f"{self.size:,} bytes"
        if self.bits is not None:
            return f"{self.bits:g} bits per weight"
        if self.tensor_bytes is not None:
            return f"{self.tensor_bytes:,} bytes of tensors"
        return "" if self.most_damage is None else f"a damage of at most {self.most_damage:g}"


@record
class Slow:
    """A type on a device takes `factor` times as long for each byte; "*" stands for any."""

    type: str
    device: str
    factor: float


@record
class MixOptions:
    """Demands on a mix.  `locks`, `floors` and `ceilings` are ``REGEX=TYPE`` texts; `types` empty for the engine's own.

    `imatrix`: the mix will be quantized with one.  `fuse`: which tensors get one type together (`items.FUSED`).
    `compare`: other recipes, by name.  `start`: a recipe to improve on, by name: its types are on offer, and without a
    target its size is the budget.  `made_by`: the program and its version, for the recipe's header.
    """

    target: Target
    devices: tuple[Device, ...] = ()
    engine: str = LLAMA_CPP
    types: tuple[str, ...] = ()
    imatrix: bool = True
    fuse: tuple[str, ...] = (UP_GATE,)
    locks: tuple[str, ...] = ()
    floors: tuple[str, ...] = ()
    ceilings: tuple[str, ...] = ()
    max_types: int | None = None
    slow: tuple[Slow, ...] = ()
    context: Context = Context()
    compare: tuple[tuple[str, Recipe], ...] = ()
    start: tuple[str, Recipe] | None = None
    made_by: str = "gguftool"


@record
class MixTensor:
    """One tensor of the mix; `chosen` is false for a tensor that stays as it is, which has a `damage` of 0."""

    name: str
    type: str
    nbytes: int
    elements: int
    damage: float
    device: str
    chosen: bool


@record
class DeviceUse:
    """A device: `size` bytes; `kv_cache` and `compute` are not for weights; `weights` are planned, `free` is left."""

    name: str
    size: int
    kv_cache: int
    compute: int
    weights: int
    free: int
    tensors: int


@record
class Rival:
    """Another mix; `planned` is the damage of a plan of the same size, None if there cannot be one."""

    name: str
    nbytes: int
    bits_per_weight: float
    damage: float
    planned: float | None


@record
class CurvePoint:
    """The least damage that a size of all tensors allows."""

    nbytes: int
    bits_per_weight: float
    damage: float


@record
class TypeUse:
    """The share of a type in the mix, among tensors that a type was chosen for."""

    type: str
    tensors: int
    nbytes: int
    elements: int


@record
class Mix:
    """The plan.  Bytes are those of tensor data.

    `unit` of all damages: "KLD" in nats, "ln PPL", or None if nothing was measured: then they only order mixes.
    `low` and `high`: nine in ten mixes with such evidence are between them; None without a unit.  `gap`: the best mix
    could be better by at most this fraction of the loss (damage, or with a target of damage the bytes read for a
    token).  `basis` describes the basis of the choice.  `read_bytes`: the bytes that a token reads; slow types count
    for more.  `arguments`: engine arguments that place tensors as planned.
    """

    model: str
    engine: str
    target: str
    basis: str
    unit: str | None
    nbytes: int
    elements: int
    bits_per_weight: float
    damage: float
    low: float | None
    high: float | None
    gap: float
    read_bytes: float
    types: tuple[TypeUse, ...]
    devices: tuple[DeviceUse, ...]
    rivals: tuple[Rival, ...]
    curve: tuple[CurvePoint, ...]
    arguments: str
    tensors: tuple[MixTensor, ...]
    inputs: tuple[InputFile, ...]
    remarks: tuple[str, ...]
    recipe: str
    made_by: str


def nats_of_ratio(ratio: float) -> float:
    """The damage that a ratio of perplexities stands for; raises `ValueError` for one that is not above 1."""
    if not ratio > 1 or not math.isfinite(ratio):
        raise ValueError(f"{ratio:g} is not a ratio of perplexities to allow: give one above 1, such as 1.02")
    return math.log(ratio)


def type_uses(tensors: Sequence[MixTensor]) -> tuple[TypeUse, ...]:
    """The share of each type in a mix, most bytes first."""
    by_type: dict[str, list[MixTensor]] = {}
    for tensor in tensors:
        if tensor.chosen:
            by_type.setdefault(tensor.type, []).append(tensor)
    uses = (
        TypeUse(
            type=text,
            tensors=len(members),
            nbytes=sum(member.nbytes for member in members),
            elements=sum(member.elements for member in members),
        )
        for text, members in by_type.items()
    )
    return tuple(sorted(uses, key=lambda use: -use.nbytes))
