"""The solver, judged by trying everything, by HiGHS, and by its own bound."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from gguftool.cooking.solving.milp import Limit, solve_milp
from gguftool.cooking.solving.solver import DoesNotFitError, frontier, solve
from tests.support.cooking import K_TYPES, PRESETS, blocks, smollm2

np = pytest.importorskip("numpy")

Rows = list[list[float]]


def _random(items: int, options: int, seed: int) -> tuple[Rows, Rows]:
    """Losses and weights as of tensors and types: fewer bits, more damage, with some noise; sizes far apart."""
    draw = np.random.default_rng(seed)
    size, level = draw.lognormal(3, 1.5, items), draw.lognormal(0, 1.5, items)
    bits = np.sort(draw.uniform(1.6, 8.5, options))
    loss = [(level[at] * 4**-bits * draw.lognormal(0, 0.3, options)).tolist() for at in range(items)]
    weight = [np.ceil(size[at] * bits).tolist() for at in range(items)]
    return loss, weight


def _best(loss: Rows, weight: Rows, budget: float) -> float:
    choices = itertools.product(*(range(len(row)) for row in loss))
    return min(
        sum(loss[at][option] for at, option in enumerate(choice))
        for choice in choices
        if sum(weight[at][option] for at, option in enumerate(choice)) <= budget
    )


@pytest.mark.parametrize("seed", range(25))
def test_small_problems_are_solved_as_by_trying_everything(seed: int) -> None:
    loss, weight = _random(5, 4, seed)
    least = sum(min(row) for row in weight)
    most = sum(max(row) for row in weight)
    for share in (0.0, 0.2, 0.5, 0.9):
        budget = least + share * (most - least)
        found = solve(loss, weight, budget)
        assert found.weight <= budget
        best = _best(loss, weight, budget)
        assert found.loss == pytest.approx(best, rel=2e-5)
        assert found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_real_instance_is_within_half_a_percent_of_highs(preset: str) -> None:
    rows = [[tensor["types"][qtype] for qtype in (*K_TYPES, "Q6_K")] for _, tensor in blocks()]
    loss = [[numbers["fisher"] for numbers in row] for row in rows]
    weight = [[numbers["bytes"] for numbers in row] for row in rows]
    mix = smollm2()["mixes"][preset]
    budget = mix["bytes"] - smollm2()["tensors"]["token_embd.weight"]["types"]["Q6_K"]["bytes"]
    found = solve(loss, weight, budget)
    judge = solve_milp(loss, [Limit(weight=weight, budget=budget)])
    assert found.weight <= budget
    assert judge.weight <= budget
    assert found.loss <= judge.loss * 1.005
    assert found.bound <= judge.loss * (1 + 1e-6)
    assert found.gap < 0.005


def test_a_tensor_larger_than_all_others_does_not_spoil_the_answer() -> None:
    loss, weight = _random(120, 6, 3)
    weight[0] = [40 * number for number in weight[0]]
    loss[0] = [40 * number for number in loss[0]]
    budget = 0.5 * (sum(min(row) for row in weight) + sum(max(row) for row in weight))
    found = solve(loss, weight, budget)
    judge = solve_milp(loss, [Limit(weight=weight, budget=budget)])
    assert found.weight <= budget
    assert found.loss <= judge.loss * 1.001
    assert found.gap < 0.005


def test_two_thousand_tensors_and_twenty_types_take_less_than_a_second() -> None:
    loss, weight = _random(2000, 20, 7)
    budget = sum(row[9] for row in weight)
    solve(loss[:10], weight[:10], 1e9)  # numpy is imported, and warm
    start = time.process_time()
    found = solve(loss, weight, budget)
    assert time.process_time() - start < 1.0
    assert found.weight <= budget
    assert found.gap < 1e-3


def test_what_does_not_fit_is_said_with_the_least_that_would() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        solve([[1.0, 0.5], [1.0, 0.5]], [[10, 20], [7, 9]], 16)
    assert caught.value.least == 17
    assert solve([[1.0, 0.5], [1.0, 0.5]], [[10, 20], [7, 9]], 17).chosen == (0, 0)


@pytest.mark.parametrize(
    ("loss", "weight", "budget", "expected"),
    [
        ([], [], 0, ()),
        ([[3.0]], [[5]], 5, (0,)),
        ([[0.0, 0.0]], [[5, 5]], 9, (0,)),
        ([[1.0, 2.0, 0.5]], [[5, 9, 6]], 100, (2,)),  # more bytes and more damage: never taken
        ([[1.0, 1.0]], [[0, 0]], 0, (0,)),
    ],
)
def test_odd_problems(loss: Any, weight: Any, budget: float, expected: tuple[int, ...]) -> None:
    assert solve(loss, weight, budget).chosen == expected


def test_the_frontier_falls_from_the_lightest_to_the_best() -> None:
    loss, weight = _random(30, 6, 1)
    corners = frontier(loss, weight)
    assert corners[0][0] == sum(min(row) for row in weight)
    assert corners[-1][1] == pytest.approx(sum(min(row) for row in loss))
    slopes = [(second[1] - first[1]) / (second[0] - first[0]) for first, second in itertools.pairwise(corners)]
    assert all(slope < 0 for slope in slopes)
    assert slopes == sorted(slopes)
    for size, damage in corners[:: len(corners) // 5]:
        assert solve(loss, weight, size + 1e-6).loss == pytest.approx(damage)  # a corner is a real mix


def test_several_limits_at_once_hold() -> None:
    loss, weight = _random(40, 5, 11)
    halves = [[number if at % 2 else 0.0 for number in row] for at, row in enumerate(weight)]
    whole, odd = (
        sum(min(row) + share * (max(row) - min(row)) for row in rows) for rows, share in ((weight, 0.5), (halves, 0.2))
    )
    found = solve_milp(loss, [Limit(weight=weight, budget=whole), Limit(weight=halves, budget=odd)])
    assert sum(row[at] for row, at in zip(halves, found.chosen, strict=True)) <= odd
    assert found.weight <= whole
    assert found.loss >= solve(loss, weight, whole).bound
    with pytest.raises(DoesNotFitError):
        solve_milp(loss, [Limit(weight=weight, budget=1.0)])
