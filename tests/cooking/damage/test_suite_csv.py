"""Calibration files of GGUF-Tool-Suite's layout: floors, 404s, groups, interpolated values, broken files."""

from __future__ import annotations

import math
import random
import time

import pytest

from gguftool.cooking.damage.suite_csv import curve_of, is_perplexity, looks_like_suite, parse_table, readings_of
from gguftool.cooking.damage.typical import typical_error
from gguftool.errors import FormatError

BASES = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")
NAMES = tuple(f"blk.{layer}.{base}.weight" for layer in range(12) for base in BASES)


def values(seed: int = 0) -> dict[str, float]:
    """Divergences on the engine's grid; attn_k and attn_v of a layer are measured as one."""
    draw = random.Random(seed)
    found = {name: round(draw.lognormvariate(-7, 0.8), 6) for name in NAMES}
    for name in NAMES:
        if "attn_v" in name:
            found[name] = found[name.replace("attn_v", "attn_k")]
    return found


def table(rows: dict[str, dict[str, float | str]], digits: int = 6) -> bytes:
    """A file of these rows."""
    columns = list(next(iter(rows.values())))
    lines = [",".join(["QTYPE", *columns])]
    for qtype, cells in rows.items():
        texts = (cell if isinstance(cell, str) else f"{cell:.{digits}f}" for cell in cells.values())
        lines.append(",".join([qtype, *texts]))
    return ("\n".join(lines) + "\n").encode()


def read(data: bytes) -> dict[tuple[str, ...], float]:
    """The values read, by tensors."""
    return {one.tensors: one.value for one in readings_of(parse_table(data, "t")).observations if not one.censored}


@pytest.mark.parametrize("floor", [0.0002, 0.015163, 0.3])
def test_a_planted_floor_changes_nothing(floor: float) -> None:
    plain = readings_of(parse_table(table({"iq1_kt": dict(values())}), "t")).observations
    raised = {name: value + floor for name, value in values().items()}
    planted = readings_of(parse_table(table({"iq1_kt": raised}), "t")).observations
    assert planted == plain
    assert any(one.censored for one in plain)


def test_what_is_not_told_from_the_floor_is_a_bound_never_zero() -> None:
    found = readings_of(parse_table(table({"iq1_kt": dict(values())}), "t")).observations
    assert min(one.value for one in found) >= 1e-5
    bound = {one.value for one in found if one.censored}
    assert len(bound) == 1
    assert all(one.value >= max(bound) for one in found if not one.censored)


def test_cells_that_nobody_measured_are_left_out() -> None:
    cells: dict[str, float | str] = dict(values())
    for name, text in zip(NAMES[::9], ("404", "", "404%", "404.0") * 4, strict=False):
        cells[name] = text
    found = readings_of(parse_table(table({"iq1_kt": cells}), "t"))
    read_names = {name for one in found.observations for name in one.tensors}
    assert read_names == {name for name in NAMES if not isinstance(cells[name], str)}


def test_tensors_measured_as_a_group_share_one_number() -> None:
    found = readings_of(parse_table(table({"iq1_kt": dict(values())}), "t"))
    groups = [one.tensors for one in found.observations if len(one.tensors) > 1]
    assert groups == [(f"blk.{layer}.attn_k.weight", f"blk.{layer}.attn_v.weight") for layer in range(12)]
    assert any("24 tensors were measured in groups" in text for text in found.remarks)


def test_two_equal_numbers_in_one_layer_are_chance() -> None:
    cells = values()
    cells["blk.3.ffn_up.weight"] = cells["blk.3.ffn_down.weight"]
    found = readings_of(parse_table(table({"iq1_kt": dict(cells)}), "t"))
    assert ("blk.3.ffn_up.weight",) in [one.tensors for one in found.observations]


def test_numbers_off_the_grid_were_interpolated() -> None:
    cells: dict[str, float | str] = {name: f"{value:.6f}00" for name, value in values().items()}
    filled = [name for name in NAMES if "ffn_gate" in name][::2]
    for at, name in enumerate(filled):
        cells[name] = f"{0.00123457 + at * 1e-5:.8f}"
    found = readings_of(parse_table(table({"iq1_kt": cells}), "t"))
    assert {one.tensors[0] for one in found.observations if one.interpolated} == set(filled)
    everything: dict[str, float | str] = {name: f"{value + 0.00000033:.8f}" for name, value in values().items()}
    found = readings_of(parse_table(table({"iq1_kt": everything}), "t"))
    assert not any(one.interpolated for one in found.observations)  # another engine's decimals, not interpolation


def test_zero_is_a_tensor_that_the_engine_does_not_use() -> None:
    cells = values() | {"blk.11.ffn_up.weight": 0.0, "blk.11.ffn_down.weight": 0.0}
    found = {one.tensors: one for one in readings_of(parse_table(table({"iq2_xxs": dict(cells)}), "t")).observations}
    assert found["blk.11.ffn_up.weight",].censored
    assert found["blk.11.ffn_up.weight",].value == 1e-5
    positive = min(value for value in cells.values() if value)
    assert read(table({"iq2_xxs": dict(cells)}))["blk.0.attn_output.weight",] == pytest.approx(
        cells["blk.0.attn_output.weight"] - positive
    )


