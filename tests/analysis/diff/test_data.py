"""Diff of tensor data: same or not, how far apart, in bounded memory, whatever the bytes hold."""

from __future__ import annotations

import math
import struct
import threading
import tracemalloc
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.analysis.diff.data import By, DataOptions, DataVerdict
from gguftool.analysis.diff.figures import ErrorSums, errors_between, errors_of, total
from gguftool.analysis.diff.models import DiffOptions, diff_headers
from gguftool.errors import SourceError
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.render.diff.text import summary
from gguftool.render.format import Format
from gguftool.render.json_text import render_json
from gguftool.render.registry import render
from tests.support.command import run_gguftool
from tests.support.diff_models import Memory, f32, gguf, made, model
from tests.support.paths import FIXTURES

ALL_TYPES = [2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 29, 34, 35, 39, 40]


def compare(a: Model, b: Model, by: By = By.TENSOR, **options: Any) -> Any:
    return diff_headers(a, b, DiffOptions(data=DataOptions(by=by, **options)))


def verdicts(report: Any) -> dict[str, DataVerdict]:
    return {one.name: one.verdict for one in report.data.tensors}


def one_tensor(dims: tuple[int, ...], kind: int, data: bytes, name: str = "w", **options: Any) -> Model:
    return made((), [(name, dims, kind, data)], **options)


# --- the measure -----------------------------------------------------------------------------------------------------


def test_measure_of_known_numbers() -> None:
    np = pytest.importorskip("numpy")
    errors = errors_of(errors_between(np.array([3.0, 4.0]), np.array([3.0, 0.0])))
    assert errors.relative_rmse == pytest.approx(4 / 5)
    assert errors.rmse == pytest.approx(4 / math.sqrt(2))
    assert errors.cosine == pytest.approx(9 / 15)
    assert errors.max_abs_error == 4.0


NUMBERS = st.lists(st.tuples(*[st.floats(width=32, allow_nan=True, allow_infinity=True)] * 2), min_size=0, max_size=30)


@given(NUMBERS, st.integers(0, 30))
def test_sums_of_parts_are_the_sums_of_the_whole(pairs: list[tuple[float, float]], cut: int) -> None:
    import numpy as np

    x, y = np.array([p[0] for p in pairs], "f4"), np.array([p[1] for p in pairs], "f4")
    whole, parts = errors_between(x, y), total([errors_between(x[:cut], y[:cut]), errors_between(x[cut:], y[cut:])])
    for field in ErrorSums.__dataclass_fields__:
        assert getattr(parts, field) == pytest.approx(getattr(whole, field), rel=1e-12, abs=0)
    errors = errors_of(whole)
    assert errors.cosine is None or -1 <= errors.cosine <= 1
    assert errors.max_abs_error is None or math.isfinite(errors.max_abs_error)


def test_figures_without_meaning_are_none() -> None:
    import numpy as np

    nothing = errors_of(ErrorSums())
    assert (nothing.relative_rmse, nothing.rmse, nothing.cosine, nothing.max_abs_error) == (None,) * 4
    from_zero = errors_of(errors_between(np.zeros(2), np.ones(2)))
    assert (from_zero.relative_rmse, from_zero.cosine, from_zero.max_abs_error) == (None, None, 1.0)
    overflow = errors_of(errors_between(np.array([1e300, 1e300]), np.array([-1e300, 1e308])))
    assert overflow.relative_rmse is None


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    report = compare(one_tensor((4,), 0, f32(1, nan, 2, 3)), one_tensor((4,), 0, f32(1, 1, inf, 3.5)))
    (one,) = report.data.tensors
    assert (one.errors.not_finite, one.errors.not_finite_old, one.errors.not_finite_new) == (2, 1, 1)
    assert one.errors.max_abs_error == 0.5
    assert "NaN or infinite: 1 in A, 1 in B, left out" in render(report, Format.TEXT)


def test_equal_nans_are_the_same() -> None:
    nan = one_tensor((2,), 0, f32(float("nan"), 1))
    assert not compare(nan, nan).differs


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_same_type_different_bytes_is_a_difference_and_measured() -> None:
    report = compare(one_tensor((2,), 0, f32(1, 2)), one_tensor((2,), 0, f32(1, 2.5)))
    assert (report.differs, report.tensors, verdicts(report)) == (True, (), {"w": DataVerdict.DIFFERENT})
    assert summary(report) == (
        "no differences in 0 metadata keys and 1 tensor; data of 1 tensor in both: 1 same type, different bytes"
    )


