"""The damage that a type does to a tensor, extended from measured tensors and types to all others.

    log D(tensor, type) = log prior(tensor, type) + r,      D adds up over the tensors of a model

The prior is the damage that was given for that type (Fisher), else a level of the tensor times the error of the
type: its own error from the error table, else the curve of the whole model, else a typical error.  The level comes
from a table of roles and the tensor's share of the weights that a token meets.  `r` is the logarithm of measured over
prior.  Tensors without a measurement take it from the same role in other layers, by interpolation; a tensor's own
measurement and this expectation are averaged by their variances (shrinkage).  If a tensor was measured at several
types, those with a similar error count more.

The spreads are those of docs/cooking.md: one standard deviation of a logarithm.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Protocol

from gguftool.cooking.damage.evidence import Evidence, Observation
from gguftool.cooking.damage.suite_csv import scaled_typical
from gguftool.cooking.damage.typical import log_typical
from gguftool.record import record

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Spread of the truth around an expectation from the same role in other layers, and from only a table of roles.
_SPREAD_OF_LAYERS: Final = 0.4
_SPREAD_OF_ROLES: Final = 1.0
# Spread added by each unit of log error between two types: with the tensor's own errors, and with a common curve.
_SPREAD_OF_TYPES: Final = 0.28
_SPREAD_OF_CURVE: Final = 0.38
_CENSORED: Final = 0.5  # spread of values only known to be below a bound, if more was expected
_LEAST_SPREAD: Final = 0.02  # no measurement is better than that
_MODEL_SPREAD: Final = 0.117  # of sums over a whole mix, common to all tensors: 0.85 to 1.25 in nine of ten
_SHARED_SPREAD: Final = 0.35  # likewise of the part that is expected but not measured
_DRAWS: Final = 2000
_FEW: Final = 5  # with at least this many measurements, their median moves a given prior

# Nats at a relative squared error of 1 in all tensors, and each role's damage per weight that a token meets, relative
# to all.  From published single-tensor divergences of 26 models (GGUF-Tool-Suite), rounded; `_SPREAD_OF_ROLES` says how
# well.
_NATS: Final = 7.0
_ROLES: Final = (
    (r"output", 5.0),
    (r"token_embd", 2.0),
    (r"attn_kv_a_mqa|indexer\..*", 15.0),
    (r"attn_[kv]_b", 9.0),
    (r"attn_q_a", 6.0),
    (r"attn_v", 6.0),
    (r"attn_k", 3.0),
    (r"attn_output|attn_q_b|ssm_out", 2.0),
    (r"ssm_(?:alpha|beta).*", 20.0),
    (r"ffn_\w+_shexps?", 3.0),
    (r"ffn_\w+_(?:ch)?exps", 0.45),
    (r"ffn_down", 0.9),
    (r"ffn_up", 0.8),
    (r"ffn_gate|attn_q", 0.7),
)
_ROLE_PATTERNS: Final = tuple((re.compile(pattern), factor) for pattern, factor in _ROLES)
_NAME: Final = re.compile(r"(?:(?P<stack>\w{1,32})\.(?P<layer>[0-9]{1,6})\.)?(?P<base>.{1,200})\.weight", re.DOTALL)


@record
class Subject:
    """A tensor to choose a type for; `used` is the share of it that a token uses, below 1 for experts."""

    name: str
    elements: int
    used: float = 1.0


class Levels(Protocol):
    """The damage of types, as a mix needs it."""

    unit: str | None

    def damage(self, type_name: str) -> NDArray[Any]:
        """The damage of every tensor at a type, in `unit`; relative numbers if `unit` is None."""

    def interval(self, types: Sequence[str | None]) -> tuple[float, float] | None:
        """The interval of nine in ten totals, with each tensor at its type; None if nothing was measured.

        A type of None is for a tensor that stays as it is, and so has no damage.
        """


@record
class _Residual:
    """The logarithm of measured over prior at one type."""

    type: str
    value: float
    spread: float


class DamageModel:
    """The damage of `subjects`, from `evidence`; columns are computed by type, on demand."""

    def __init__(self, subjects: Sequence[Subject], evidence: Evidence) -> None:
        self._subjects, self._evidence = subjects, evidence
        self._places = [_place(subject.name) for subject in subjects]
        self.unit: str | None = evidence.unit
        self._index = {subject.name: at for at, subject in enumerate(subjects)}
        self._known_errors: dict[int, dict[str, float]] = {}
        for (tensor, qtype), error in evidence.errors.items():
            if tensor in self._index:
                self._known_errors.setdefault(self._index[tensor], {})[qtype] = math.log(max(error, 1e-15))
        self._given: dict[int, dict[str | None, tuple[float, float]]] = {}
        for one in evidence.given:
            if one.tensor in self._index:
                self._given.setdefault(self._index[one.tensor], {})[one.type] = (math.log(one.value), one.spread)
        self._columns: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._errors: dict[str, NDArray[Any]] = {}
        self._priors: dict[str, NDArray[Any]] = {}
        self._levels = self._role_levels()
        self._residuals = self._read_observations()
        self._summarize(self._expectations())

    def damage(self, type_name: str) -> NDArray[Any]:
        """The expected damage of every subject at a type."""
        import numpy as np

        damages: NDArray[Any] = self._evidence.factor * np.exp(self._column(type_name)[0])
        return damages

    def interval(self, types: Sequence[str | None]) -> tuple[float, float] | None:
        """The interval of nine in ten totals, with each subject at its type, by drawing from the spreads."""
        import numpy as np

        changed = [(at, text) for at, text in enumerate(types) if text is not None]
        logs = np.array([self._column(text)[0][at] for at, text in changed])
        spreads = np.array([self._column(text)[1][at] for at, text in changed])
        damages = np.exp(logs)
        total = float(damages.sum())
        unseen = np.array([not self._residuals.get(at) and at not in self._given for at, _ in changed], dtype=bool)
        shared = _SHARED_SPREAD * float(damages[unseen].sum()) / total if total else 0.0
        draw = np.random.default_rng(0)
        own = damages * np.exp(spreads * draw.standard_normal((_DRAWS, len(changed))) - spreads**2 / 2)
        common = np.exp(math.hypot(_MODEL_SPREAD, shared) * draw.standard_normal(_DRAWS))
        low, high = np.quantile(self._evidence.factor * own.sum(axis=1) * common, (0.05, 0.95))
        return float(low), float(high)

    def _summarize(self, expected: Sequence[tuple[float, float]]) -> None:
        """Store as arrays the numbers that all columns need: expectations, and measurements at one type."""
        import numpy as np

        count = len(self._subjects)
        self._center = np.array([center for center, _ in expected])
        self._width = np.array([width for _, width in expected])
        self._measured, self._uncertain = np.zeros(count), np.full(count, np.inf)
        known_at: dict[str, set[int]] = {}
        for at, residuals in self._residuals.items():
            self._measured[at], self._uncertain[at] = residuals[0].value, residuals[0].spread
            for one in residuals:
                known_at.setdefault(one.type, set()).add(at)
        for at, given in self._given.items():
            for qtype in given:
                if qtype is not None:
                    known_at.setdefault(qtype, set()).add(at)
        self._known_at = {qtype: np.array(sorted(members)) for qtype, members in known_at.items()}
        own = [at in self._known_errors for at in range(count)]
        self._per_distance = np.where(own, _SPREAD_OF_TYPES, _SPREAD_OF_CURVE)

    # --- errors and priors -------------------------------------------------------------------------------------------

    def _base(self, qtype: str) -> float:
        """The logarithm of a type's error in general, on no particular tensor."""
        curve = self._evidence.curve
        if not curve:
            return log_typical(qtype)
        return math.log(curve[qtype] if qtype in curve else scaled_typical(curve, qtype))

    def log_errors(self, qtype: str) -> NDArray[Any]:
        """The logarithm of each subject's error at a type; errors not in the table are derived from those in it."""
        import numpy as np

        if qtype not in self._errors:
            base = self._base(qtype)
            column = np.full(len(self._subjects), base)
            for at, known in self._known_errors.items():
                offsets = [error - self._base(other) for other, error in known.items()]
                column[at] = known[qtype] if qtype in known else base + median(offsets)
            self._errors[qtype] = column
        return self._errors[qtype]

    def _role_levels(self) -> NDArray[Any]:
        import numpy as np

        met = np.array([max(subject.elements * subject.used, 1.0) for subject in self._subjects])
        factors = np.array([_role_factor(base) for _, _, base in self._places])
        return np.log(_NATS * factors * met / met.sum()) if len(met) else met

    def _prior(self, qtype: str) -> NDArray[Any]:
        """The logarithm of each subject's damage at a type, before measurements."""
        if qtype not in self._priors:
            errors = self.log_errors(qtype)
            column = self._levels + errors
            for at, known in self._given.items():
                near = self._nearest(at, [other for other in known if other is not None], qtype)
                if near is not None:
                    column[at] = known[near][0] + errors[at] - self.log_errors(near)[at]
                else:
                    column[at] = known[None][0] + errors[at]
            self._priors[qtype] = column
        return self._priors[qtype]

    def _nearest(self, at: int, types: Sequence[str], qtype: str) -> str | None:
        """The one of `types` with the error nearest to that of `qtype`, for one subject."""
        if qtype in types:
            return qtype
        wanted = self.log_errors(qtype)[at]
        return min(types, key=lambda other: abs(self.log_errors(other)[at] - wanted), default=None)

    # --- measurements ------------------------------------------------------------------------------------------------

    def _read_observations(self) -> dict[int, list[_Residual]]:
        """The residuals of measured subjects; those only known to be below a bound are added later, if needed."""
        found: dict[int, list[_Residual]] = {}
        for one in self._evidence.observations:
            members = [self._index[name] for name in one.tensors if name in self._index]
            if members and not one.censored and one.value > 0:
                residual = self._residual(one, members)
                for at in members:
                    found.setdefault(at, []).append(residual)
        return found

    def _residual(self, one: Observation, members: Sequence[int]) -> _Residual:
        """Measured over prior; for a group, the prior is the sum over its members."""
        import numpy as np

        prior = float(np.logaddexp.reduce(self._prior(one.type)[list(members)]))
        own = math.hypot(_LEAST_SPREAD, min(one.error / one.value, 3.0))
        group = _SPREAD_OF_LAYERS if len(members) > 1 or one.interpolated else 0.0
        return _Residual(type=one.type, value=math.log(one.value) - prior, spread=math.hypot(own, group))

    def _expectations(self) -> list[tuple[float, float]]:
        """For each subject the residual to expect without its own measurement, and its spread."""
        means = {at: _mean(residuals) for at, residuals in self._residuals.items()}
        overall = median(means.values()) if means else 0.0
        shift = overall if len(means) >= _FEW else 0.0
        by_role: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for at in means:
            stack, layer, base = self._places[at]
            if layer is not None:
                by_role.setdefault((stack, base), []).append((layer, at))
        for measured in by_role.values():
            measured.sort()
        expected = []
        for at, (stack, layer, base) in enumerate(self._places):
            if at in self._given:
                spread = next(iter(self._given[at].values()))[1]
                expected.append((shift, spread))
                continue
            others = [] if layer is None else _beside(by_role.get((stack, base), ()), layer, at)
            if others and layer is not None:
                known = [(other, means[index]) for other, index in others]
                expected.append((_interpolated(known, layer), _SPREAD_OF_LAYERS))
            else:
                expected.append((overall, _SPREAD_OF_ROLES))
        self._apply_bounds(expected)
        return expected

    def _apply_bounds(self, expected: Sequence[tuple[float, float]]) -> None:
        """Count a bound as a measurement if more was expected: the truth is at the bound or below."""
        for one in self._evidence.observations:
            members = [self._index[name] for name in one.tensors if name in self._index]
            if not one.censored or not members or one.value <= 0:
                continue
            residual = self._residual(one, members)
            for at in members:
                if expected[at][0] > residual.value and at not in self._residuals:
                    bounded = _Residual(type=one.type, value=residual.value, spread=_CENSORED)
                    self._residuals[at] = [bounded]

    # --- columns -----------------------------------------------------------------------------------------------------

    def _column(self, qtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """The logarithm of the damage of each subject at a type, and its spread."""
        import numpy as np

        if qtype not in self._columns:
            local, error = self._measured.copy(), self._uncertain.copy()
            for at, residuals in self._residuals.items():
                if len(residuals) > 1:
                    local[at], error[at] = self._local(at, residuals, qtype)
            trust = np.where(np.isinf(error), 0.0, self._width**2 / (self._width**2 + error**2))
            logs = self._prior(qtype) + self._center + trust * (local - self._center)
            variance = self._width**2 * (1 - trust) + self._reach(qtype) ** 2
            self._columns[qtype] = logs, np.sqrt(variance)
        return self._columns[qtype]

    def _local(self, at: int, residuals: Sequence[_Residual], qtype: str) -> tuple[float, float]:
        """The residual at a type from several measured types, of which near ones count more; and its spread."""
        wanted = self.log_errors(qtype)[at]
        weights = [
            1 / (one.spread**2 + (_SPREAD_OF_TYPES * (self.log_errors(one.type)[at] - wanted)) ** 2)
            for one in residuals
        ]
        total = sum(weights)
        value = sum(weight * one.value for weight, one in zip(weights, residuals, strict=True)) / total
        variance = sum((weight * one.spread) ** 2 for weight, one in zip(weights, residuals, strict=True)) / total**2
        return value, math.sqrt(variance)

    def _reach(self, qtype: str) -> NDArray[Any]:
        """The spread that comes from the distance to the nearest type with evidence."""
        import numpy as np

        wanted, nearest = self.log_errors(qtype), np.full(len(self._subjects), np.inf)
        for known, members in self._known_at.items():
            distance = np.abs(self.log_errors(known)[members] - wanted[members])
            nearest[members] = np.minimum(nearest[members], distance)
        return np.where(np.isinf(nearest), 0.0, nearest * self._per_distance)


def _mean(residuals: Sequence[_Residual]) -> float:
    weights = [1 / one.spread**2 for one in residuals]
    return sum(weight * one.value for weight, one in zip(weights, residuals, strict=True)) / sum(weights)


def _beside(measured: Sequence[tuple[int, int]], layer: int, at: int) -> list[tuple[int, int]]:
    """The nearest pairs of layer and subject on both sides of `layer`, without the subject `at`."""
    place = bisect_left(measured, (layer, at))
    after = place + (place < len(measured) and measured[place][1] == at)
    return [*measured[max(place - 1, 0) : place], *measured[after : after + 1]]


def _interpolated(known: Sequence[tuple[int, float]], layer: int) -> float:
    """The value at `layer` on the line through the nearest known layers; beyond them, that of the nearest one."""
    import numpy as np

    layers, values = zip(*known, strict=True)
    return float(np.interp(layer, layers, values))


def _place(name: str) -> tuple[str, int | None, str]:
    found = _NAME.fullmatch(name)
    if found is None:
        return "", None, name
    return found["stack"] or "", None if found["layer"] is None else int(found["layer"]), found["base"]


def _role_factor(base: str) -> float:
    return next((factor for pattern, factor in _ROLE_PATTERNS if pattern.fullmatch(base)), 1.0)


class PresetLevels:
    """The levels to use if nothing was measured: a preset's own, scaled to any budget.

    A preset gives more bits to tensors that its authors found sensitive.  If damage is proportional to weights times
    the error of a type, relative to the error of the preset's type, the best mix of another size is the preset shifted
    by the same number of bits everywhere.  The numbers order mixes; they are not divergences.
    """

    unit: str | None = None

    def __init__(self, subjects: Sequence[Subject], preset: Mapping[str, str], evidence: Evidence) -> None:
        self._model = DamageModel(subjects, evidence)
        self._subjects, self._preset = subjects, preset

    def damage(self, type_name: str) -> NDArray[Any]:
        """The relative damage of every subject at a type."""
        import numpy as np

        own = self._model.log_errors(type_name)
        like = np.array(
            [
                self._model.log_errors(self._preset.get(subject.name, "q6_K"))[at]
                for at, subject in enumerate(self._subjects)
            ]
        )
        sizes = np.array([float(subject.elements) for subject in self._subjects])
        return sizes / sizes.sum() * np.exp(own - like) if len(sizes) else sizes

    def interval(self, types: Sequence[str | None]) -> None:
        """None: nothing was measured."""
