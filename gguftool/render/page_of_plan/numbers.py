"""The numbers that the page's script chooses from, as JSON: rows that many tensors share are written once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gguftool import __version__
from gguftool.cooking.exploration import Exploration, LevelTable, added
from gguftool.cooking.items import Item
from gguftool.render.page_of_plan.look import Look


class _Pool:
    """Distinct rows, each with its index."""

    def __init__(self) -> None:
        self._index: dict[tuple[Any, ...], int] = {}

    def put(self, row: Iterable[Any]) -> int:
        return self._index.setdefault(tuple(row), len(self._index))

    @property
    def rows(self) -> list[list[Any]]:
        return [list(row) for row in self._index]


def numbers_json(plan: Exploration, look: Look, words: Mapping[str, Any]) -> str:
    """Write all numbers and `words`, safe inside a script element: no ``<``, no line separators, only ASCII."""
    return json.dumps({**_numbers(plan, look), **words}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _numbers(plan: Exploration, look: Look) -> dict[str, Any]:
    mix, chosen = plan.mix, plan.chosen
    at = {offer.name: index for index, offer in enumerate(chosen)}
    types, sizes, damages, costs = _Pool(), _Pool(), _Pool(), _Pool()
    planned = {tensor.name: tensor.type for tensor in mix.tensors}
    levels = plan.level_tables()
    return {
        "made": f"gguftool {__version__}",
        "engine": mix.engine,
        "unit": mix.unit,
        "types": [[text, look.bits[text], look.inks[text].colour, look.letters[text]] for text in look.types],
        "tensors": [
            [
                offer.name,
                types.put(map(look.index, offer.types)),
                sizes.put(offer.nbytes),
                look.index(planned[offer.name]),
            ]
            for offer in chosen
        ],
        "items": [
            [[at[name] for name in item.tensors], types.put(map(look.index, _offered(plan, item))), device]
            for item, device in zip(plan.items, plan.choice.devices, strict=True)
        ],
        "levels": [
            {"preset": table.preset, "bytes": table.nbytes, "damage": [damages.put(row) for row in table.damage]}
            for table in levels
        ],
        "planned_by": _level_of(plan, levels),
        "cost": _costs(plan, costs),
        "rows": {"types": types.rows, "bytes": sizes.rows, "damage": damages.rows, "cost": costs.rows},
        "budgets": [{"name": name, "spare": total - budget, "size": total} for name, total, budget in look.budgets],
        "devices": [[device.name, device.pattern] for device in plan.options.devices],
        "most": plan.options.target.most_damage,
        "fixed": sum(offer.nbytes[0] for offer in plan.offered.offers if not offer.choice),
        "elements": mix.elements,
        "recipe": _order(plan, at),
        "gap": mix.gap,
    }


def _level_of(plan: Exploration, levels: Sequence[LevelTable]) -> int:
    """Find which of `levels` the plan used: the one that gives its damage."""
    chosen = [tensor for tensor in plan.mix.tensors if tensor.chosen]
    places = [offer.types.index(tensor.type) for offer, tensor in zip(plan.chosen, chosen, strict=True)]
    sums = [added(row[place] for row, place in zip(table.damage, places, strict=True)) for table in levels]
    return min(range(len(levels)), key=lambda at: abs(sums[at] - plan.mix.damage))


def _offered(plan: Exploration, item: Item) -> tuple[str, ...]:
    """List the types of an item; with a limit on distinct types, only those that the plan uses."""
    if plan.options.max_types is None:
        return item.types
    used = {use.type for use in plan.mix.types}
    return tuple(text for text in item.types if text in used)


def _costs(plan: Exploration, pool: _Pool) -> list[int] | None:
    """List the cost of reading each item in each of its types, if the plan minimizes that cost."""
    if plan.options.target.most_damage is None:
        return None
    rows = []
    for at, (item, device) in enumerate(zip(plan.items, plan.choice.devices, strict=True)):
        costs = dict(zip(item.types, plan.table.cost[device][at], strict=True))
        rows.append(pool.put([costs[text] for text in _offered(plan, item)]))
    return rows


def _order(plan: Exploration, at: dict[str, int]) -> list[Any]:
    """List what a recipe has rules for, in order: the index of a tensor, or the name and type of one that stays."""
    if not plan.offered.ready:
        return list(range(len(at)))
    return [at.get(offer.name, [offer.name, offer.types[0]]) for offer in plan.offered.offers]
