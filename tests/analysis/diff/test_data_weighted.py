"""SNR and errors weighted by an imatrix: the streamed sums are those of the whole arrays."""

from __future__ import annotations

import csv
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np  # noqa: TID253 - what is tested takes arrays
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.analysis.diff.data import By, DataOptions, spread_weights
from gguftool.analysis.diff.figures import errors_between, errors_of, total
from gguftool.analysis.diff.models import DiffOptions, diff_headers
from gguftool.errors import PlanError
from gguftool.format.imatrix import Imatrix, ImatrixEntry
from gguftool.model.companions import open_imatrix
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.diff_models import f32, made
from tests.support.paths import FIXTURES

UP, DOWN, EXPERTS = "blk.0.ffn_up.weight", "blk.1.ffn_down.weight", "blk.0.ffn_up_exps.weight"


def imatrix(**weights: Any) -> Imatrix:
    """An imatrix whose weights are those given, by name with _ for the dots."""
    entries = {}
    for name, values in weights.items():
        array = np.atleast_2d(np.array(values, np.float32))
        entries[name] = ImatrixEntry(name=name, sums=array, counts=np.ones(len(array), np.float32))
    return Imatrix(entries=entries)


def compare(a: Model, b: Model, matrix: Imatrix | None = None, by: By = By.TENSOR, **options: Any) -> Any:
    data = DataOptions(by=by, imatrix=matrix, imatrix_name="i.dat", **options)
    return diff_headers(a, b, DiffOptions(data=data)).data


def pair(dims: tuple[int, ...], *names: str) -> tuple[Any, ...]:
    """Two models with the same tensors of random numbers, and those numbers in ggml's order, row by row."""
    random = np.random.default_rng(len(names) + sum(dims))
    x = {name: random.standard_normal(dims[::-1]).astype("<f4") for name in names}
    y = {name: (values + random.standard_normal(dims[::-1]) / 9).astype("<f4") for name, values in x.items()}
    sides = [made((), [(name, dims, 0, values.tobytes()) for name, values in side.items()]) for side in (x, y)]
    return *sides, x, y


def formulas(x: Any, y: Any, w: Any) -> tuple[float, ...]:
    """The figures by plain formulas on whole arrays: SNR, weighted relative RMSE, weighted SNR."""
    x, y, w = x.astype(float), y.astype(float), np.broadcast_to(w, x.shape).astype(float)
    noise, weighted = ((x - y) ** 2).sum(), (w * (x - y) ** 2).sum()
    signal = (w * x**2).sum()
    return 10 * np.log10((x**2).sum() / noise), np.sqrt(weighted / signal), 10 * np.log10(signal / weighted)


def figures(errors: Any) -> tuple[float | None, ...]:
    return errors.snr_db, errors.weighted_relative_rmse, errors.weighted_snr_db


@pytest.mark.parametrize("chunk", [32, 96, 1 << 17])
@pytest.mark.parametrize("dims", [(32, 5), (96, 4, 3), (32, 6, 5), (320, 1, 2), (64,)])
def test_streamed_figures_are_those_of_whole_arrays(dims: tuple[int, ...], chunk: int) -> None:
    """Rows longer and shorter than a chunk, chunks that end inside rows and matrices, an expert's own weights."""
    a, other, x, y = pair(dims, EXPERTS)
    matrices = dims[2] if len(dims) > 2 else 1
    weights = np.random.default_rng(1).random((matrices, dims[0]), dtype=np.float32) ** 4
    found = compare(a, other, imatrix(**{EXPERTS: weights}), chunk_elements=chunk).tensors[0]
    columns = weights.reshape(matrices, 1, dims[0]) if len(dims) > 2 else weights[0]
    assert figures(found.errors) == pytest.approx(formulas(x[EXPERTS], y[EXPERTS], columns), rel=1e-9)
    assert found.weighted


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.data())
def test_every_element_gets_the_weight_of_its_column_in_its_matrix(
    width: int, rows: int, matrices: int, data: st.DataObject
) -> None:
    weights = np.arange(matrices * width, dtype=np.float32).reshape(matrices, width)
    elements = width * rows * matrices
    whole = np.repeat(weights[:, None, :], rows, axis=1).ravel()
    start = data.draw(st.integers(0, elements - 1))
    count = data.draw(st.integers(1, elements - start))
    found = spread_weights(weights, (width, rows, matrices), start, count)
    assert np.array_equal(found, whole[start : start + count])


