"""Importance matrices: both formats, the weights that llama-quantize makes of them, conversion, coverage."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np  # noqa: TID253 - what is tested makes arrays
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.analysis.imatrix import check_imatrix, coverage_of, describe_imatrix
from gguftool.errors import FormatError, GGUFToolError, PlanError
from gguftool.format.imatrix import Imatrix, ImatrixEntry, ImatrixKind, legacy_start, parse_imatrix
from gguftool.format.imatrix_write import losses_of_legacy, same_weights, serialize_gguf, serialize_legacy
from gguftool.model.companions import open_imatrix
from gguftool.model.opening import open_model
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.paths import FIXTURES

UP, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"


def legacy(
    entries: Sequence[tuple[Any, ...]],
    chunks: int | None = 7,
    dataset: bytes | None = b"wiki.txt",
    count: int | None = None,
) -> bytes:
    """A legacy file put together with `struct` alone; entries are (name, calls, values)."""
    parts = [struct.pack("<i", len(entries) if count is None else count)]
    for name, calls, values in entries:
        raw = name if isinstance(name, bytes) else name.encode()
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", calls, len(values))]
        parts.append(struct.pack(f"<{len(values)}f", *values))
    if chunks is not None:
        parts.append(struct.pack("<i", chunks))
    if dataset is not None:
        parts += [struct.pack("<i", len(dataset)), dataset]
    return b"".join(parts)


def gguf(
    entries: Sequence[tuple[Any, ...]],
    *extra: b.Tensor,
    order: str = "<",
    chunk_size: int | None = 512,
    datasets: tuple[str, ...] = ("a.txt", "b.txt"),
) -> bytes:
    """A GGUF imatrix; entries are (name, width, sums, counts)."""
    kvs = [
        b.KV("general.type", b.STR, "imatrix"),
        b.KV("imatrix.datasets", b.ARR, b.Array(b.STR, datasets)),
        b.KV("imatrix.chunk_count", b.U32, 3),
    ]
    kvs += [] if chunk_size is None else [b.KV("imatrix.chunk_size", b.U32, chunk_size)]
    tensors = []
    for name, width, sums, counts in entries:
        for suffix, numbers, columns in ((".in_sum2", sums, width), (".counts", counts, 1)):
            data = struct.pack(f"{order}{len(numbers)}f", *numbers)
            tensors.append(b.Tensor(name + suffix, (columns, len(numbers) // columns), 0, data))
    return b.gguf(tuple(kvs), (*tensors, *extra), order=order)


def one(data: bytes, name: str = UP) -> ImatrixEntry:
    return parse_imatrix(data, "x").entries[name]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_legacy_weights_are_sums_over_calls() -> None:
    made = parse_imatrix(legacy([(UP, 3, [1.0, 2.0, 0.0]), ("other", 1, [5.0])]), "x")
    assert (made.kind, made.datasets, made.chunk_count, made.chunk_size) == (
        ImatrixKind.LEGACY, ("wiki.txt",), 7, None,
    )  # fmt: skip
    assert list(made.entries) == [UP, "other"]
    expected = np.array([[1, 2, 0]], np.float32) / np.float32(3)
    assert np.array_equal(made.entries[UP].weights(), expected)
    assert made.entries[UP].weights().dtype == np.float32


def test_no_calls_means_the_values_as_they_are() -> None:
    assert one(legacy([(UP, 0, [1.5, 2.0])])).weights().tolist() == [[1.5, 2.0]]


@pytest.mark.parametrize(
    ("chunks", "dataset", "said"),
    [(None, None, (None, ())), (5, None, (5, ())), (5, b"", (5, ())), (5, b"a", (5, ("a",)))],
)
def test_older_legacy_files_end_early(
    chunks: int | None, dataset: bytes | None, said: tuple[int | None, tuple[str, ...]]
) -> None:
    made = parse_imatrix(legacy([(UP, 1, [1.0])], chunks, dataset), "x")
    assert (made.chunk_count, made.datasets) == said


@pytest.mark.parametrize("order", ["<", ">"])
def test_gguf_experts_are_divided_one_by_one_and_one_without_data_gets_ones(order: str) -> None:
    made = parse_imatrix(gguf([(EXPERTS, 2, [3, 6, 8, 9, 10, 4], [3, 0, 2])], order=order), "x")
    assert made.entries[EXPERTS].weights().tolist() == [[1, 2], [1, 1], [5, 2]]
    assert (made.kind, made.datasets, made.chunk_count, made.chunk_size) == (
        ImatrixKind.GGUF, ("a.txt", "b.txt"), 3, 512,
    )  # fmt: skip


def test_statistics_beside_the_sums_are_passed_over() -> None:
    statistics = b.tensor(UP + ".in_sum", "F32", (2,))
    assert list(parse_imatrix(gguf([(UP, 2, [1, 2], [1])], statistics), "x").entries) == [UP]


def test_a_tensor_without_dims_is_one_value() -> None:
    tensors = [b.Tensor(UP + end, (), 0, struct.pack("<f", value)) for end, value in ((".in_sum2", 6), (".counts", 2))]
    assert one(gguf([], *tensors)).weights().tolist() == [[3]]


def test_only_the_number_of_values_decides_what_fits() -> None:
    entry = one(legacy([(EXPERTS, 2, [2, 4, 6, 8, 10, 12])]), EXPERTS)
    assert entry.weights_for((2, 64, 3)).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert entry.weights_for((6, 5)).shape == (1, 6)
    assert entry.weights_for((2, 64, 3, 1)).shape == (3, 2)
    for dims in ((3, 2), (2, 3), (6, 1, 6), (), (0, 4), (7,)):
        with pytest.raises(PlanError, match=r"has 6 values in the imatrix, but as a tensor of .* it needs"):
            entry.weights_for(dims)


def test_the_digest_is_the_files(tmp_path: Path) -> None:
    data = legacy([(UP, 1, [1.0])])
    (tmp_path / "i.dat").write_bytes(data)
    assert open_imatrix(tmp_path / "i.dat").digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("engine", ["ml", "ik"])
def test_real_legacy_files(engine: str) -> None:
    path = FIXTURES / "engines" / "zoo" / f"zoo-f32-{engine}.gguf.imatrix.dat"
    made, model = open_imatrix(path), open_model(path.with_name(f"zoo-f32-{engine}.gguf"))
    found = coverage_of(model, made)
    assert (found.covered, found.missing, found.misfits, found.unmatched) == (found.tensors, (), (), ())
    assert found.covered == len(made.entries) > 20
    check_imatrix(made, model, "x")
    assert serialize_legacy(made) == path.read_bytes()
    assert serialize_legacy(parse_imatrix(serialize_gguf(made), "x")) == path.read_bytes()


# --- hostile bytes ---------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
BAD = {
    "empty": (b"", "number of entries"),
    "no entries": (legacy([]), "number of entries is 0"),
    "more entries than bytes": (legacy([(UP, 1, [1.0])], count=1 << 30), "cannot be in the"),
    "one entry too many": (legacy([(UP, 1, [1.0])], None, None, count=2), "truncated or damaged"),
    "no name": (legacy([("", 1, [1.0])]), "length of the name is 0"),
    "endless name": (struct.pack("<ii", 1, 1 << 30) + bytes(100), "length of the name is 1,073,741,824"),
    "negative calls": (legacy([(UP, -1, [1.0])]), "number of calls is -1"),
    "no values": (legacy([(UP, 1, [])]), "number of values is 0"),
    "values cut": (legacy([(UP, 1, [1.0] * 9)], None, None)[:-1], "36 bytes of values expected, but the file ends"),
    "endless values": (struct.pack("<ii4sii", 1, 4, b"name", 1, (1 << 31) - 1) + bytes(9), "truncated or damaged"),
    "name twice": (legacy([(UP, 1, [1.0]), (UP, 1, [1.0])]), "is used twice"),
    "NaN": (legacy([(UP, 1, [1.0, NAN, 2.0])]), "hold NaN"),
    "infinite": (legacy([(UP, 1, [1.0, INF])]), "hold inf"),
    "negative": (legacy([(UP, 1, [1.0, -2.0])]), "hold -2"),
    "negative chunks": (legacy([(UP, 1, [1.0])], -3), "number of chunks is -3"),
    "dataset cut": (legacy([(UP, 1, [1.0])], 3, b"wiki")[:-1], "dataset's name expected"),
    "GGUF of a model": (b.small_model(), "not an imatrix"),
    "GGUF cut": (gguf([(UP, 2, [1, 2], [1])])[:-60], "truncated or damaged"),
    "GGUF NaN": (gguf([(UP, 2, [1, NAN], [1])]), "values hold NaN"),
    "GGUF negative count": (gguf([(UP, 2, [1, 1], [-1])]), "counts hold -1"),
    "GGUF overflow": (gguf([(UP, 2, [3e38, 1], [1e-3])]), "more than a float32"),
    "GGUF other counts": (gguf([(UP, 2, [1, 1], [1, 2, 3])]), "expected width x matrices"),
    "GGUF no counts": (gguf([], b.tensor(UP + ".in_sum2", "F32", (2, 1))), "there is no"),
    "GGUF no sums": (gguf([], b.tensor(UP + ".counts", "F32", (1, 1))), "there is no"),
    "GGUF other type": (
        gguf([], b.tensor(UP + ".in_sum2", "F16", (2, 1)), b.tensor(UP + ".counts", "F32", (1, 1))), "type 1",
    ),
    "GGUF width 0": (
        gguf([], b.Tensor(UP + ".in_sum2", (0, 1), 0), b.tensor(UP + ".counts", "F32", (1, 1))), "0 x 1 values",
    ),
    "GGUF all on one place": (
        gguf([], *(b.Tensor(f"{n}{end}", (dim, 1), 0, bytes(4), offset=0)
                   for n in range(9) for end, dim in ((".in_sum2", 99), (".counts", 1)))), "3,600 bytes of sums",
    ),
    "GGUF nothing": (gguf([]), "has no entries"),
    "GGUF datasets": (gguf([(UP, 1, [1], [1])]).replace(b"imatrix.datasets", b"imatrix.datazets"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_an_error_that_names_file_and_place(name: str) -> None:
    data, message = BAD[name]
    if message is None:  # liberal: nothing that quantizers need is missing
        assert parse_imatrix(data, "bad.dat").datasets == ()
        return
    with pytest.raises(FormatError) as caught:
        parse_imatrix(data, "bad.dat")
    assert message in str(caught.value)
    assert caught.value.source == "bad.dat"
    assert caught.value.where


SOUND = [legacy([(UP, 3, [1.0, 2.0]), ("b", 1, [4.0])]), gguf([(EXPERTS, 2, [3, 6, 8, 9], [3, 0]), (UP, 1, [3], [1])])]


@given(st.sampled_from(SOUND), st.data())
def test_any_bytes_are_an_imatrix_or_an_error(sound: bytes, data: st.DataObject) -> None:
    """Bytes changed, cut, put in: an imatrix whose weights are finite, or an error; never anything else."""
    mutated = bytearray(sound)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(mutated)))
        mutated[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
    _imatrix_or_error(bytes(mutated))


@given(st.binary(max_size=80) | st.binary(max_size=80).map(b"GGUF\3\0\0\0".__add__))
def test_random_bytes_are_an_imatrix_or_an_error(data: bytes) -> None:
    _imatrix_or_error(data)


def _imatrix_or_error(data: bytes) -> None:
    try:
        made = parse_imatrix(data, "x")
    except GGUFToolError:
        return
    assert made.entries
    for entry in made.entries.values():
        assert np.isfinite(entry.weights()).all()
        assert (entry.weights() >= 0).all()


# --- conversion ------------------------------------------------------------------------------------------------------

SUMS = st.floats(0, 2.0**60, width=32)
ENTRIES = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.lists(SUMS, min_size=6, max_size=6),
        st.lists(st.integers(0, 9999), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


def imatrix_of(
    parts: Sequence[tuple[int, list[float], list[int]]], kind: ImatrixKind = ImatrixKind.GGUF, **more: Any
) -> Imatrix:
    entries = {}
    for index, (matrices, sums, counts) in enumerate(parts):
        name = f"blk.{index}.ffn_up_exps.weight"
        array = np.array(sums[: 2 * matrices], "<f4").reshape(matrices, 2)
        entries[name] = ImatrixEntry(name=name, sums=array, counts=np.array(counts[:matrices], "<f4"))
    return Imatrix(entries=entries, kind=kind, **more)


def agree(one: Imatrix, other: Imatrix) -> bool:
    return list(one.entries) == list(other.entries) and all(
        same_weights(entry, other.entries[name]) for name, entry in one.entries.items()
    )


@given(ENTRIES, st.sampled_from([None, 512, 500]))
def test_conversion_keeps_every_weight_to_the_last_bit(
    parts: list[tuple[int, list[float], list[int]]], chunk_size: int | None
) -> None:
    made = imatrix_of(parts, datasets=("a", "b"), chunk_count=3, chunk_size=chunk_size)
    old = parse_imatrix(serialize_legacy(made), "x")
    assert agree(made, old)
    assert (old.kind, old.datasets, old.chunk_count) == (ImatrixKind.LEGACY, ("b",), 3)
    back = parse_imatrix(serialize_gguf(old), "x")
    assert agree(made, back)
    assert (back.kind, back.datasets, back.chunk_count, back.chunk_size) == (ImatrixKind.GGUF, ("b",), 3, 512)
    again = parse_imatrix(serialize_gguf(made), "x")
    assert agree(made, again)
    assert all(np.array_equal(again.entries[name].counts, made.entries[name].counts) for name in made.entries)


CALLS = st.lists(st.tuples(st.integers(1, 3000), st.lists(SUMS, min_size=1, max_size=9)), min_size=1, max_size=3)


@given(CALLS, st.sampled_from([1, 512, 2048]))
def test_legacy_to_gguf_and_back_gives_the_same_bytes(calls: list[tuple[int, list[float]]], chunk_size: int) -> None:
    data = legacy([(f"blk.{index}.x", *entry) for index, entry in enumerate(calls)])
    there = parse_imatrix(serialize_gguf(parse_imatrix(data, "x"), chunk_size), "x")
    assert there.chunk_size == chunk_size
    assert serialize_legacy(there) == data


def test_a_chunk_size_that_would_round_is_refused() -> None:
    made = parse_imatrix(legacy([(UP, 3, [1 / number for number in range(1, 99)])]), "x")
    with pytest.raises(PlanError, match="a power of two such as 512 changes none"):
        serialize_gguf(made, 1000)


def test_a_name_that_llama_cpp_cannot_read_is_refused() -> None:
    with pytest.raises(PlanError, match="longer than the 63 bytes"):
        serialize_gguf(parse_imatrix(legacy([("n" * 56, 1, [1.0])]), "x"))


def test_what_legacy_cannot_hold_is_said() -> None:
    made = imatrix_of([(3, [1.0] * 6, [512, 0, 9])], datasets=("a", "b"), chunk_size=512)
    said = " ".join(losses_of_legacy(made))
    for part in (
        "1 entries have a count for each",
        "1 matrices without data",
        "512 tokens",
        "only the last of 2 datasets",
    ):
        assert part in said
    assert losses_of_legacy(parse_imatrix(serialize_legacy(made), "x")) == ()


def test_gguf_py_reads_what_is_written(tmp_path: Path) -> None:
    reader = pytest.importorskip("gguf", reason="pip install gguf")
    made = imatrix_of(
        [(3, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [512, 0, 9])], datasets=("a", "b"), chunk_count=4, chunk_size=512
    )
    (tmp_path / "i.gguf").write_bytes(serialize_gguf(made))
    read = reader.GGUFReader(tmp_path / "i.gguf")
    assert read.fields["general.type"].contents() == "imatrix"
    assert read.fields["imatrix.datasets"].contents() == ["a", "b"]
    assert [read.fields[f"imatrix.chunk_{key}"].contents() for key in ("count", "size")] == [4, 512]
    found = {tensor.name: tensor.data.tolist() for tensor in read.tensors}
    name = "blk.0.ffn_up_exps.weight"
    assert found == {f"{name}.in_sum2": [[1, 2], [3, 4], [5, 6]], f"{name}.counts": [[512], [0], [9]]}


# --- coverage --------------------------------------------------------------------------------------------------------


def model_of(tmp_path: Path, *tensors: tuple[str, tuple[int, ...]]) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), tuple(b.tensor(name, "F32", dims) for name, dims in tensors)))
    return path


def test_coverage_of_a_model(tmp_path: Path) -> None:
    model = open_model(
        model_of(
            tmp_path,
            ("token_embd.weight", (4, 9)),
            ("blk.0.attn_norm.weight", (4,)),
            (UP, (4, 8)),
            (EXPERTS, (4, 8, 3)),
            ("blk.0.attn_q.weight", (4, 4)),
            ("output.weight", (4, 9)),
        )
    )
    made = parse_imatrix(
        gguf([(UP, 4, [1] * 4, [1]), (EXPERTS, 4, [1] * 8, [5, 0]), ("blk.9.attn_q.weight", 1, [1], [1])]), "x"
    )
    found = coverage_of(model, made)
    assert (found.tensors, found.covered) == (5, 1)
    assert found.missing == ("blk.0.attn_q.weight", "output.weight")
    assert found.embeddings == ("token_embd.weight",)
    assert found.unmatched == ("blk.9.attn_q.weight",)
    assert found.misfits == (f"'{EXPERTS}' has 8 values in the imatrix, but as a tensor of 4 x 8 x 3 it needs 12",)
    with pytest.raises(PlanError, match="another model") as caught:
        check_imatrix(made, model, "i.gguf")
    assert caught.value.problems == found.misfits
    check_imatrix(made, model, "i.gguf", lambda name: name == UP)
    report = describe_imatrix("i.gguf", made, model=model)
    assert (report.matrices, report.matrices_without_data) == (4, 1)
    experts = report.tensors[1]
    assert (experts.matrices, experts.values, experts.least, experts.most, experts.without_data) == (2, 8, 0, 5, (1,))


def test_an_imatrix_of_another_model_says_what_both_hold(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="none of its 1 entries is a tensor of") as caught:
        check_imatrix(
            parse_imatrix(legacy([("x.weight", 1, [1])]), "x"), open_model(model_of(tmp_path, (UP, (4, 8)))), "i"
        )
    assert caught.value.problems == ("entries are x.weight", f"tensors are {UP}")


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "i.dat").write_bytes(legacy([(UP, 2, [2, 4, 6, 8])]))
    (tmp_path / "i.gguf").write_bytes(gguf([(EXPERTS, 2, [3, 6, 8, 9, 10, 4], [3, 0, 2])]))
    model_of(tmp_path, (UP, (4, 8)))
    return tmp_path


def run(cwd: Path, *args: str) -> tuple[int, str, str]:
    done = run_gguftool(*args, cwd=cwd)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("command", [("imatrix", "show"), ("dump",), ("report",)])
@pytest.mark.parametrize("name", ["i.dat", "i.gguf"])
def test_show_dump_and_report_show_either_form(files: Path, command: tuple[str, ...], name: str) -> None:
    code, out, _ = run(files, *command, name)
    assert code == 0
    assert f"{name}: an importance matrix" in out
    assert "7 chunks; datasets: wiki.txt" in out or "3 chunks of 512 tokens; datasets: a.txt, b.txt" in out
    assert UP in out or "1 of 3 (1)    blk.0.ffn_up_exps.weight" in out
    code, out, _ = run(files, *command, name, "--json")
    report = json.loads(out)
    report = report["imatrix"] if command == ("dump",) and name == "i.gguf" else report
    assert [one["name"] for one in report["tensors"]] in ([UP], [EXPERTS])
    for form in ("--markdown", "--csv"):
        code, out, _ = run(files, *command, name, form)
        assert code == 0
        assert "ffn_up" in out


def test_dump_still_shows_the_head_of_a_damaged_imatrix(files: Path) -> None:
    data = gguf([(UP, 1, [math.nan], [1])])
    (files / "bad.gguf").write_bytes(data)
    code, out, err = run(files, "dump", "bad.gguf")
    assert code == 0
    assert "blk.0.ffn_up.weight.in_sum2" in out
    assert "note: damaged imatrix: bad.gguf (tensor 'blk.0.ffn_up.weight.in_sum2', offset" in err
    code, _, err = run(files, "imatrix", "show", "bad.gguf")
    assert (code, err.count("\n")) == (2, 1)


def test_show_with_a_model_says_what_each_engine_takes_for_missing_entries(files: Path) -> None:
    gate, up, other = (f"blk.0.{part}.weight" for part in ("ffn_gate_exps", "ffn_up_exps", "attn_q"))
    model_of(files, (gate, (4, 8)), (up, (4, 8)), (other, (4, 8)))
    (files / "i.dat").write_bytes(legacy([(up, 2, [2, 4, 6, 8])]))
    lines = run(files, "imatrix", "show", "i.dat", "--model", "model.gguf")[1].splitlines()
    assert "  llama.cpp quantizes these without weights" in lines
    taken = f"ik_llama.cpp takes the entry of another tensor for 1 of these: {gate} <- {up}; 1 without weights"
    assert f"  {taken}" in lines


def test_show_with_a_model_names_what_is_covered_missing_and_unmatched(files: Path) -> None:
    model_of(files, (UP, (4, 8)), ("token_embd.weight", (4, 8)), ("blk.0.attn_q.weight", (4, 8)))
    (files / "i.dat").write_bytes(legacy([(UP, 2, [2, 4, 6, 8]), ("blk.7.x.weight", 1, [1])]))
    code, out, _ = run(files, "imatrix", "show", "i.dat", "--model", "model.gguf")
    assert code == 0
    assert out.splitlines()[3:7] == [
        "model.gguf: 1 of 3 tensors to quantize are covered",
        "  looked up, so they never have weights: token_embd.weight",
        "  without an entry: blk.0.attn_q.weight",
        "  entries that match no tensor of the model: blk.7.x.weight",
    ]
    (files / "i.dat").write_bytes(legacy([(UP, 2, [2, 4])]))
    out = run(files, "imatrix", "show", "i.dat", "--model", "model.gguf")[1]
    assert "model.gguf: 0 of 3 tensors" in out
    assert f"  does not fit: '{UP}' has 2 values in the imatrix, but as a tensor of 4 x 8 it needs 4\n" in out


def test_check_knows_a_legacy_imatrix(files: Path) -> None:
    code, out, _ = run(files, "check", "i.dat")
    assert code == 2
    assert "N12" in out
    said = " ".join(out.split())
    assert "an importance matrix in the old format: 1 entries, the first for blk.0.ffn_up.weight" in said


def test_convert_by_suffix_and_by_option(files: Path) -> None:
    assert run(files, "imatrix", "convert", "i.dat", "-o", "out.gguf")[0] == 0
    assert agree(open_imatrix(files / "i.dat"), open_imatrix(files / "out.gguf"))
    code, _, err = run(files, "imatrix", "convert", "i.gguf", "-o", "out.bin", "--to", "legacy")
    assert code == 0
    assert "note: 1 matrices without data" in err
    assert agree(open_imatrix(files / "i.gguf"), open_imatrix(files / "out.bin"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("i.dat", "-o", "out.bin"), "give --to legacy or --to gguf"),
        (("i.dat", "-o", "out.dat"), "is already in the legacy format"),
        (("i.dat", "-o", "out.dat", "--to", "legacy", "--chunk-size", "5"), "--chunk-size is for GGUF"),
        (("i.dat", "-o", "x.gguf", "--to", "ggml"), "--to takes legacy or gguf"),
        (("i.dat", "-o", "i.gguf"), "exists"),
        (("model.gguf", "-o", "out.dat"), "not an imatrix"),
        (("i.dat", "-o", "i.dat", "--to", "gguf", "--force"), "i.dat"),
    ],
)
def test_convert_refuses(files: Path, arguments: tuple[str, ...], said: str) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    code, _, err = run(files, "imatrix", "convert", *arguments)
    assert code == 2
    assert said in err
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_a_dry_run_writes_nothing(files: Path) -> None:
    code, out, _ = run(files, "imatrix", "convert", "i.dat", "-o", "out.gguf", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["outputs"][0][0] == "out.gguf"
    assert not (files / "out.gguf").exists()


@pytest.mark.parametrize("head", [b"", bytes(16), b"GGUF" + bytes(60), struct.pack("<ii", 1, 200) + b"x" * 300])
def test_other_files_do_not_look_like_an_imatrix(head: bytes) -> None:
    assert legacy_start(head) is None
