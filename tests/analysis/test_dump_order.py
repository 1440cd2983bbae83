"""Sorting and cutting the tensors of a dump, and values as people write them."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from gguftool.analysis.dump import TensorSort, dump, natural_key, sort_dump
from gguftool.format.engine_facts.enums import enum_name
from gguftool.render.units import format_float32
from tests.support.command import run_gguftool
from tests.support.paths import REPO

DEMO = REPO / "fixtures" / "demo.gguf"


def test_sizes_come_from_the_largest_on_and_ties_in_model_order() -> None:
    whole = dump(DEMO)
    shown = sort_dump(whole, TensorSort.SIZE, 5).tensors
    assert [tensor.nbytes for tensor in shown] == sorted((t.nbytes for t in whole.tensors), reverse=True)[:5]
    assert all(a.index < b.index for a, b in pairwise(shown) if a.nbytes == b.nbytes)


@pytest.mark.parametrize("sort", TensorSort)
def test_sorting_loses_no_tensor(sort: TensorSort) -> None:
    whole = dump(DEMO)
    assert set(sort_dump(whole, sort).tensors) == set(whole.tensors)
    assert sort_dump(whole).tensors == whole.tensors
    assert sort_dump(whole, sort, 0).tensors == ()


def test_numbers_in_names_sort_by_value() -> None:
    names = ["blk.10.a", "blk.2.a", "blk.2.a1", "output", "1", "", "٣"]
    assert sorted(names, key=natural_key) == ["", "1", "blk.2.a", "blk.2.a1", "blk.10.a", "output", "٣"]


def test_the_command_sorts_and_cuts() -> None:
    done = run_gguftool("dump", DEMO, "--sort", "size", "--limit", "2", "--no-kv", "--csv")
    names = [line.split(",")[1] for line in done.stdout.decode().splitlines()[1:]]
    assert names == [tensor.name for tensor in sort_dump(dump(DEMO), TensorSort.SIZE, 2).tensors]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e-5, "1e-05"), (10000.0, "10000.0"), (0.1, "0.1"), (-0.5, "-0.5"), (1e38, "1e+38"), (16777217.0, "16777216.0")],
)
def test_a_float_has_the_digits_that_people_wrote(value: float, shown: str) -> None:
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    assert format_float32(single) == shown


def test_every_float_comes_back() -> None:
    for bits in range(0, 1 << 32, 104_729 * 37):
        (value,) = struct.unpack("<f", struct.pack("<I", bits))
        if value == value:
            assert struct.pack("<f", float(format_float32(value))) == struct.pack("<I", bits)
    assert format_float32(float("nan")) == "nan"
    assert format_float32(float("-inf")) == "-inf"


def test_numbers_have_names() -> None:
    assert enum_name("general.file_type", 15) == "Q4_K_M"
    assert enum_name("bert.pooling_type", 1) == "mean"
    assert enum_name("deepseek2.expert_gating_func", 2) == "sigmoid"
    assert [enum_name("general.file_type", 9999), enum_name("llama.block_count", 1)] == ["", ""]
    assert b"general.file_type = 15 (Q4_K_M)" in run_gguftool("dump", DEMO, "--no-tensors").stdout