def test_known_numbers() -> None:
    errors = errors_of(errors_between(np.array([3.0, 4.0]), np.array([3.0, 0.0]), np.array([1, 0.25], np.float32)))
    assert errors.snr_db == pytest.approx(10 * math.log10(25 / 16))
    assert errors.weighted_relative_rmse == pytest.approx(math.sqrt(4 / 13))
    assert errors.weighted_snr_db == pytest.approx(10 * math.log10(13 / 4))


def test_figures_without_meaning() -> None:
    zeros, ones = np.zeros(2), np.ones(2)
    assert errors_of(errors_between(ones, ones)).snr_db == math.inf
    assert errors_of(errors_between(zeros, ones)).snr_db is None
    assert figures(errors_of(total([]))) == (None, None, None)
    unweighted = errors_of(errors_between(ones, zeros, np.zeros(2, np.float32)))
    assert figures(unweighted) == (0.0, None, None)
    gone = errors_of(errors_between(np.array([math.nan, 1.0]), ones, np.array([9, 1], np.float32)))
    assert gone.weighted_snr_db == math.inf


def test_totals_weigh_what_has_weights_and_count_what_has_none() -> None:
    a, other, x, y = pair((32, 4), UP, DOWN, "output.weight")
    weights = {UP: np.arange(32), DOWN: np.arange(32)[::-1] ** 2}
    for by in (By.ROLE, By.LAYER):
        data = compare(a, other, imatrix(**weights), by)
        assert [one.weighted for one in data.tensors] == [True, True, False]
        assert (data.whole.measured, data.whole.weighted, data.imatrix) == (3, 2, "i.dat")
        both = [np.concatenate([side[name].ravel() for name in weights]) for side in (x, y)]
        wide = np.concatenate([np.tile(weights[name], 4) for name in weights])
        assert figures(data.whole.errors)[1:] == pytest.approx(formulas(*both, wide)[1:], rel=1e-9)
        assert sum(part.weighted for part in data.totals) == 2
    plain = compare(a, other)
    assert (plain.imatrix, plain.whole.weighted, {one.weighted for one in plain.tensors}) == (None, None, {None})


def test_an_imatrix_of_another_model_is_refused() -> None:
    a, other, *_ = pair((32, 4), UP)
    with pytest.raises(PlanError, match="none of its 1 entries is a tensor of"):
        compare(a, other, imatrix(nothing=[1]))
    with pytest.raises(PlanError, match="does not fit") as caught:
        compare(a, other, imatrix(**{UP: np.ones(33)}))
    assert "has 33 values in the imatrix, but as a tensor of 32 x 4 it needs 32" in str(caught.value)


def test_embeddings_of_another_size_are_passed_over_as_llama_quantize_does() -> None:
    a, other, *_ = pair((32, 4), "token_embd.weight", UP)
    data = compare(a, other, imatrix(**{"token_embd.weight": np.ones(7), UP: np.ones(32)}))
    assert [one.weighted for one in data.tensors] == [False, True]


