"""The model of damage: priors, shrinkage, groups, bounds, intervals."""

from __future__ import annotations

import math
import time

import pytest

from gguftool.cooking.damage.evidence import NOTHING, Evidence, Given, Observation
from gguftool.cooking.damage.model import DamageModel, PresetLevels, Subject
from gguftool.record import replace

NAMES = tuple(f"blk.{layer}.{base}.weight" for layer in range(8) for base in ("attn_q", "attn_v", "ffn_down"))
SUBJECTS = tuple(Subject(name=name, elements=1 << 20) for name in NAMES)
ERRORS = {(name, qtype): error for name in NAMES for qtype, error in (("q3_K", 0.02), ("q4_K", 0.005), ("q6_K", 3e-4))}


def observed(value: float, error: float, *tensors: str, qtype: str = "q3_K", censored: bool = False) -> Observation:
    """One measurement."""
    return Observation(tensors=tensors, type=qtype, value=value, error=error, censored=censored)


def model(*observations: Observation, errors: dict[tuple[str, str], float] | None = None) -> DamageModel:
    """A model of these measurements, with a table of errors."""
    return DamageModel(SUBJECTS, Evidence(errors=errors or ERRORS, curve={}, observations=observations))


def at(found: DamageModel, name: str, qtype: str) -> float:
    """The damage of one tensor."""
    return float(found.damage(qtype)[NAMES.index(name)])


def test_a_good_measurement_is_believed_and_spread_by_the_errors() -> None:
    found = model(*(observed(1e-3, 1e-6, name) for name in NAMES))
    for name in NAMES:
        assert at(found, name, "q3_K") == pytest.approx(1e-3, rel=0.01)
        assert at(found, name, "q4_K") == pytest.approx(1e-3 * 0.005 / 0.02, rel=0.01)


def test_a_poor_measurement_shrinks_to_what_its_neighbours_say() -> None:
    steady = [observed(1e-3, 1e-6, name) for name in NAMES if "attn_q" in name and ".3." not in name]
    odd = "blk.3.attn_q.weight"
    by_error = {
        error: at(model(*steady, observed(1e-2, error, odd)), odd, "q3_K") for error in (1e-5, 3e-3, 1e-2, 3e-2)
    }
    values = list(by_error.values())
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1e-2, rel=0.05)
    assert 1e-3 < values[-1] < 3e-3


def test_unmeasured_layers_are_interpolated_within_their_role() -> None:
    found = model(observed(1e-3, 1e-6, "blk.0.attn_q.weight"), observed(4e-3, 1e-6, "blk.4.attn_q.weight"))
    layers = [at(found, f"blk.{layer}.attn_q.weight", "q3_K") for layer in range(8)]
    assert layers[2] == pytest.approx(2e-3, rel=0.01)
    assert layers[7] == pytest.approx(layers[4], rel=0.01)
    assert layers[:5] == sorted(layers[:5])


def test_layers_by_the_ten_thousand_take_time_in_proportion() -> None:
    names = [f"blk.{layer}.attn_v.weight" for layer in range(30_000)]
    found = tuple(observed(1e-3, 1e-5, name) for name in names)
    begun = time.process_time()
    DamageModel([Subject(name=name, elements=32) for name in names], Evidence(errors={}, curve={}, observations=found))
    assert time.process_time() - begun < 20


def test_a_role_that_nobody_measured_moves_with_the_others() -> None:
    few, many = (model(*(observed(value, 1e-7, name) for name in NAMES if "attn_q" in name)) for value in (1e-4, 1e-2))
    assert at(many, "blk.0.ffn_down.weight", "q3_K") == pytest.approx(100 * at(few, "blk.0.ffn_down.weight", "q3_K"))


def test_a_group_shares_its_value_by_the_priors() -> None:
    pair = ("blk.0.attn_q.weight", "blk.0.attn_v.weight")
    found = model(observed(1e-2, 1e-6, *pair))
    assert sum(at(found, name, "q3_K") for name in pair) == pytest.approx(1e-2, rel=0.4)
    assert at(found, pair[1], "q3_K") > at(found, pair[0], "q3_K")  # V is more sensitive


def test_a_bound_pulls_down_what_expects_more_and_leaves_what_expects_less() -> None:
    others = [observed(1e-3, 1e-6, name) for name in NAMES if "attn_q" in name and ".3." not in name]
    name = "blk.3.attn_q.weight"
    free = at(model(*others), name, "q3_K")
    low = at(model(*others, observed(1e-5, 0, name, censored=True)), name, "q3_K")
    high = at(model(*others, observed(1e-1, 0, name, censored=True)), name, "q3_K")
    assert 1e-5 <= low < free / 5
    assert high == pytest.approx(free)