def test_perplexities_count_by_their_logarithm_whatever_the_baseline() -> None:
    ppl = {name: 6.8 * math.exp(value) for name, value in values().items()}
    found = parse_table(table({"iq1_kt": dict(ppl)}), "t")
    assert is_perplexity(found)
    other = parse_table(table({"iq1_kt": {name: value * 3 for name, value in ppl.items()}}), "t")
    for one, two in zip(readings_of(found).observations, readings_of(other).observations, strict=True):
        assert one.tensors == two.tensors
        assert one.value == pytest.approx(two.value, rel=0.02)
    percent: dict[str, float | str] = {name: f"+{(value / 6.8 - 1) * 100:.4f}%" for name, value in ppl.items()}
    assert is_perplexity(parse_table(table({"iq1_kt": percent}), "t"))
    assert not is_perplexity(parse_table(table({"iq1_kt": dict(values())}), "t"))


def test_rows_of_ternary_types_are_left_out() -> None:
    broken = dict.fromkeys(NAMES, 5.0)
    found = readings_of(parse_table(table({"iq1_bn": dict(broken), "q2_K": dict(values())}), "t"))
    assert {one.type for one in found.observations} == {"q2_K"}
    assert any("iq1_bn is left out" in text for text in found.remarks)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "does not begin with QTYPE"),
        (b"tensor,kld\nx,1\n", "does not begin with QTYPE"),
        (b"QTYPE,a\nq9_Z,1\n", "'q9_Z' is not a type"),
        (b"QTYPE,a,b\nq4_K,1\n", "2 fields, but the first line has 3"),
        (b"QTYPE,a\nq4_K,x\nq5_K,-1\nq6_K,nan\n", "line 2, a: 'x'.*line 3, a: '-1'.*line 4, a: 'nan'"),
        (b"QTYPE,a,a\nq4_K,1,2\n", "the column a exists twice"),
        (b'QTYPE,a\nq4_K,"1\x00\n', "."),
    ],
)
def test_broken_files_are_one_error_with_all_problems(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        readings_of(parse_table(data, "t"))


def test_a_file_without_numbers_is_no_measurement() -> None:
    with pytest.raises(FormatError, match="holds no number"):
        readings_of(parse_table(b"QTYPE,a,b\nq4_K,404,\n", "t"))


def test_files_are_told_by_their_first_field() -> None:
    assert looks_like_suite(b"\xef\xbb\xbfqtype,x")
    assert not looks_like_suite(b'{"kind": "floor"}')


CURVE = {"bf16": 0.0, "q8_0": 0.0007, "q6_K": 0.0032, "q5_K": 0.0085, "q4_K": 0.031, "q3_K": 0.11, "q2_K": 0.31}


def test_a_curve_falls_with_the_bits_and_forgets_its_floor() -> None:
    found, remarks = curve_of(parse_table(table({q: {"group0": v} for q, v in CURVE.items()}), "t"))
    raised, _ = curve_of(parse_table(table({q: {"group0": v + 0.02 * (v > 0)} for q, v in CURVE.items()}), "t"))
    assert raised == pytest.approx(found)
    assert found["q2_K"] > found["q3_K"] > found["q4_K"] > found["q5_K"] > found["q6_K"] > 0
    assert "bf16" not in found
    assert "a floor of 0.0007" in remarks[0]


def test_a_curve_with_gaps_says_so() -> None:
    cells: dict[str, dict[str, float | str]] = {q: {"group0": v} for q, v in CURVE.items()}
    cells["iq2_ks"] = {"group0": "404"}
    found, remarks = curve_of(parse_table(table(cells), "t"))
    assert "iq2_ks" not in found
    assert "no number for iq2_ks" in remarks[1]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"QTYPE,blk.0.attn_q.weight\nq4_K,1\n", "no column group0"),
        (b"QTYPE,group0\nq4_K,0.1\n", "fewer than two types"),
        (b"QTYPE,group0\nq4_K,0.1\nq5_K,0.1\n", "the same number"),
    ],
)
def test_what_is_no_curve(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        curve_of(parse_table(data, "t"))


def test_typical_errors_fall_with_the_bits() -> None:
    order = ["iq1_s", "iq2_xxs", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q8_0", "bf16", "f16", "f32"]
    errors = [typical_error(name) for name in order]
    assert errors == sorted(errors, reverse=True)
    assert typical_error("F32") > 0


def test_a_number_that_no_engine_prints_is_named() -> None:
    with pytest.raises(FormatError, match=r"line 2, blk\.0\.attn_k\.weight: '1e\+308'"):
        parse_table(table({"iq1_kt": {**values(), "blk.0.attn_k.weight": "1e+308"}}), "t")


def test_many_groups_take_time_in_proportion() -> None:
    """Half of 80,000 tensors in groups and half alone: by pairs of both it would take minutes."""
    names = [f"blk.{at // 30}.b{at}" for at in range(80_000)]
    rows = [("q3_K", "0.001"), ("q4_K", "0.002")]
    lines = [
        ",".join([qtype, *(value if at % 30 < 15 else f"0.{at + 100_000}" for at in range(len(names)))])
        for qtype, value in rows
    ]
    data = "\n".join([f"QTYPE,{','.join(names)}", *lines, ""]).encode()
    begun = time.process_time()
    found = readings_of(parse_table(data, "t")).observations
    assert time.process_time() - begun < 20
    assert max(len(one.tensors) for one in found) == 15