def test_types_without_dequantizer_say_so() -> None:
    report = compare(one_tensor((32, 8), 9, bytes(288)), one_tensor((32, 8), 9, b"\1" * 288))
    (one,) = report.data.tensors
    assert (one.verdict, one.errors, one.note) == (DataVerdict.DIFFERENT, None, "no dequantizer for Q8_1")
    report = compare(one_tensor((256, 8), 230, bytes(4096)), one_tensor((256, 8), 30, bytes(4096)))
    assert report.data.tensors[0].note == "no dequantizer for BF16_R16"  # 8 rows do not divide by 16


def test_unknown_types_compare_by_bytes_without_their_padding() -> None:
    a = made((), [("w", (32,), 4711, b"\1" * 33), ("v", (1,), 0, f32(1))])
    b = made((), [("v", (1,), 0, f32(1)), ("w", (32,), 4711, b"\1" * 33)], alignment=128)
    c = made((), [("w", (32,), 4711, b"\1" * 32 + b"\2"), ("v", (1,), 0, f32(1))])
    assert a.tensors["w"].nbytes != b.tensors["w"].nbytes
    assert verdicts(compare(a, b)) == {"w": DataVerdict.SAME, "v": DataVerdict.SAME}
    assert verdicts(compare(a, c)) == {"w": DataVerdict.DIFFERENT, "v": DataVerdict.SAME}
    longer = made((), [("w", (32,), 4711, b"\1" * 33 + bytes(500)), ("v", (1,), 0, f32(1))])
    assert verdicts(compare(a, longer))["w"] is DataVerdict.DIFFERENT


def test_other_shapes_are_not_compared() -> None:
    report = compare(one_tensor((2,), 0, f32(1, 2)), one_tensor((1, 2), 0, f32(1, 2)))
    assert (report.data.tensors[0].verdict, report.data.tensors[0].note) == (DataVerdict.NOT_COMPARED, "shapes differ")


def test_trailing_ones_are_the_same_shape() -> None:
    assert not compare(one_tensor((2,), 0, f32(1, 2)), one_tensor((2, 1, 1), 0, f32(1, 2))).differs


def test_ignored_tensors_are_not_read() -> None:
    source = Memory(gguf((), [("w", (2,), 0, f32(1, 2))]))
    a, b = model(source), one_tensor((2,), 0, f32(1, 3))
    source.reads.clear()
    report = diff_headers(a, b, DiffOptions(ignore=("w",), data=DataOptions()))
    assert (report.differs, report.data.tensors, source.reads) == (False, (), [])


@pytest.mark.parametrize(("kind", "code"), [(0, "f"), (1, "e"), (28, "d"), (25, "h"), (27, "q"), (30, "H")])
def test_plain_numbers_compare_across_byte_orders(kind: int, code: str) -> None:
    little, big, other = (struct.pack(f"{order}4{code}", *numbers) for order, numbers in (
        ("<", (1, 2, 3, 4)), (">", (1, 2, 3, 4)), (">", (1, 2, 3, 9))))  # fmt: skip
    a = one_tensor((4,), kind, little)
    assert verdicts(compare(a, one_tensor((4,), kind, big, order=">"))) == {"w": DataVerdict.SAME}
    (one,) = compare(a, one_tensor((4,), kind, other, order=">")).data.tensors
    same_order = struct.pack(f"<4{code}", 1, 2, 3, 9)
    (expected,) = compare(a, one_tensor((4,), kind, same_order)).data.tensors
    assert one == expected
    assert one.verdict is DataVerdict.DIFFERENT


def test_blocks_across_byte_orders_are_never_called_the_same() -> None:
    report = compare(one_tensor((32,), 8, bytes(34)), one_tensor((32,), 8, bytes(34), order=">"))
    assert report.differs
    assert verdicts(report) == {"w": DataVerdict.NOT_COMPARED}
    both_big = one_tensor((32,), 8, bytes(34), order=">")
    assert not compare(both_big, both_big).differs


