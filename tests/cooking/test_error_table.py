"""The error table agrees with another package, and its sample is random, large enough and always the same."""

from __future__ import annotations

import json
import random
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gguftool.cooking.error_table import WHOLE, sample_rows, type_error
from gguftool.cooking.measuring.run import ErrorSetup, Selection, measure_errors
from gguftool.cooking.type_values import TypeMaker
from gguftool.errors import PlanError
from gguftool.format.ggml import find_type
from gguftool.format.imatrix import Imatrix, ImatrixEntry
from gguftool.model.opening import open_model
from gguftool.surgery.quantize.options import Weights
from tests.support import builders as b
from tests.support.measure_cases import MODEL, lines_of
from tests.support.paths import FIXTURES
from tests.support.rude_server import RudeServer

ENGINES = FIXTURES / "engines"
NAME = "blk.0.attn_v.weight"


def type_id(name: str) -> int:
    traits = find_type(name)
    assert traits is not None
    return traits.id


def weights_of(values: Any) -> Weights:
    import numpy as np

    entry = ImatrixEntry(name=NAME, sums=values.astype(np.float32), counts=np.ones(len(values), np.float32))
    return Weights(imatrix=Imatrix(entries={NAME: entry}, digest="d"), name="i")


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q5_1"])
def test_the_error_is_that_of_gguf_py(name: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    maker = TypeMaker(model=open_model(MODEL))
    found = type_error(maker.make(NAME, type_id(name)))
    exact = maker.model.tensors[NAME].numpy().astype("float64")
    kind = GGMLQuantizationType[name.upper()]
    values = dequantize(quantize(exact.astype("float32"), kind), kind)
    assert found.rows == 128
    assert found.weighted_error is None
    # both round to nearest, but for ties
    assert found.error == pytest.approx(((exact - values) ** 2).sum() / (exact**2).sum(), rel=0.01)


def test_weights_count_by_column() -> None:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values = np.zeros((1, 256))
    values[0, :32] = 1.0
    maker = TypeMaker(model=open_model(MODEL), weights=weights_of(values))
    typed = maker.make(NAME, type_id("q8_0"))
    found = type_error(typed)
    exact = maker.model.tensors[NAME].numpy()
    made = typed.typed.extent.read()
    first = dequantize(np.frombuffer(made, np.uint8), GGMLQuantizationType.Q8_0).reshape(exact.shape)
    wanted = ((exact - first)[:, :32] ** 2).sum() / (exact[:, :32] ** 2).sum()
    assert found.weighted_error == pytest.approx(float(wanted), rel=1e-4)
    assert found.weighted_error != pytest.approx(found.error, rel=1e-3)


def test_rows_that_no_block_fits_are_refused_or_taken_together(tmp_path: Path) -> None:
    draw = random.Random(1)
    numbers = struct.pack("<768f", *(draw.gauss(0, 1) for _ in range(768)))
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(tensors=[b.Tensor("blk.0.ffn_up.weight", (96, 8), b.TYPES["F32"][0], numbers)]))
    model = open_model(path)
    with pytest.raises(PlanError, match="rows of 96 are not whole blocks of q3_K"):
        TypeMaker(model=model).make("blk.0.ffn_up.weight", type_id("q3_K"))
    typed = TypeMaker(model=model, any_width=True).make("blk.0.ffn_up.weight", type_id("q3_K"))
    assert typed.tensor.info.dims == (768, 1)
    assert 0.005 < type_error(typed).error < 0.1


def test_small_tensors_are_taken_whole_and_large_ones_by_some_hundred_random_rows() -> None:
    assert sample_rows("a", 1024, WHOLE // 1024) == [(0, 1024)]
    ranges = sample_rows("blk.0.ffn_up.weight", 20_000, 4096)
    rows = [row for first, last in ranges for row in range(first, last)]
    assert len(rows) == len(set(rows)) >= 512
    assert max(rows) < 20_000
    assert ranges == sample_rows("blk.0.ffn_up.weight", 20_000, 4096)
    assert ranges != sample_rows("blk.1.ffn_up.weight", 20_000, 4096)
    gaps = {after - before for (before, _), (after, _) in pairwise(ranges)}
    assert len(gaps) > 10  # regular samples mislead: errors sit at regular places


def test_errors_in_a_few_rows_are_found_by_the_sample() -> None:
    """One head dimension of 64 has all of the error: rows 64k + 5; a stride of 16 would miss every one."""
    rows = [row for first, last in sample_rows("blk.17.attn_k.weight", 32_768, 256) for row in range(first, last)]
    share = sum(row % 64 == 5 for row in rows) / len(rows)
    assert share == pytest.approx(1 / 64, rel=0.5)


def test_a_table_is_written_once_and_ready_made_quants_add_their_types(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    setup = ErrorSetup(model=str(MODEL), quants=(str(ENGINES / "tiny-llama-Q4_K.gguf"),), version="1")
    chosen = Selection(patterns=(r"blk\.0\.attn_[kv]",), types=("q8_0",))
    report = measure_errors(setup, chosen, output)
    lines = lines_of(output)
    assert report.written == len(lines) == 4
    assert {(line["tensor"], line["type"]) for line in lines} == {
        (f"blk.0.attn_{name}.weight", kind) for name in "kv" for kind in ("q8_0", "q4_K")
    }
    assert all(line["kind"] == "error" and line["engine"] is None and line["rows"] == 128 for line in lines)
    assert {line["type"] for line in lines if line["source"]} == {"q4_K"}
    assert all((line["error"] < 1e-4) == (line["type"] == "q8_0") for line in lines)
    before = output.read_bytes()
    again = measure_errors(setup, chosen, output)
    assert (again.written, again.skipped) == (0, 4)
    assert output.read_bytes() == before


def test_a_quant_of_another_model_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "m.gguf"
    other.write_bytes(b.gguf(tensors=[b.tensor(NAME, "Q8_0", (32, 4))]))
    setup = ErrorSetup(model=str(MODEL), quants=(str(other),), version="1")
    with pytest.raises(PlanError, match="a quant of another model"):
        measure_errors(setup, Selection(patterns=(NAME,)), tmp_path / "out.jsonl")


def test_a_remote_model_gives_the_same_table_by_ranges(tmp_path: Path) -> None:
    output, remote = tmp_path / "local.jsonl", tmp_path / "remote.jsonl"
    chosen = Selection(patterns=(NAME,), types=("q4_0",))
    measure_errors(ErrorSetup(model=str(MODEL), version="1"), chosen, output)
    with RudeServer({"m.gguf": MODEL.read_bytes()}) as server:
        measure_errors(ErrorSetup(model=server.url("honest", "m.gguf"), version="1"), chosen, remote)
    assert [json.dumps(line) for line in lines_of(remote)] == [json.dumps(line) for line in lines_of(output)]
