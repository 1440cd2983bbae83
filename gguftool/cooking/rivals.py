"""Other mixes of the same model, rated by the same model of damage: presets, recipes, the curve of best mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from gguftool.cooking.damage.model import Levels
from gguftool.cooking.offers import Offer, is_common
from gguftool.errors import PlanError
from gguftool.format.engine_facts.presets.names import presets_of
from gguftool.format.engine_facts.types import written_type
from gguftool.format.ggml import find_type, nbytes, type_alias
from gguftool.format.recipe import Recipe
from gguftool.model.model import Model
from gguftool.model.preset import PresetMix, preset_types
from gguftool.record import record

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Presets to use if nothing was measured: mixes that people use, from small to large.
FAMILY: Final = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")
_SHOWN: Final = 48  # points of a curve


@record
class Priced:
    """A mix: the type of each tensor with a choice, the bytes of all tensors, and its damage."""

    name: str
    types: Mapping[str, str]
    nbytes: int
    damage: float


class Scale:
    """Computes bytes and damage of any assignment of types to the tensors of `offers`."""

    def __init__(self, offers: Sequence[Offer], levels: Levels, engine: str) -> None:
        self._engine, self._levels = engine, levels
        self.chosen: tuple[Offer, ...] = tuple(offer for offer in offers if offer.choice)
        self.fixed: int = sum(offer.nbytes[0] for offer in offers if not offer.choice)
        self._columns: dict[str, NDArray[Any]] = {}

    def damages(self, type_text: str) -> NDArray[Any]:
        """The damage of every tensor with a choice, at one type; 0 if that is the tensor's own type."""
        import numpy as np

        if type_text not in self._columns:
            own = np.array([offer.own == type_text for offer in self.chosen], dtype=bool)
            self._columns[type_text] = np.where(own, 0.0, self._levels.damage(type_text))
        return self._columns[type_text]

    def price(self, name: str, types: Mapping[str, str]) -> Priced:
        """Price a mix; tensors not in `types` stay as they are, types that do not fit fall back as in the engine."""
        made = {offer.name: _made(offer, types.get(offer.name), self._engine) for offer in self.chosen}
        size = self.fixed + sum(_size(offer, made[offer.name]) for offer in self.chosen)
        damage = sum(float(self.damages(made[offer.name])[at]) for at, offer in enumerate(self.chosen))
        return Priced(name=name, types=made, nbytes=size, damage=damage)


def mix_bytes(types: Mapping[str, str], offers: Sequence[Offer], engine: str) -> int:
    """The bytes of all tensors in a mix, as `Scale.price` counts them."""
    chosen = (offer for offer in offers if offer.choice)
    made = sum(_size(offer, _made(offer, types.get(offer.name), engine)) for offer in chosen)
    return made + sum(offer.nbytes[0] for offer in offers if not offer.choice)


def _made(offer: Offer, wanted: str | None, engine: str) -> str:
    """The type that a tensor gets if a mix wants `wanted`."""
    if wanted is None:
        return offer.own or offer.types[-1]
    traits = find_type(wanted)
    if traits is None or traits.alias in offer.types or nbytes(traits.id, offer.dims) is not None:
        return wanted if traits is None else traits.alias
    try:
        written = find_type(written_type(traits.name, offer.dims[0], engine))
    except LookupError:
        written = None
    return offer.types[-1] if written is None else written.alias


def _size(offer: Offer, type_text: str) -> int:
    if type_text in offer.types:
        return offer.nbytes[offer.types.index(type_text)]
    traits = find_type(type_text)
    size = None if traits is None else nbytes(traits.id, offer.dims)
    return offer.nbytes[-1] if size is None else size


def preset_mixes(model: Model, engine: str, *, imatrix: bool) -> dict[str, dict[str, str]]:
    """The types that each preset of `engine` asks for, by the preset's name; without presets that it cannot make."""
    mixes = {}
    for name, preset in presets_of(engine).items():
        traits = find_type(preset.tensor_type)
        if traits is None or not is_common(traits):
            continue
        try:
            mixes[name] = preset_types(model, PresetMix(preset=preset, imatrix=imatrix), (), engine)
        except PlanError:
            continue
    return mixes


def nearest_preset(mixes: Mapping[str, Mapping[str, str]], sizes: Mapping[str, int], nbytes_wanted: int) -> str | None:
    """The preset of the usual family with the size nearest to the wanted one."""
    family = [name for name in FAMILY if name in mixes]
    return min(family, key=lambda name: abs(sizes[name] - nbytes_wanted), default=None)


def recipe_types(recipe: Recipe, offers: Sequence[Offer]) -> dict[str, str]:
    """The types that a recipe asks for; tensors without a rule, or with a label in place of a type, are left out."""
    assigned = recipe.assign([offer.name for offer in offers if offer.choice])
    return {
        name: type_alias(rule.type_id)
        for name, rule in assigned.items()
        if rule is not None and rule.type_id is not None
    }


def thinned(corners: Sequence[tuple[float, float]], fixed: int) -> tuple[tuple[int, float], ...]:
    """At most `_SHOWN` corners of a frontier, evenly spread, with the `fixed` bytes added."""
    if not corners:
        return ()
    step = max(1, -(-len(corners) // _SHOWN))
    kept = [*corners[::step]]
    if kept[-1] != corners[-1]:
        kept.append(corners[-1])
    return tuple((fixed + round(weight), loss) for weight, loss in kept)