# --- dequantized -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_any_bytes_of_any_type_are_measured_or_refused_in_words(kind: int) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    for data in (b"\xff", b"\x7c", b"\x00"):
        a = one_tensor((block, 3), kind, data * (3 * size))
        (one,) = compare(a, one_tensor((block, 3), 0, f32(*[1.0] * block * 3))).data.tensors
        assert one.errors.elements == block * 3
        assert one.note == ""


def expected_errors(path_a: Path, path_b: Path) -> dict[str, tuple[Any, ...]]:
    """Relative RMSE, cosine and maximal error of each tensor by gguf's own reader and numpy, all at once."""
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    found = {}
    readers = [{t.name: t for t in GGUFReader(path).tensors} for path in (path_a, path_b)]
    for name, tensor in readers[0].items():
        x, y = (
            dequantize(np.asarray(t.data), t.tensor_type).astype(np.float64).ravel() for t in (tensor, readers[1][name])
        )
        relative = np.linalg.norm(x - y) / np.linalg.norm(x)
        found[name] = (relative, x @ y / np.linalg.norm(x) / np.linalg.norm(y), np.abs(x - y).max())
    return found


@pytest.mark.parametrize(
    ("a", "b"), [("llama-Q4_K", "llama-Q8_0"), ("llama-BF16", "llama-IQ4_XS"), ("qwen3moe-Q4_K", "made")]
)
def test_errors_agree_with_gguf_and_numpy(a: str, b: str, tmp_path: Path) -> None:
    paths = [FIXTURES / "engines" / f"tiny-{a}.gguf", FIXTURES / "engines" / f"tiny-{b}.gguf"]
    if b == "made":  # experts in a type that gguf dequantizes
        paths[1] = tmp_path / "made.gguf"
        made_of = ("quantize", paths[0], "--tensor", ".*=q6_K", "--allow-requantize", "-o", paths[1])
        assert run_gguftool(*made_of).returncode == 0
    expected = expected_errors(*paths)
    report = compare(*map(open_model, paths))
    measured = {one.name: one.errors for one in report.data.tensors if one.errors}
    assert len(measured) > 10
    for name, errors in measured.items():
        figures = (errors.relative_rmse, errors.cosine, errors.max_abs_error)
        assert figures == pytest.approx(expected[name], rel=1e-9)
    assert all(expected[one.name][0] == 0 for one in report.data.tensors if one.verdict is DataVerdict.SAME)


def test_chunks_do_not_change_the_figures() -> None:
    paths = [FIXTURES / "engines" / f"tiny-llama-{name}.gguf" for name in ("Q4_K", "BF16")]
    whole = compare(*map(open_model, paths)).data
    chunked = {"chunk_elements": 300, "chunk_bytes": 100}  # no multiples of a block
    pieces = compare(*map(open_model, paths), **chunked).data
    for one, other in zip(whole.tensors, pieces.tensors, strict=True):
        assert (one.name, one.verdict) == (other.name, other.verdict)
        if one.errors:
            assert other.errors.relative_rmse == pytest.approx(one.errors.relative_rmse, rel=1e-9)
            assert other.errors.elements == one.errors.elements


# --- totals ----------------------------------------------------------------------------------------------------------


def layered(numbers: list[tuple[float, float]]) -> Model:
    names = ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_norm.weight", "blk.10.attn_q.weight", "blk.2.x"]
    return made((), [(name, (2,), 0, f32(*pair)) for name, pair in zip(names, numbers, strict=True)])


A = layered([(3, 4), (1, 0), (1, 1), (1, 0), (2, 2)])
B = layered([(3, 0), (0, 0), (1, 1), (1, 1), (2, 2)])


def test_totals_by_layer_are_in_order_and_add_up() -> None:
    data = compare(A, B, By.LAYER).data
    assert [(one.name, one.tensors, one.same, one.measured) for one in data.totals] == [
        ("no layer", 1, 0, 1),
        ("0", 2, 1, 1),
        ("2", 1, 1, 0),
        ("10", 1, 0, 1),
    ]
    assert data.whole.errors.relative_rmse == pytest.approx(math.sqrt((16 + 1 + 1) / (25 + 1 + 1)))
    assert data.whole.errors.max_abs_error == 4
    assert data.totals[2].errors is None


