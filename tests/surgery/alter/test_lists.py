"""Lists of numbers: what they mean, and what is wrong with others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import PlanError
from gguftool.surgery.alter.lists import Span, listed_spans, parse_list, resolve, resolve_own


def own(text: str, count: int = 20) -> list[int]:
    problems: list[str] = []
    numbers = resolve_own(parse_list(text, "layers"), count, "layers", problems)
    assert problems == []
    return numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        ("0-2", [0, 1, 2]),
        ("17-", [17, 18, 19]),
        ("0-2,1-2,18-", [0, 1, 2, 1, 2, 18, 19]),
        ("2, 1 ,0", [2, 1, 0]),
        ("!3,5-", [0, 1, 2, 4]),
        ("!0-18", [19]),
    ],
)
def test_what_a_list_means(text: str, numbers: list[int]) -> None:
    assert own(text) == numbers


def test_labels_are_of_other_models_whatever_their_case() -> None:
    wanted = parse_list("0-1,B-1:2-,b_1:0", "layers", labels=True)
    assert wanted.spans[1] == Span(first=2, last=None, label="b_1")
    counts = {None: 9, "b_1": 4}
    assert resolve(wanted, counts.__getitem__, "layers", []) == [
        (None, 0),
        (None, 1),
        ("b_1", 2),
        ("b_1", 3),
        ("b_1", 0),
    ]


@pytest.mark.parametrize(
    "text", ["", "a", "1-2-3", "-3", "1,,2", "0x1", "1.5", "b:1", "!!1", "\u0661", "1 2", "9" * 10]
)
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(PlanError, match=r"^--layers: '.*' is not part of a list of numbers"):
        parse_list(text, "layers")


def test_a_range_that_counts_down_says_how_to_reverse() -> None:
    with pytest.raises(PlanError, match=r"--layers: '7-3' counts down; to reverse, write the numbers one by one: 7,6,"):
        parse_list("7-3", "layers")


def test_every_number_out_of_range_is_a_problem() -> None:
    problems: list[str] = []
    assert resolve_own(parse_list("0,4-9,3,7-", "layers"), 4, "layers", problems) == [0, 3]
    assert problems == ["--layers 4-9: there are 4, 0 to 3", "--layers 7-: there are 4, 0 to 3"]


def test_a_list_costs_no_more_than_what_is_there() -> None:
    problems: list[str] = []
    assert resolve_own(parse_list("0-999999999", "vocab"), 10, "vocab", problems) == []
    assert problems
    with pytest.raises(PlanError, match="more than 1,048,576 numbers"):
        resolve_own(parse_list(",".join(["0-"] * 10), "vocab"), 200_000, "vocab", [])
    with pytest.raises(PlanError, match="70,000 parts"):
        parse_list(",".join(["0"] * 70_000), "vocab")


@given(st.lists(st.integers(0, 30), min_size=1))
def test_numbers_written_as_spans_are_read_as_they_were(numbers: list[int]) -> None:
    assert own(listed_spans(numbers, limit=99), 31) == numbers
