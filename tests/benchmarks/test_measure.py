"""The benchmarks' own models and verdicts; what they measure is not a test (docs/benchmarks.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import gguftool
from benchmarks.measure import MIB, Verdict, alternate, peak_of, run
from benchmarks.models import big_model, tensor_model, vocabulary_model


def test_the_vocabulary_model_has_its_tokens(tmp_path: Path) -> None:
    vocabulary_model(tmp_path / "v.gguf", n_tokens=1000)
    model = gguftool.open_model(tmp_path / "v.gguf")
    tokens = model.get("tokenizer.ggml.tokens")
    assert tokens is not None
    assert tokens.count == 1000
    assert len(set(tokens.value())) > 500
    assert {tensor.type_nbytes for tensor in model.tensors.values()} == {64 * 64 * 4}


def test_the_big_model_has_its_bytes(tmp_path: Path) -> None:
    big_model(tmp_path / "b.gguf", n_tensors=3, tensor_bytes=2 * MIB)
    model = gguftool.open_model(tmp_path / "b.gguf")
    assert [tensor.nbytes for tensor in model.tensors.values()] == [2 * MIB] * 3
    assert (tmp_path / "b.gguf").stat().st_size == model.files[0].header.data_offset + 6 * MIB


@pytest.mark.parametrize("noise", [True, False])
def test_the_model_of_one_tensor_has_its_numbers(tmp_path: Path, noise: bool) -> None:
    tensor_model(tmp_path / "t.gguf", rows=400, width=1024, noise=noise)
    (tensor,) = gguftool.open_model(tmp_path / "t.gguf").tensors.values()
    data = tensor.extent.read()
    assert (tensor.info.dims, len(data)) == ((1024, 400), 400 * 1024 * 4)
    assert (len(set(data)) > 200) == noise


def test_bars_are_judged_in_their_direction() -> None:
    kept = Verdict(what="speed", value=120, bar=100, unit="x", detail="", at_least=True)
    missed = Verdict(what="memory", value=120, bar=100, unit=" MiB", detail="")
    assert (kept.ok, missed.ok) == (True, False)
    assert "MISSED" in str(missed)
    assert "MISSED" not in str(kept)


def test_rounds_alternate_and_give_medians() -> None:
    order: list[str] = []
    figures = iter((1.0, 10.0, 9.0, 30.0, 2.0, 20.0))

    def side(name: str) -> float:
        order.append(name)
        return next(figures)

    mine, other, _ = alternate(lambda: side("a"), lambda: side("b"), rounds=3)
    assert (mine, other) == (2.0, 20.0)
    assert "".join(order) == "ababab"


def test_peak_memory_is_that_of_the_command_alone() -> None:
    ballast = bytearray(100 * MIB)  # the starting process is large; a bare command's peak must not show it
    small = peak_of((sys.executable, "-c", "pass"))
    large = peak_of((sys.executable, "-c", f"b'x' * {80 * MIB}"))
    assert small < 60 * MIB < 80 * MIB < large < len(ballast) + 60 * MIB


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        run((sys.executable, "-c", "raise SystemExit(3)"))
