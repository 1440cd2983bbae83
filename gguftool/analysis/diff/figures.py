"""Error figures between two arrays of numbers, computed from sums that can be added.

Keeping sums instead of ratios lets the sums of tensors be added to get the figures of a role, a layer or a model. All
sums are float64. Pairs with a NaN or an infinity are counted and left out of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gguftool.record import record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@record
class ErrorSums:
    """Sums over pairs of numbers (x of A, y of B); add two with ``+``.

    `elements` counts all pairs, `not_finite` those left out because x or y is NaN or infinite (`not_finite_old` and
    `not_finite_new` count them by side); `max_abs` is the largest |x - y|. The `weighted_` sums multiply each pair by
    its weight, over the `weighted` pairs that have one.
    """

    elements: int = 0
    not_finite: int = 0
    not_finite_old: int = 0
    not_finite_new: int = 0
    old_squares: float = 0.0
    new_squares: float = 0.0
    products: float = 0.0
    error_squares: float = 0.0
    max_abs: float = 0.0
    weighted: int = 0
    weighted_old_squares: float = 0.0
    weighted_error_squares: float = 0.0

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            elements=self.elements + other.elements,
            not_finite=self.not_finite + other.not_finite,
            not_finite_old=self.not_finite_old + other.not_finite_old,
            not_finite_new=self.not_finite_new + other.not_finite_new,
            old_squares=self.old_squares + other.old_squares,
            new_squares=self.new_squares + other.new_squares,
            products=self.products + other.products,
            error_squares=self.error_squares + other.error_squares,
            max_abs=max(self.max_abs, other.max_abs),
            weighted=self.weighted + other.weighted,
            weighted_old_squares=self.weighted_old_squares + other.weighted_old_squares,
            weighted_error_squares=self.weighted_error_squares + other.weighted_error_squares,
        )


@record
class Errors:
    """How far B is from A.

    `relative_rmse` is the root of (sum of squared errors / sum of A's squares), `rmse` the root of the mean squared
    error, `cosine` the cosine between A and B, `max_abs_error` the largest |x - y|. `snr_db` is the signal to noise
    ratio, 10 log10(sum of A's squares / sum of squared errors), infinite if there is no error.
    `weighted_relative_rmse` and `weighted_snr_db` are the same with every square times its weight in the imatrix, over
    the pairs that have one. A figure is None if it has no meaning: no finite pair, no weights, or a division by zero.
    """

    elements: int
    not_finite: int
    not_finite_old: int
    not_finite_new: int
    relative_rmse: float | None
    rmse: float | None
    cosine: float | None
    max_abs_error: float | None
    snr_db: float | None
    weighted_relative_rmse: float | None
    weighted_snr_db: float | None


def errors_between(old: NDArray[Any], new: NDArray[Any], weights: NDArray[np.float32] | None = None) -> ErrorSums:
    """Sum over two arrays of one length and any numeric type, computed in float64.

    `weights` has the same length; weights are finite and not negative.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        x, y = old.astype(np.float64).ravel(), new.astype(np.float64).ravel()
        fine_x, fine_y = np.isfinite(x), np.isfinite(y)
        fine = fine_x & fine_y
        if not fine.all():
            x, y = x[fine], y[fine]
            weights = None if weights is None else weights[fine]
        return _sums(x, y, fine, fine_x, fine_y) + _weighted_sums(x, y, weights)


def _weighted_sums(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float32] | None) -> ErrorSums:
    import numpy as np

    if weights is None:
        return ErrorSums()
    w, error = weights.astype(np.float64), x - y
    return ErrorSums(
        weighted=w.size,
        weighted_old_squares=float(np.dot(w, x * x)),
        weighted_error_squares=float(np.dot(w, error * error)),
    )


def _sums(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    fine: NDArray[np.bool_],
    fine_x: NDArray[np.bool_],
    fine_y: NDArray[np.bool_],
) -> ErrorSums:
    import numpy as np

    error = x - y
    return ErrorSums(
        elements=fine.size,
        not_finite=fine.size - int(np.count_nonzero(fine)),
        not_finite_old=fine.size - int(np.count_nonzero(fine_x)),
        not_finite_new=fine.size - int(np.count_nonzero(fine_y)),
        old_squares=float(np.dot(x, x)),
        new_squares=float(np.dot(y, y)),
        products=float(np.dot(x, y)),
        error_squares=float(np.dot(error, error)),
        max_abs=float(np.abs(error).max(initial=0.0)),
    )


def total(sums: Iterable[ErrorSums]) -> ErrorSums:
    """Add all of `sums`; without any, return zeros."""
    return sum(sums, ErrorSums())


def errors_of(sums: ErrorSums) -> Errors:
    """Compute the figures from `sums`."""
    finite = sums.elements - sums.not_finite
    return Errors(
        elements=sums.elements,
        not_finite=sums.not_finite,
        not_finite_old=sums.not_finite_old,
        not_finite_new=sums.not_finite_new,
        relative_rmse=_root_of_ratio(sums.error_squares, sums.old_squares),
        rmse=_root_of_ratio(sums.error_squares, finite),
        cosine=_cosine(sums),
        max_abs_error=sums.max_abs if finite and math.isfinite(sums.max_abs) else None,
        snr_db=_decibels(sums.old_squares, sums.error_squares),
        weighted_relative_rmse=_root_of_ratio(sums.weighted_error_squares, sums.weighted_old_squares),
        weighted_snr_db=_decibels(sums.weighted_old_squares, sums.weighted_error_squares),
    )


def _decibels(signal: float, noise: float) -> float | None:
    if not signal > 0 or not math.isfinite(signal) or not math.isfinite(noise):
        return None
    return 10 * (math.log10(signal) - math.log10(noise)) if noise > 0 else math.inf


def _root_of_ratio(above: float, below: float) -> float | None:
    if below > 0:
        ratio = above / below
        return math.sqrt(ratio) if math.isfinite(ratio) else None
    return None


def _cosine(sums: ErrorSums) -> float | None:
    lengths = math.sqrt(sums.old_squares) * math.sqrt(sums.new_squares)
    if not lengths > 0 or not math.isfinite(lengths) or not math.isfinite(sums.products):
        return None
    return max(-1.0, min(1.0, sums.products / lengths))  # rounding may leave the range by a bit