def test_what_the_quantizer_weighed_is_better_by_its_own_weights() -> None:
    """Types made with an imatrix have less error where it looks: a wrong expansion of weights would not show that."""
    zoo = FIXTURES / "engines" / "zoo"
    a, quant = open_model(zoo / "zoo-f32-ml.gguf"), open_model(zoo / "zoo-ml.gguf")
    data = compare(a, quant, open_imatrix(zoo / "zoo-f32-ml.gguf.imatrix.dat"))
    found = {one.new_type: one.errors for one in data.tensors if one.errors}
    for kind in ("Q2_K", "Q4_K", "IQ2_XXS", "IQ3_XXS", "IQ4_XS", "IQ1_M"):
        assert found[kind].weighted_snr_db > found[kind].snr_db + 0.1, kind
    assert found["F16"].weighted_snr_db == pytest.approx(found["F16"].snr_db, abs=0.2)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    kvs = b.llama_kvs()
    for name, change in (("a.gguf", 0.0), ("b.gguf", 0.25)):
        tensors = (
            b.Tensor(UP, (4, 1), 0, struct.pack("<4f", 1 + change, 2, 3, 4)),
            b.Tensor(DOWN, (4, 1), 0, struct.pack("<4f", 1 + change, 2, 3, 4)),
        )
        (tmp_path / name).write_bytes(b.gguf(kvs, tensors))
    raw = UP.encode()
    head = struct.pack(f"<ii{len(raw)}sii", 1, len(raw), raw, 1, 4)
    (tmp_path / "i.dat").write_bytes(head + struct.pack("<4f", 9, 1, 1, 1))
    (tmp_path / "other.dat").write_bytes(head + struct.pack("<4f", 9, 1, 1, 1)[:-4])
    (tmp_path / "foreign.dat").write_bytes((head + struct.pack("<4f", 9, 1, 1, 1)).replace(b"blk.0", b"blk.7"))
    return tmp_path


def run(cwd: Path, *args: str) -> tuple[int, str, str]:
    done = run_gguftool("diff", "a.gguf", "b.gguf", *args, cwd=cwd)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_table_json_and_csv(files: Path) -> None:
    weighted = f"{math.sqrt(9 * 0.0625 / 38):.4g}"
    code, out, _ = run(files, "--data", "--imatrix", "i.dat")
    assert code == 1
    rows = {line.split()[0]: line for line in out[out.index("data: 2 of 2") :].splitlines()[1:]}
    assert weighted in rows[UP]
    assert rows[DOWN].endswith("-                -  not in the imatrix")
    assert "1 not in the imatrix, so not in the weighted figures" in rows["all"]
    _, out, _ = run(files, "--data", "--imatrix", "i.dat", "--by", "layer", "--json")
    data = json.loads(out)["data"]
    assert [(part["name"], part["weighted"]) for part in data["totals"]] == [("0", 1), ("1", 0)]
    assert data["totals"][0]["errors"]["weighted_relative_rmse"] == pytest.approx(math.sqrt(9 * 0.0625 / 38))
    _, out, _ = run(files, "--data", "--imatrix", "i.dat", "--csv")
    first, second = csv.DictReader(out.splitlines())
    assert float(first["weighted_relative_rmse"]) == pytest.approx(float(weighted), rel=1e-3)
    assert second["note"] == "not in the imatrix"
    _, out, _ = run(files, "--data")
    assert "weighted" not in out


def test_csv_says_what_was_left_out(files: Path) -> None:
    values = struct.pack("<4f", math.nan, 2, 3, math.inf)
    (files / "b.gguf").write_bytes(b.gguf(b.llama_kvs(), [b.Tensor(UP, (4, 1), 0, values)]))
    _, out, _ = run(files, "--data", "--by", "role", "--csv")
    rows = {row["section"]: row["note"] for row in csv.DictReader(out.splitlines())}
    assert rows["data"] == "NaN or infinite: 0 in A, 2 in B, left out"
    assert rows["data by role"].endswith("; NaN or infinite: 0 in A, 2 in B, left out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "--imatrix", "other.dat"), "other.dat (entry 0"),
        (("--data", "--imatrix", "foreign.dat"), "none of its 1 entries is a tensor of a.gguf"),
        (("--data", "--imatrix", "missing.dat"), "missing.dat"),
        (("--imatrix", "i.dat"), "add --data"),
    ],
)
def test_bad_imatrix_is_exit_code_2(files: Path, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(files, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_the_scalar_of_a_model_without_dims_has_one_weight() -> None:
    sides = [made((), [("w", (), 0, f32(value))]) for value in (2.0, 3.0)]
    found = compare(*sides, imatrix(w=[5])).tensors[0]
    assert found.errors.weighted_relative_rmse == pytest.approx(0.5)
