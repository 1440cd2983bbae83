"""From items and demands to a choice: which solver, on which part of the problem.

Budgets of devices with fixed rules are independent problems.  If several devices share free tensors, or damage is
limited in addition to sizes, HiGHS solves the whole.  For few distinct types, types are given up one after another,
each time the one that costs least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gguftool.cooking.items import Item
from gguftool.cooking.solving.milp import Limit, solve_milp
from gguftool.cooking.solving.solver import DoesNotFitError, Solution, solve
from gguftool.errors import PlanError
from gguftool.record import record, replace

_TRIED = 6  # types that a step considers giving up: those with the fewest bytes


@record
class Table:
    """The numbers of every item: for each option its damage, its bytes, and the cost of reading it for a token.

    `cost` has a row for each device that an item may be on, by name; "" if devices do not matter.
    """

    damage: tuple[tuple[float, ...], ...]
    nbytes: tuple[tuple[int, ...], ...]
    cost: Mapping[str, tuple[tuple[float, ...], ...]]

    def part(self, indices: Sequence[int]) -> Table:
        """The table of some items."""
        return Table(
            damage=tuple(self.damage[at] for at in indices),
            nbytes=tuple(self.nbytes[at] for at in indices),
            cost={name: tuple(rows[at] for at in indices) for name, rows in self.cost.items()},
        )


@record
class Demands:
    """`budgets`: bytes for items by device name, "" without devices; `most_damage`: then cost is minimized, not damage.

    `free`: the devices that share items without one.
    """

    budgets: Mapping[str, int]
    free: tuple[str, ...] = ()
    most_damage: float | None = None
    max_types: int | None = None


@record
class Choice:
    """For each item the index of its type and the name of its device; `loss` is the damage, or the cost.

    `bound`: no choice meets the demands with less loss.  `unlimited`: the loss with any number of types.
    """

    chosen: tuple[int, ...]
    devices: tuple[str, ...]
    loss: float
    bound: float
    unlimited: float | None = None

    @property
    def gap(self) -> float:
        """The largest fraction of the loss by which the best choice may be better."""
        return max(0.0, self.loss - self.bound) / self.loss if self.loss > 0 else 0.0


def choose(items: Sequence[Item], table: Table, demands: Demands) -> Choice:
    """Choose a type for every item, and a device for those that are free.

    Raises one `PlanError` that names every demand that cannot be met.
    """
    found = _solve(items, table, demands)
    if demands.max_types is None:
        return found
    return _with_few_types(items, table, demands, found)


def _solve(items: Sequence[Item], table: Table, demands: Demands) -> Choice:
    if any(not item.device for item in items) and demands.free:
        return _free(items, table, demands)
    if demands.most_damage is not None:
        return _fastest(items, table, demands)
    return _by_device(items, table, demands.budgets)


def _by_device(items: Sequence[Item], table: Table, budgets: Mapping[str, int]) -> Choice:
    """Minimize damage, each device by itself."""
    chosen = [0] * len(items)
    loss = bound = 0.0
    problems = []
    for device, budget in budgets.items():
        indices = [at for at, item in enumerate(items) if item.device == device]
        part = table.part(indices)
        try:
            found = solve(part.damage, part.nbytes, budget)
        except DoesNotFitError as error:
            problems.append(_too_small(device, int(error.least), budget))
            continue
        for at, option in zip(indices, found.chosen, strict=True):
            chosen[at] = option
        loss, bound = loss + found.loss, bound + found.bound
    if problems:
        raise PlanError("cannot plan", problems=problems)
    devices = tuple(item.device for item in items)
    return Choice(chosen=tuple(chosen), devices=devices, loss=loss, bound=bound)


def _too_small(device: str, least: int, budget: int) -> str:
    where = f"{device}: " if device else ""
    left = f"{budget:,} bytes are left for them"
    if budget < 0:
        left = f"tensors that stay as they are, and reserves, already take {-budget:,} bytes too many"
    return (
        f"{where}the smallest types on offer take {least:,} bytes, and {left}; give {least - budget:,} bytes more, "
        "smaller --types, or rules that put less there"
    )


def _fastest(items: Sequence[Item], table: Table, demands: Demands) -> Choice:
    """Minimize cost with a limit of damage; budgets count only if the answer exceeds them."""
    most = demands.most_damage
    assert most is not None
    cost = _own_cost(items, table)
    try:
        found = solve(cost, table.damage, most)
    except DoesNotFitError as error:
        raise PlanError(_too_strict(error.least, most)) from None
    choice = _choice(items, found)
    over = [name for name, budget in demands.budgets.items() if _used(items, table, choice, name) > budget]
    if not over:
        return choice
    limits = [Limit(weight=table.damage, budget=most)]
    for name, budget in demands.budgets.items():
        on_it = tuple(
            row if item.device == name else (0,) * len(row) for item, row in zip(items, table.nbytes, strict=True)
        )
        limits.append(Limit(weight=on_it, budget=budget))
    try:
        return _choice(items, solve_milp(cost, limits))
    except DoesNotFitError:
        raise PlanError(
            f"no mix has a damage of {most:g} or less within the budgets of {', '.join(over)}: allow more of either"
        ) from None


def _too_strict(least: float, most: float) -> str:
    return (
        f"the best types on offer already do a damage of {least:.4g}, but {most:g} is the limit; offer better --types, "
        "or allow more"
    )


def _own_cost(items: Sequence[Item], table: Table) -> tuple[tuple[float, ...], ...]:
    return tuple(table.cost[item.device][at] for at, item in enumerate(items))


def _choice(items: Sequence[Item], found: Solution) -> Choice:
    devices = tuple(item.device for item in items)
    return Choice(chosen=found.chosen, devices=devices, loss=found.loss, bound=found.bound)


def _used(items: Sequence[Item], table: Table, choice: Choice, device: str) -> int:
    return sum(table.nbytes[at][choice.chosen[at]] for at, item in enumerate(items) if item.device == device)


def _free(items: Sequence[Item], table: Table, demands: Demands) -> Choice:
    """Choose type and device at once: an option is a pair.  Of mixes with equal damage, take the faster one to read."""
    pairs = [
        [(option, device) for device in ((item.device,) if item.device else demands.free) for option in range(len(row))]
        for item, row in zip(items, table.damage, strict=True)
    ]
    damage = _rows(pairs, lambda at, option, _: table.damage[at][option])
    cost = _rows(pairs, lambda at, option, device: table.cost[device][at][option])
    limits = [
        Limit(
            weight=_rows(pairs, lambda at, option, on, name=name: table.nbytes[at][option] * (on == name)),
            budget=budget,
        )
        for name, budget in demands.budgets.items()
    ]
    if demands.most_damage is None:
        loss = _with_tie_break(damage, cost)
    else:
        loss = cost
        limits.insert(0, Limit(weight=damage, budget=demands.most_damage))
    try:
        found = solve_milp(loss, limits)
    except DoesNotFitError:
        rooms = [f"{name} ({size:,} bytes)" for name, size in demands.budgets.items()]
        raise PlanError(
            f"no choice of types fits into {', '.join(rooms)}; give more room, or smaller --types"
        ) from None
    picked = [row[at] for row, at in zip(pairs, found.chosen, strict=True)]
    true_loss = sum(
        row[at] for row, at in zip(damage if demands.most_damage is None else cost, found.chosen, strict=True)
    )
    return Choice(
        chosen=tuple(option for option, _ in picked),
        devices=tuple(device for _, device in picked),
        loss=true_loss,
        bound=min(true_loss, found.bound - (found.loss - true_loss)),
    )


Pairs = list[list[tuple[int, str]]]


def _rows(pairs: Pairs, number: Callable[..., float]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(number(at, *pair) for pair in row) for at, row in enumerate(pairs))


def _with_tie_break(
    damage: Sequence[Sequence[float]], cost: Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], ...]:
    """Damage, plus at most a thousandth of it for the cost of reading."""
    least = sum(min(row) for row in damage)
    most = sum(max(row) for row in cost) or 1.0
    return tuple(
        tuple(loss + 1e-3 * least * price / most for loss, price in zip(losses, prices, strict=True))
        for losses, prices in zip(damage, cost, strict=True)
    )


# --- few distinct types ----------------------------------------------------------------------------------------------


def _with_few_types(items: Sequence[Item], table: Table, demands: Demands, found: Choice) -> Choice:
    """Give up types until `demands.max_types` are left, each time the one that costs least."""
    most, free = demands.max_types, replace(demands, max_types=None)
    assert most is not None
    needed = {item.types[0] for item in items if len(item.types) == 1}
    if len(needed) > most:
        raise PlanError(
            f"--max-types {most}: locks and single offers need {len(needed)} types: {', '.join(sorted(needed))}"
        )
    allowed = {text for item in items for text in item.types}
    best = found
    while len({item.types[option] for item, option in zip(items, best.chosen, strict=True)}) > most:
        used = {item.types[option] for item, option in zip(items, best.chosen, strict=True)}
        allowed &= used  # types that the last choice did not use are not needed
        trials = []
        for text in _least_used(items, best, allowed - needed):
            trial = _without(items, table, allowed - {text})
            if trial is None:
                continue
            try:
                trials.append((text, _remapped(items, trial[0], _solve(*trial, free))))
            except PlanError:
                continue
        if not trials:
            raise PlanError(f"--max-types {most}: {len(allowed)} types are needed to meet the other demands")
        text, best = min(trials, key=lambda pair: pair[1].loss)
        allowed -= {text}
    return replace(best, bound=min(found.bound, best.loss), unlimited=found.loss)


def _least_used(items: Sequence[Item], choice: Choice, types: set[str]) -> list[str]:
    """The `_TRIED` of `types` with the fewest bytes."""
    held = dict.fromkeys(sorted(types), 0)
    for item, option in zip(items, choice.chosen, strict=True):
        if item.types[option] in held:
            held[item.types[option]] += item.nbytes[option]
    return sorted(held, key=lambda text: held[text])[:_TRIED]


def _without(items: Sequence[Item], table: Table, allowed: set[str]) -> tuple[tuple[Item, ...], Table] | None:
    """The items and their numbers with only `allowed` types; None if an item would have none."""
    kept = [[at for at, text in enumerate(item.types) if text in allowed] for item in items]
    if not all(kept):
        return None

    def of(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(row[at] for at in options) for row, options in zip(rows, kept, strict=True))

    smaller = tuple(
        replace(
            item,
            types=tuple(item.types[at] for at in options),
            nbytes=tuple(item.nbytes[at] for at in options),
        )
        for item, options in zip(items, kept, strict=True)
    )
    sizes = tuple(item.nbytes for item in smaller)
    costs = {name: of(rows) for name, rows in table.cost.items()}
    return smaller, Table(damage=of(table.damage), nbytes=sizes, cost=costs)


def _remapped(items: Sequence[Item], smaller: Sequence[Item], choice: Choice) -> Choice:
    """Turn a choice among fewer types into one among all."""
    chosen = tuple(
        item.types.index(few.types[option]) for item, few, option in zip(items, smaller, choice.chosen, strict=True)
    )
    return replace(choice, chosen=chosen)
