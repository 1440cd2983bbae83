"""The same choice under several limits at once, by HiGHS: devices that share free tensors, limits of size and damage.

Slower than `solver.solve` by two orders of magnitude, and needed only if a problem cannot be divided.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguftool.cooking.solving.solver import DoesNotFitError, Rows, Solution
from gguftool.errors import PlanError
from gguftool.record import record

_SECONDS = 60.0
_CLOSE = 1e-4  # a relative gap at which HiGHS may stop


@record
class Limit:
    """The sum of `weight` over the chosen options is at most `budget`; rows are as for losses."""

    weight: Rows
    budget: float


def solve_milp(loss: Rows, limits: Sequence[Limit], seconds: float = _SECONDS) -> Solution:
    """Choose one option for each item, with the least sum of `loss`, within all `limits`.

    `Solution.weight` is that of the first limit.  Raises `DoesNotFitError` if nothing fits, `PlanError` without scipy
    or if nothing was found in `seconds`.
    """
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix
    except ImportError:
        raise PlanError("free placement and several limits at once need scipy: pip install scipy") from None
    counts = [len(row) for row in loss]
    losses = np.concatenate([np.asarray(row, dtype=float) for row in loss])
    items = np.repeat(np.arange(len(loss)), counts)
    one_each = csr_matrix((np.ones(len(losses)), (items, np.arange(len(losses)))))
    rules = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        weights = np.concatenate([np.asarray(row, dtype=float) for row in limit.weight])
        scale = max(float(np.abs(weights).max(initial=0.0)), 1e-30)
        # Slightly below the budget: HiGHS allows a violation of one in ten million.
        rules.append(LinearConstraint(weights[None, :] / scale, -np.inf, limit.budget * (1 - 1e-9) / scale - 2e-7))
    scale = float(losses.max(initial=0.0)) or 1.0
    found = milp(
        losses / scale,
        constraints=rules,
        integrality=np.ones(len(losses), dtype=int),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": _CLOSE, "time_limit": seconds},
    )
    if found.x is None:
        if found.status == 2:
            raise DoesNotFitError(float("nan"))
        raise PlanError(f"HiGHS found no mix in {seconds:.0f} s: {found.message}")
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    chosen = tuple(int(np.argmax(found.x[start : start + count])) for start, count in zip(starts, counts, strict=True))
    total = sum(row[at] for row, at in zip(loss, chosen, strict=True))
    weight = sum(row[at] for row, at in zip(limits[0].weight, chosen, strict=True)) if limits else 0.0
    bound = float(found.mip_dual_bound) * scale
    return Solution(chosen=chosen, loss=total, weight=weight, bound=min(bound, total))
