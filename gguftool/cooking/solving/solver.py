"""Choose one option for every item: least loss within a budget of weight, with a proof of how good the choice is.

The multiple-choice knapsack.  Each item keeps the lower convex hull of its options; the edges of all hulls, sorted by
loss saved per weight, are the linear relaxation, and taking them until the budget is spent solves it.  Its value is the
certified bound: no choice within the budget has less loss.  The budget that the relaxation leaves over is filled by
combining options that are nearly as good (`_refine`). If one large item spoils the bound, each of its options is tried
in turn (branch and bound).

The solver knows neither tensors nor bytes: `--size` minimizes damage under bytes, `--max-kld` bytes read under damage.
Only numpy is needed.

The page of `plan --html` solves the same problem in a browser (`render/page_of_plan/solver.js`), and must make the same
choice for every tensor. So sums run from front to back (`_total`), and sorts are stable: change both or neither.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gguftool.record import record

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST_NODES, _MOST_NODES = 48, 2000  # relaxations tried beyond the first
_EDGES_TRIED = 400_000  # in all of them: small problems are searched to the end
_CORE = 120  # items that `_refine` lets change
_STATES = 1500  # combinations that it keeps
_REFINED_NODES = 4  # nodes that are filled by `_refine`; the others are rounded
_CLOSE = 1e-5  # a relative gap that is not worth closing


@record
class Solution:
    """For each item the index of its option; `bound` is a loss that no choice within the budget can undercut."""

    chosen: tuple[int, ...]
    loss: float
    weight: float
    bound: float

    @property
    def gap(self) -> float:
        """The largest fraction of the loss by which the best choice may be better."""
        return max(0.0, self.loss - self.bound) / self.loss if self.loss > 0 else 0.0


class DoesNotFitError(ValueError):
    """Even the lightest options weigh more than the budget: `least` in all."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the lightest choice weighs {least:,}")
        self.least = least


Rows = Sequence[Sequence[float]]


def solve(loss: Rows, weight: Rows, budget: float) -> Solution:
    """Choose the options with the least sum of `loss` for which the sum of `weight` is at most `budget`.

    One row per item, one number per option, rows of any length; numbers are finite, weights not negative.  Raises
    `DoesNotFitError` if the budget is below the sum of the least weights.
    """
    import numpy as np

    if not loss:
        return Solution(chosen=(), loss=0.0, weight=0.0, bound=0.0)
    problem = _Problem(_padded(loss, 0.0), _padded(weight, np.inf))
    least = float(problem.weight.min(axis=1).sum())
    if least > budget:
        raise DoesNotFitError(least)
    return _branch(problem, budget)


def frontier(loss: Rows, weight: Rows) -> tuple[tuple[float, float], ...]:
    """The corners (weight, loss) of the relaxation for every budget, from the lightest choice on."""
    import numpy as np

    if not loss:
        return ()
    problem = _Problem(_padded(loss, 0.0), _padded(weight, np.inf))
    edges = problem.edges
    weights = problem.base_weight + np.concatenate(([0.0], np.cumsum(edges.weight)))
    losses = problem.base_loss + np.concatenate(([0.0], np.cumsum(edges.loss)))
    return tuple(zip(weights.tolist(), losses.tolist(), strict=True))


def _padded(rows: Rows, filler: float) -> NDArray[Any]:
    import numpy as np

    table = np.full((len(rows), max(map(len, rows))), filler)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return table


# --- the relaxation --------------------------------------------------------------------------------------------------


@record
class _Edges:
    """Steps up the hulls of all items, the best first: what each adds to weight and (negative) to loss."""

    item: NDArray[Any]
    option: NDArray[Any]
    weight: NDArray[Any]
    loss: NDArray[Any]


@record
class _Relaxed:
    """A relaxation: its value, its choice after rounding down, the item that it cuts, and loss per weight there."""

    bound: float
    chosen: NDArray[Any]
    split: int | None
    price: float