def test_totals_by_role_count_every_tensor_once() -> None:
    from gguftool.model.roles import tensor_place

    data = compare(A, B, By.ROLE).data
    counts = {}
    for name in A.tensors:
        role = tensor_place(name).role.value
        counts[role] = counts.get(role, 0) + 1
    assert {one.name: one.tensors for one in data.totals} == counts
    assert len(counts) >= 3


def test_json_of_errors_is_valid_whatever_they_are() -> None:
    import json

    a, b = one_tensor((2,), 0, f32(float("nan"), 0)), one_tensor((2,), 0, f32(float("inf"), 1))
    found = json.loads(render_json(compare(a, b, By.LAYER)), parse_constant=pytest.fail)
    assert found["data"]["tensors"][0]["errors"]["relative_rmse"] is None


# --- models of the engines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("single", "folder"), [("Q4_K", "mainline-Q4_K"), ("IQ4_KS", "ik-IQ4_KS")])
def test_a_set_holds_the_data_of_the_file_it_was_split_from(single: str, folder: str) -> None:
    a, b = (open_model(FIXTURES / "engines" / name) for name in (f"tiny-llama-{single}.gguf", f"sets/{folder}"))
    report = compare(a, b)
    assert set(verdicts(report).values()) == {DataVerdict.SAME}
    assert not report.differs


@pytest.mark.slow
def test_models_of_the_engines_hold_their_own_data_and_mirror_each_other() -> None:
    opened = [open_model(path) for path in sorted((FIXTURES / "engines").glob("tiny-llama-*.gguf"))]
    for one in opened:
        assert not compare(one, one).differs
    for a, b in combinations(opened, 2):
        forth, back = compare(a, b), compare(b, a)
        assert verdicts(forth) == verdicts(back)
        assert figures(forth) == pytest.approx(figures(back), rel=1e-12)


def figures(report: Any) -> dict[str, Any]:
    """Return the errors that do not depend on which side is which."""
    measured = [one for one in report.data.tensors if one.errors]
    cosines = {f"{one.name}: cosine": one.errors.cosine for one in measured}
    return cosines | {f"{one.name}: max": one.errors.max_abs_error for one in measured}


# --- streaming -------------------------------------------------------------------------------------------------------


@dataclass
class Made(Memory):
    """A head, and behind it bytes that are made when read: a large tensor that takes no room."""

    length: int = 0
    fill: bytes = b"\0"
    largest: int = 0

    @property
    def size(self) -> int:
        return len(self.data) + self.length

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.size
        if offset < len(self.data):
            return (self.data[offset : offset + length]).ljust(length, self.fill)
        self.largest = max(self.largest, length)
        return self.fill * length


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_row_length() -> None:
    elements = 24 << 20  # one row of 96 MiB
    head = gguf((), [("w", (elements,), 0, b"")])
    sources = [Made(head, length=elements * 4, fill=fill) for fill in (b"\0", b"\1")]
    a, b = map(model, sources)
    compare(a, one_tensor((1,), 0, f32(1), name="other"))  # numpy is imported outside the measurement
    tracemalloc.start()
    (one,) = compare(a, b, jobs=1).data.tensors
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one.errors.elements == elements
    assert max(source.largest for source in sources) <= 1 << 20
    assert peak < 24 << 20


def test_progress_adds_up_to_all_bytes() -> None:
    from gguftool.analysis.diff.models import bytes_to_compare

    done = []
    compare(A, B, progress=done.append)
    assert sum(done) == bytes_to_compare(A, B, DiffOptions()) == 5 * 8


class Broken(Memory):
    def read_at(self, offset: int, length: int) -> bytes:
        if getattr(self, "broken", False):
            raise SourceError("cannot read: no such luck", source=self.name)
        return super().read_at(offset, length)


@pytest.mark.filterwarnings("error")
def test_a_read_error_reaches_the_user_and_ends_all_threads() -> None:
    source = Broken(gguf((), [(f"w{n}", (2,), 0, f32(1, n)) for n in range(50)]))
    broken = model(source)
    source.broken = True
    other = made((), [(f"w{n}", (2,), 0, f32(1, n)) for n in range(50)])
    with pytest.raises(SourceError, match="no such luck"):
        compare(broken, other)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
