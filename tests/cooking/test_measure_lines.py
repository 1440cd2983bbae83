"""The measure file: lines survive a round trip, damage is named with its line, foreign lines are found."""

from __future__ import annotations

import json

import pytest

from gguftool.cooking.measure_lines import (
    ErrorLine,
    foreign_line,
    parse_measure,
    serialize_line,
)
from gguftool.errors import FormatError
from gguftool.record import replace
from tests.support.measure_cases import BASIS, LINES

TEXT = "".join(map(serialize_line, LINES))


def test_lines_survive_a_round_trip() -> None:
    found = parse_measure(TEXT.encode(), "m.jsonl")
    assert found.lines == LINES
    assert found.floor == LINES[0]
    assert found.of(ErrorLine) == (LINES[3],)
    assert found.nbytes == len(TEXT)


def test_a_line_is_one_line_with_its_kind_first_and_its_numbers_in_it() -> None:
    lines = TEXT.splitlines()
    assert len(lines) == len(LINES)
    assert [line.split('"')[3] for line in lines] == ["floor", "kld", "kld", "error", "scale"]
    assert TEXT.isascii()
    assert json.loads(lines[1]).items() >= {"kld": 0.002, "tokens": 510, "model": "m", "imatrix": None}.items()


def test_a_last_line_without_its_end_counts_as_absent() -> None:
    whole = parse_measure(TEXT.encode(), "m.jsonl")
    for cut in range(1, len(serialize_line(LINES[-1])) + 1):
        found = parse_measure(TEXT.encode()[:-cut], "m.jsonl")
        assert found.lines == whole.lines[:-1]
        assert found.nbytes == len(TEXT) - len(serialize_line(LINES[-1]))


@pytest.mark.parametrize("rest", [b"GGUF\3\0\0", b"a text of one line", b'{"other": 1', b"\0\0GGUF"])
@pytest.mark.parametrize("before", ["", TEXT])
def test_what_begins_no_line_is_not_what_a_killed_run_left(before: str, rest: bytes) -> None:
    with pytest.raises(FormatError, match="give another file"):
        parse_measure(before.encode() + rest, "m.jsonl")


def test_zeros_of_a_power_cut_count_as_absent() -> None:
    assert parse_measure(TEXT.encode() + b'{"kind\0\0\0', "m.jsonl").nbytes == len(TEXT)


@pytest.mark.parametrize(
    ("line", "changes", "message"),
    [
        (1, {"kld": "many"}, "'kld' is not a finite number"),
        (1, {"kld": 10**400}, "too large"),
        (1, {"kld": 1e300}, "cannot be a measurement"),
        (3, {"error": 1e300}, "cannot be a measurement"),
        (3, {"weighted_error": 1e300}, "cannot be a measurement"),
        (4, {"factor": 1e300}, "cannot be a measurement"),
        (1, {"kld_se": -1}, "below zero"),
        (1, {"tensors": "blk"}, "not a list of texts"),
        (1, {"type": "q99\x1b"}, r"'q99\\x1b' is not a type"),
        (1, {"tokens": 1.5}, "not a count"),
        (1, {"censored": 1}, "neither true nor false"),
        (1, {"carrier": 7}, "not an object"),
        (1, {"by_chunk": [None]}, "not a finite number"),
        (1, {"model": None}, "'model' is not a text"),
        (3, {"rows": True}, "not a count"),
        (4, {"kind": "other"}, "the kind floor, kld, error, scale"),
    ],
)
def test_damage_is_named_with_its_line(line: int, changes: dict[str, object], message: str) -> None:
    lines = TEXT.splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | changes)
    with pytest.raises(FormatError, match=message) as caught:
        parse_measure("\n".join([*lines, ""]).encode(), "m.jsonl")
    assert f"(line {line + 1})" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in json.loads(TEXT.splitlines()[1]) if name != "kind"])
def test_a_missing_field_is_named(name: str) -> None:
    fields = json.loads(TEXT.splitlines()[1])
    del fields[name]
    with pytest.raises(FormatError, match=f"'{name}' is missing"):
        parse_measure(json.dumps(fields).encode() + b"\n", "m.jsonl")


@pytest.mark.parametrize(
    "data",
    [b"\n", b"null\n", b"[]\n", b"\xff\xfe\n", b'{"kind": ["kld"]}\n', b"[" * 100_000 + b"\n", b'{"kind": NaN}\n'],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="line 1"):
        parse_measure(data, "m.jsonl")


def test_lines_of_something_else_are_found() -> None:
    assert foreign_line(LINES, BASIS) is None
    assert foreign_line(LINES, replace(BASIS, gguftool="2")) is None
    assert foreign_line(LINES, replace(BASIS, model="other", text="other")) == (1, ["model", "text"])
    assert foreign_line(LINES, replace(BASIS, imatrix="i")) == (1, ["imatrix"])
    # the error table depends on no text and no engine
    assert foreign_line(LINES, replace(BASIS, text=None, engine=None, options=None)) is None