class _Problem:
    """The tables, the hulls' edges, and the lightest choice, from which edges lead upwards."""

    def __init__(self, loss: NDArray[Any], weight: NDArray[Any]) -> None:
        import numpy as np

        self.loss, self.weight = loss, weight
        hulls = [_hull(row_w, row_l) for row_w, row_l in zip(weight.tolist(), loss.tolist(), strict=True)]
        self.base = np.array([hull[0] for hull in hulls])
        everyone = np.arange(len(hulls))
        self.base_weight = _total(weight[everyone, self.base])
        self.base_loss = _total(loss[everyone, self.base])
        steps = [(at, low, high) for at, hull in enumerate(hulls) for low, high in pairwise(hull)]
        item, low, high = (
            (np.array(column, dtype=int) for column in zip(*steps, strict=True)) if steps else [_none()] * 3
        )
        more, less = weight[item, high] - weight[item, low], loss[item, high] - loss[item, low]
        order = np.argsort(less / more, kind="stable")
        self.edges = _Edges(item=item[order], option=high[order], weight=more[order], loss=less[order])

    def relax(self, budget: float, fixed: dict[int, int]) -> _Relaxed | None:
        """Solve the relaxation with some items `fixed` to options; None if that does not fit."""
        import numpy as np

        edges, base = self.edges, self.base.copy()
        weight, loss = self.base_weight, self.base_loss
        free = np.ones(len(base), dtype=bool)
        for item, option in fixed.items():
            weight += self.weight[item, option] - self.weight[item, base[item]]
            loss += self.loss[item, option] - self.loss[item, base[item]]
            base[item], free[item] = option, False
        if weight > budget:
            return None
        usable = np.flatnonzero(free[edges.item])
        filled = weight + np.cumsum(edges.weight[usable])
        count = int(np.searchsorted(filled, budget, side="right"))
        taken = usable[:count]
        base[edges.item[taken]] = edges.option[taken]
        loss += _total(edges.loss[taken])
        if count == len(usable):
            return _Relaxed(bound=loss, chosen=base, split=None, price=0.0)
        cut = usable[count]
        price = -float(edges.loss[cut] / edges.weight[cut])
        left = budget - (filled[count - 1] if count else weight)
        return _Relaxed(bound=loss - price * left, chosen=base, split=int(edges.item[cut]), price=price)

    def totals(self, chosen: NDArray[Any]) -> tuple[float, float]:
        """The sums of weight and loss of a choice."""
        import numpy as np

        everyone = np.arange(len(chosen))
        return _total(self.weight[everyone, chosen]), _total(self.loss[everyone, chosen])


def _total(numbers: NDArray[Any]) -> float:
    """The sum from front to back; numpy sums in pairs."""
    import numpy as np

    return float(np.cumsum(numbers)[-1]) if len(numbers) else 0.0


def _none() -> NDArray[Any]:
    import numpy as np

    return np.zeros(0, dtype=int)