def test_measured_at_two_types_the_nearer_counts_more() -> None:
    name = "blk.0.attn_q.weight"
    found = model(observed(8e-3, 1e-4, name), observed(1e-3, 1e-4, name, qtype="q4_K"))
    assert at(found, name, "q3_K") == pytest.approx(8e-3, rel=0.25)
    assert at(found, name, "q4_K") == pytest.approx(1e-3, rel=0.25)
    apart = at(found, name, "q6_K") / (3e-4 / 0.005 * 1e-3)
    assert 0.8 < apart < 1.6


def test_given_values_are_taken_as_they_are_and_moved_by_measurements() -> None:
    given = tuple(Given(tensor=name, type="q3_K", value=1e-3, spread=0.18) for name in NAMES)
    alone = DamageModel(SUBJECTS, Evidence(errors=ERRORS, curve={}, given=given))
    assert at(alone, NAMES[0], "q3_K") == pytest.approx(1e-3)
    assert at(alone, NAMES[0], "q4_K") == pytest.approx(2.5e-4)
    measured = tuple(observed(1.2e-3, 1e-5, name) for name in NAMES[:8])
    moved = DamageModel(SUBJECTS, Evidence(errors=ERRORS, curve={}, given=given, observations=measured))
    assert at(moved, NAMES[-1], "q3_K") == pytest.approx(1.2e-3, rel=0.01)


def test_a_number_without_a_type_is_for_each_unit_of_error() -> None:
    given = tuple(Given(tensor=name, type=None, value=2.0, spread=0.3) for name in NAMES)
    found = DamageModel(SUBJECTS, Evidence(errors=ERRORS, curve={}, given=given))
    assert at(found, NAMES[0], "q3_K") == pytest.approx(2.0 * 0.02)


def test_a_curve_replaces_typical_errors_where_there_is_no_table() -> None:
    curve = {"q3_K": 0.1, "q4_K": 0.04}
    evidence = Evidence(errors={}, curve=curve, observations=tuple(observed(1e-3, 1e-6, name) for name in NAMES))
    found = DamageModel(SUBJECTS, evidence)
    assert at(found, NAMES[0], "q4_K") == pytest.approx(4e-4, rel=0.01)
    assert 0 < at(found, NAMES[0], "q6_K") < 4e-4  # not on the curve: typical, on its scale


def test_intervals_hold_the_total_and_widen_with_ignorance() -> None:
    widths = []
    for names in (NAMES, NAMES[:6], ()):
        found = model(*(observed(1e-3, 1e-4, name) for name in names))
        low, high = found.interval(["q3_K"] * len(NAMES)) or (0.0, 0.0)
        assert low < sum(found.damage("q3_K")) < high
        widths.append(math.log(high / low))
    assert widths == sorted(widths)
    assert found.interval(["q3_K"] * len(NAMES)) == found.interval(["q3_K"] * len(NAMES))


def test_a_tensor_that_stays_as_it_is_has_no_part_in_the_interval() -> None:
    found = model(*(observed(1e-3, 1e-5, name) for name in NAMES))
    low, high = found.interval(["q3_K", *[None] * (len(NAMES) - 1)]) or (0.0, 0.0)
    assert low < at(found, NAMES[0], "q3_K") < high < 2e-3
    assert found.interval([None] * len(NAMES)) == (0.0, 0.0)


def test_the_factor_that_a_verified_mix_gave_scales_everything() -> None:
    evidence = Evidence(errors=ERRORS, curve={}, observations=(observed(1e-3, 1e-6, NAMES[0]),))
    plain, scaled = DamageModel(SUBJECTS, evidence), DamageModel(SUBJECTS, replace(evidence, factor=1.3))
    assert scaled.damage("q4_K") == pytest.approx(1.3 * plain.damage("q4_K"))
    low, high = plain.interval(["q4_K"] * len(NAMES)) or (0, 0)
    assert scaled.interval(["q4_K"] * len(NAMES)) == pytest.approx((1.3 * low, 1.3 * high))


def test_levels_of_a_preset_are_equal_at_the_preset() -> None:
    preset = {name: "q6_K" if "attn_v" in name else "q4_K" for name in NAMES}
    found = PresetLevels(SUBJECTS, preset, NOTHING)
    at_preset = [float(found.damage(preset[name])[index]) for index, name in enumerate(NAMES)]
    assert at_preset == pytest.approx([1 / len(NAMES)] * len(NAMES))
    assert found.unit is None
    assert found.interval(list(preset.values())) is None
    assert found.damage("q3_K")[1] > 5 * found.damage("q3_K")[0]  # V fell further below its level
