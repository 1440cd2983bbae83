"""A plan and the numbers it was chosen from, so that it can be chosen again with other budgets: `plan --html`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gguftool.cooking.damage.levels import LevelSource
from gguftool.cooking.inputs import Offers
from gguftool.cooking.items import Item
from gguftool.cooking.mix import Mix, MixOptions
from gguftool.cooking.offers import Offer
from gguftool.cooking.rivals import Scale
from gguftool.cooking.solving.choosing import Choice, Table
from gguftool.record import record

Rows = tuple[tuple[float, ...], ...]


@record
class LevelTable:
    """The damage of each tensor to choose for, at each type on offer, in their order.

    `preset` and `nbytes`: a budget near this size uses the levels of this preset; None if the table is for all budgets.
    """

    preset: str | None
    nbytes: int
    damage: Rows


@record
class Exploration:
    """The plan `mix`, and the problem that it solves: items, their numbers, and the bytes left for them by device."""

    mix: Mix
    offered: Offers
    options: MixOptions
    items: tuple[Item, ...]
    table: Table
    choice: Choice
    budgets: Mapping[str, int]
    source: LevelSource

    @property
    def chosen(self) -> tuple[Offer, ...]:
        """The offers that leave a choice."""
        return tuple(offer for offer in self.offered.offers if offer.choice)

    def level_tables(self) -> tuple[LevelTable, ...]:
        """The damage by tensor and type: one table, or if nothing was measured, one for each preset to use."""
        source = self.source
        if not source.evidence.says_nothing:
            levels, _ = source.choose(0)
            return (self._level_table(Scale(self.offered.offers, levels, source.engine), None, 0),)
        presets: list[tuple[str | None, int]] = [*source.preset_sizes().items()]
        return tuple(
            self._level_table(Scale(self.offered.offers, source.preset_levels(name), source.engine), name, size)
            for name, size in presets or [(None, 0)]
        )

    def _level_table(self, scale: Scale, preset: str | None, size: int) -> LevelTable:
        types = dict.fromkeys(text for offer in scale.chosen for text in offer.types)
        columns = {text: scale.damages(text).tolist() for text in types}
        rows = tuple(tuple(columns[text][at] for text in offer.types) for at, offer in enumerate(scale.chosen))
        return LevelTable(preset=preset, nbytes=size, damage=rows)


def added(numbers: Iterable[float]) -> float:
    """The sum from front to back, as the page adds; Python's own `sum` compensates from 3.12 on."""
    total = 0.0
    for number in numbers:
        total += number
    return total
