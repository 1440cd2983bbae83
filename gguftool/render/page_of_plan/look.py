"""Shared by the numbers and texts of the page: types with their letters and colours, and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase, ascii_uppercase

from gguftool.cooking.exploration import Exploration
from gguftool.format.ggml import find_type
from gguftool.record import record
from gguftool.render.page.palette import Ink, palette

_LETTERS = ascii_uppercase + ascii_lowercase
_NO_LETTER = "#"  # for the types beyond both alphabets


@record
class Look:
    """`types` on offer or in use, fewest bits first.

    `budgets`: the name ("" for the file), the size, and the part of it that is left for choices.
    """

    types: tuple[str, ...]
    bits: Mapping[str, float]
    inks: Mapping[str, Ink]
    letters: Mapping[str, str]
    budgets: tuple[tuple[str, int, int], ...]
    order: Mapping[str, int]

    def index(self, type_text: str) -> int:
        """Find the index of a type in `types`."""
        return self.order[type_text]


def look_of(plan: Exploration) -> Look:
    """Make the look of a plan."""
    found = {text for offer in plan.chosen for text in offer.types}
    found |= {tensor.type for tensor in plan.mix.tensors if tensor.chosen}
    bits = {text: _bits(text) for text in found}
    types = tuple(sorted(bits, key=lambda text: (bits[text], text)))
    return Look(
        types=types,
        bits=bits,
        inks=palette(bits),
        letters={text: _LETTERS[at] if at < len(_LETTERS) else _NO_LETTER for at, text in enumerate(types)},
        budgets=_budgets(plan),
        order={text: at for at, text in enumerate(types)},
    )


def _bits(type_text: str) -> float:
    traits = find_type(type_text)
    return 0.0 if traits is None else traits.bits_per_weight


def _budgets(plan: Exploration) -> tuple[tuple[str, int, int], ...]:
    """List the devices' sizes, or without devices one budget: the size of the file, as `--size` takes it."""
    if plan.mix.devices:
        sizes = {device.name: device.size for device in plan.mix.devices}
        return tuple((name, sizes[name], left) for name, left in plan.budgets.items())
    fixed = sum(offer.nbytes[0] for offer in plan.offered.offers if not offer.choice)
    return tuple((name, left + fixed + plan.offered.head, left) for name, left in plan.budgets.items())
