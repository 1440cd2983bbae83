"""Slowness of types from benchmarks of two layouts."""

from __future__ import annotations

import pytest

from gguftool.cooking.speeds import slowness_of
from gguftool.errors import FormatError

BENCH = b"""model_type,model_size,n_prompt,n_gen,avg_ts
llama 8B Q4_K - Medium,4920000000,512,0,900
llama 8B Q4_K - Medium,4920000000,0,128,10
llama 8B Q6_K,6600000000,0,128,5
llama 8B IQ3_XXS - 3.0625 bpw,3300000000,0,128,broken
"""


def test_llama_bench_counts_what_generates() -> None:
    found = {one.type: one.factor for one in slowness_of(BENCH, "b.csv", "CPU")}
    assert found == {"q4_K": 1.0, "q6_K": pytest.approx(49.2 / 33)}
    assert {one.device for one in slowness_of(BENCH, "b.csv", "CPU")} == {"CPU"}


def test_sweeps_of_the_suite_count_tokens_and_bits() -> None:
    found = {one.type: one.factor for one in slowness_of(b"QTYPE,group0\nq4_K,20\nq6_K,10\niq1_s,404\n", "tg", "CPU")}
    assert found == {"q4_K": 1.0, "q6_K": pytest.approx(4.5 * 20 / (6.5625 * 10))}


@pytest.mark.parametrize("data", [b"", b"a,b\n1,2\n", b"model_type,n_gen\nllama 8B,5\n", b"\xff\xfe\x00"])
def test_what_holds_no_speed_says_what_would(data: bytes) -> None:
    with pytest.raises(FormatError, match="llama-bench -o csv"):
        slowness_of(data, "b.csv", "CPU")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("x" * 200_000 + ",1,0,1,1\n", "is not a CSV"),
        ("llama Q4_K,1e300,0,1,1e300\nllama Q6_K,1,0,1,1\n", "not a benchmark of one device"),
        ("llama Q4_K,1e-300,0,1,1e-300\n", "not a benchmark of one device"),
        ("llama Q4_K,1e6,0,1,1\nllama Q6_K,1,0,1,1\n", "not a benchmark of one device"),
    ],
)
def test_numbers_of_no_benchmark_are_refused(rows: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        slowness_of(f"model_type,model_size,n_prompt,n_gen,avg_ts\n{rows}".encode(), "b.csv", "CPU")