def _hull(weights: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The options on the lower convex hull, from the lightest to the one with the least loss."""
    order = sorted((weight, loss, at) for at, (weight, loss) in enumerate(zip(weights, losses, strict=True)))
    hull: list[tuple[float, float, int]] = []
    for weight, loss, at in order:
        if weight == float("inf") or (hull and loss >= hull[-1][1]):
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], (weight, loss)):
            hull.pop()
        hull.append((weight, loss, at))
    return [at for _, _, at in hull]


def _is_above(first: tuple[float, ...], middle: tuple[float, ...], last: tuple[float, ...]) -> bool:
    """Whether `middle` lies on or above the line from `first` to `last`."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])


# --- from the relaxation to a choice ---------------------------------------------------------------------------------


def _branch(problem: _Problem, budget: float) -> Solution:
    """Best-first branch and bound on the items that relaxations cut in two."""
    root = problem.relax(budget, {})
    assert root is not None  # the lightest choice fits
    open_nodes: list[tuple[float, int, dict[int, int], _Relaxed]] = [(root.bound, 0, {}, root)]
    best, best_loss = root.chosen, problem.totals(root.chosen)[1]
    proven = root.bound
    tried, most = 0, min(_MOST_NODES, max(_FEWEST_NODES, _EDGES_TRIED // max(len(problem.edges.item), 1)))
    while open_nodes:
        bound, _, fixed, node = heapq.heappop(open_nodes)
        proven = max(proven, min(bound, best_loss))
        if best_loss - bound <= _CLOSE * best_loss or tried >= most:
            break
        candidate = _refine(problem, budget, node, best_loss) if tried < _REFINED_NODES else node.chosen
        loss = problem.totals(candidate)[1]
        if loss < best_loss:
            best, best_loss = candidate, loss
        if node.split is None:
            continue
        for option in range(problem.weight.shape[1]):
            if problem.weight[node.split, option] == float("inf"):
                continue
            below = {**fixed, node.split: option}
            tried += 1
            child = problem.relax(budget, below)
            if child is not None and child.bound < best_loss:
                heapq.heappush(open_nodes, (child.bound, tried, below, child))
                loss = problem.totals(child.chosen)[1]
                if loss < best_loss:
                    best, best_loss = child.chosen, loss
    else:
        proven = best_loss  # every other choice was ruled out
    weight, loss = problem.totals(best)
    return Solution(chosen=tuple(best.tolist()), loss=loss, weight=weight, bound=min(proven, loss))


def _refine(problem: _Problem, budget: float, node: _Relaxed, best_loss: float) -> NDArray[Any]:
    """Fill the budget that rounding left over: combine the options that cost least at the relaxation's price.

    Dynamic programming over the items for which another option costs little; it keeps at most `_STATES` partial
    choices, those that promise the least loss.
    """
    import numpy as np

    everyone = np.arange(len(node.chosen))
    priced = np.where(np.isinf(problem.weight), np.inf, problem.loss + node.price * problem.weight)
    regret = priced - priced[everyone, node.chosen][:, None]
    regret[everyone, node.chosen] = np.inf
    room = best_loss - node.bound
    core = [int(at) for at in np.argsort(regret.min(axis=1), kind="stable")[:_CORE] if regret[at].min() <= room]
    weights, losses = (np.array([total]) for total in problem.totals(node.chosen))
    steps: list[tuple[int, NDArray[Any], NDArray[Any]]] = []
    spare = budget - weights[0]
    for item in core:
        own = int(node.chosen[item])
        options = np.array([own, *np.flatnonzero(regret[item] <= room)])
        more = problem.weight[item, options] - problem.weight[item, own]
        other = problem.loss[item, options] - problem.loss[item, own]
        kept, weights, losses = _best_states(
            (weights[:, None] + more).ravel(), (losses[:, None] + other).ravel(), node.price
        )
        steps.append((item, kept // len(options), options[kept % len(options)]))
    fits = weights <= budget
    if spare < 0 or not fits.any():
        return node.chosen
    at = int(np.flatnonzero(fits)[np.argmin(losses[fits])])
    chosen = node.chosen.copy()
    for item, parents, options in reversed(steps):
        chosen[item] = options[at]
        at = int(parents[at])
    return chosen


def _best_states(
    weights: NDArray[Any], losses: NDArray[Any], price: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Keep the partial choices that no lighter one beats; if there are too many, the best at `price`."""
    import numpy as np

    order = np.lexsort((losses, weights))
    lowest = np.minimum.accumulate(losses[order])
    first = np.concatenate(([True], lowest[1:] < lowest[:-1]))
    kept = order[first]
    if len(kept) > _STATES:
        value = losses[kept] + price * weights[kept]
        kept = kept[np.sort(np.argsort(value, kind="stable")[:_STATES])]
    return kept, weights[kept], losses[kept]
