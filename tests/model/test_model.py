"""How a model and a tensor look and behave in Python: one line each, values by key, data as arrays."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np  # noqa: TID253 - what is tested makes arrays
import pytest

from gguftool.errors import PlanError, SourceError
from gguftool.model.model import Model, Sizing
from gguftool.model.opening import open_model
from gguftool.record import replace
from tests.support import builders as b
from tests.support.hostile_text import HOSTILE
from tests.support.paths import FIXTURES


def _open(folder: Path, data: bytes, name: str = "model.gguf") -> Model:
    (folder / name).write_bytes(data)
    return open_model(folder / name)


@pytest.fixture
def demo() -> Model:
    return open_model(FIXTURES / "demo.gguf")


# --- a model ---------------------------------------------------------------------------------------------------------


def test_a_model_shows_itself_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES)
    assert repr(open_model("demo.gguf")) == "<Model 'demo.gguf': llama, 21 tensors, 1 file, 61,344 bytes>"


def test_a_set_shows_its_files_and_how_many_are_missing(tmp_path: Path) -> None:
    shards = b.shard_set(str(tmp_path / "m"), [[], *([tensor] for tensor in b.llama_tensors())])
    for name, data in list(shards.items())[:-2]:
        Path(name).write_bytes(data)
    model = open_model(tmp_path)
    assert ", 5 files, " in repr(model)
    assert repr(model).endswith(" bytes, 2 shards missing>")
    assert "<tr><th>Missing</th><td>2 shards</td></tr>" in model._repr_html_()


@pytest.mark.parametrize("text", [*HOSTILE, "\x1b" * 4096, "a" * 100_000])
def test_hostile_names_neither_act_nor_fill_the_screen(text: str, tmp_path: Path) -> None:
    kvs = [b.KV("general.architecture", b.STR, text), b.KV("general.name", b.STR, text)]
    tensor = b.tensor(text, "F32", (2, 3))
    model = replace(_open(tmp_path, b.gguf(kvs, [tensor])), name=text)
    (only,) = model.tensors.values()
    for shown in (repr(model), repr(only), model._repr_html_()):
        assert shown.isprintable()
    assert max(len(repr(model)), len(repr(only))) <= 200
    assert len(model._repr_html_()) < 2_000


def test_the_largest_numbers_leave_the_line_short(demo: Model) -> None:
    tensor = next(iter(demo.tensors.values()))
    huge = replace(tensor.info, name="\x1b" * 99, dims=((1 << 63) - 1, 0, (1 << 63) - 1, (1 << 63) - 1))
    assert len(repr(replace(tensor, info=huge))) <= 200


def test_markup_in_a_file_is_text_in_a_notebook(tmp_path: Path) -> None:
    kvs = [b.KV("general.architecture", b.STR, "<b>&"), b.KV("general.name", b.STR, "<script>alert(1)</script>")]
    table = _open(tmp_path, b.gguf(kvs, b.llama_tensors()))._repr_html_()
    assert "<td>&lt;b&gt;&amp;</td>" in table
    assert "<script" not in table


def test_the_table_names_the_largest_types_and_counts_the_others(tmp_path: Path) -> None:
    tensors = [b.Tensor(f"t{number}", (32 * number,), 1_000 + number, bytes(32 * number)) for number in range(1, 11)]
    table = _open(tmp_path, b.gguf(b.llama_kvs(), tensors))._repr_html_()
    assert "1 x type#1010, 1 x type#1009, " in table
    assert "1 x type#1003 and 2 more</td>" in table


def test_a_name_that_is_no_string_is_not_shown(tmp_path: Path) -> None:
    kvs = [b.KV("general.architecture", b.ARR, b.Array(b.U8, bytes(100_000))), b.KV("general.name", b.U32, 7)]
    model = _open(tmp_path, b.gguf(kvs, []))
    assert ": no architecture, 0 tensors, 1 file," in repr(model)
    assert "<th>Name</th>" not in model._repr_html_()


def test_a_key_gives_its_value(tmp_path: Path) -> None:
    model = _open(tmp_path, b.small_model())
    assert model["general.name"] == "Tiny"
    assert model["llama.block_count"] == 1
    assert model["tokenizer.ggml.tokens"] == ["t0", "t1", "t2", "t3"]
    assert model["tokenizer.ggml.add_bos_token"] is True


def test_of_equal_keys_the_first_counts(tmp_path: Path) -> None:
    kvs = [b.KV("twice", b.U32, 1), b.KV("twice", b.U32, 2)]
    assert _open(tmp_path, b.gguf(kvs, []))["twice"] == 1


def test_an_absent_key_is_a_key_error_and_a_tensor_is_said_to_be_one(demo: Model) -> None:
    with pytest.raises(KeyError, match=r"'general\.nme' is not a metadata key\""):
        demo["general.nme"]
    with pytest.raises(KeyError, match=r"but a tensor: model\.tensors\['output\.weight'\]"):
        demo["output.weight"]


def test_in_finds_keys_and_tensors_and_nothing_else(demo: Model) -> None:
    assert "general.name" in demo
    assert "output.weight" in demo
    assert "general.nme" not in demo
    assert "output" not in demo
    assert 0 not in demo


def test_len_counts_tensors_and_a_model_without_any_is_still_a_model(tmp_path: Path, demo: Model) -> None:
    assert len(demo) == 21
    vocabulary = _open(tmp_path, b.gguf(b.llama_kvs(), []))
    assert len(vocabulary) == 0
    assert vocabulary


def test_iterating_a_model_is_refused_as_it_could_mean_two_things(demo: Model) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(demo)  # type: ignore[call-overload]


# --- a tensor --------------------------------------------------------------------------------------------------------


def test_a_tensor_shows_itself_in_one_line(demo: Model) -> None:
    tensor = demo.tensors["blk.0.ffn_gate.weight"]
    assert repr(tensor) == "<Tensor 'blk.0.ffn_gate.weight': Q4_1 (256, 32), 5,120 bytes>"
    assert (tensor.name, tensor.type_name, tensor.nbytes) == ("blk.0.ffn_gate.weight", "Q4_1", 5_120)
    assert tensor.shape == tensor.info.dims[::-1] == (256, 32)


def test_arrays_are_what_the_reference_reads() -> None:
    import gguf

    reader = gguf.GGUFReader(FIXTURES / "demo.gguf")
    expected = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    tensors = open_model(FIXTURES / "demo.gguf").tensors
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        array = tensor.numpy()
        assert array.dtype == np.float32
        assert array.shape == tensor.shape == expected[name].shape
        np.testing.assert_array_equal(array, expected[name].astype(np.float32))


def test_raw_is_the_data_without_padding(tmp_path: Path) -> None:
    wanted = {tensor.name: tensor.data for tensor in b.llama_tensors()}
    model = _open(tmp_path, b.small_model(padding=b"\xff"))
    assert {name: tensor.raw() for name, tensor in model.tensors.items()} == wanted


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "code", "dtype"),
    [(0, "f", "float32"), (24, "b", "int8"), (25, "h", "int16"), (26, "i", "int32"), (27, "q", "int64"),
     (28, "d", "float32")],
)  # fmt: skip
def test_plain_numbers_come_in_either_byte_order(order: str, kind: int, code: str, dtype: str, tmp_path: Path) -> None:
    data = struct.pack(f"{order}6{code}", *range(-3, 3))
    model = _open(tmp_path, b.gguf([], [b.Tensor("t", (3, 2), kind, data)], order=order))
    array = model.tensors["t"].numpy()
    assert array.dtype == dtype
    assert array.dtype.isnative
    assert array.tolist() == [[-3, -2, -1], [0, 1, 2]]


def test_a_scalar_and_an_empty_tensor_are_arrays(tmp_path: Path) -> None:
    tensors = [b.Tensor("scalar", (), 0, struct.pack("<f", 2.5)), b.Tensor("empty", (32, 0), 2)]
    model = _open(tmp_path, b.gguf([], tensors))
    assert model.tensors["scalar"].numpy().shape == ()
    assert model.tensors["scalar"].numpy() == 2.5
    assert model.tensors["empty"].numpy().shape == (0, 32)
    assert model.tensors["empty"].raw() == b""


def test_data_longer_than_a_step_is_decoded_whole(tmp_path: Path) -> None:
    numbers = np.arange(700_000, dtype="<f4")
    model = _open(tmp_path, b.gguf([], [b.Tensor("t", (700_000,), 0, numbers.tobytes())]))
    np.testing.assert_array_equal(model.tensors["t"].numpy(), numbers)


def test_rows_with_a_scale_longer_than_a_step_are_decoded_whole(tmp_path: Path) -> None:
    tensor = b.tensor("t", "IQ4_KS", (4096, 700))
    model = _open(tmp_path, b.gguf([], [tensor]))
    array = model.tensors["t"].numpy()
    row = b.Tensor("t", (4096, 1), tensor.type, tensor.data[-(4 + 16 * 136) :])
    last = _open(tmp_path, b.gguf([], [row]), "row.gguf").tensors["t"].numpy()
    np.testing.assert_array_equal(array[-1:], last)


def test_an_f64_beyond_float32_becomes_an_infinity(tmp_path: Path) -> None:
    model = _open(tmp_path, b.gguf([], [b.Tensor("t", (2,), 28, struct.pack("<2d", 1e300, -1.5))]))
    assert model.tensors["t"].numpy().tolist() == [np.inf, -1.5]


def test_what_cannot_be_dequantized_is_refused_and_raw_still_reads_it(tmp_path: Path) -> None:
    unknown = open_model(FIXTURES / "unknown-type.gguf").tensors["blk.0.attn_k.weight"]
    with pytest.raises(PlanError, match=r"is type#999 of shape \(3, 64\), which cannot be dequantized here"):
        unknown.numpy()
    assert len(unknown.raw()) == unknown.nbytes > 0
    big_endian = open_model(FIXTURES / "big-endian.gguf").tensors["blk.0.attn_q.weight"]
    with pytest.raises(PlanError, match=r"is Q8_0 of shape \(7, 32\), big-endian, which cannot"):
        big_endian.numpy()


def test_a_size_in_doubt_is_refused(tmp_path: Path) -> None:
    wide = [b.tensor("a", "F32", (8,)), b.tensor("b", "F32", (8,), offset=256)]
    tensor = _open(tmp_path, b.gguf([], wide)).tensors["a"]
    assert tensor.sizing is Sizing.CONFLICT
    with pytest.raises(PlanError, match="takes 32 bytes, but its place has 256"):
        tensor.numpy()
    assert tensor.raw() == wide[0].data


def test_dims_that_no_array_can_have_are_refused(tmp_path: Path) -> None:
    tensor = _open(tmp_path, b.gguf([], [b.Tensor("t", (0, (1 << 63) - 1), 0)])).tensors["t"]
    with pytest.raises(PlanError, match="too large for an array"):
        tensor.numpy()


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    tensor = _open(tmp_path, b.small_model()).tensors["token_embd.weight"]
    (tmp_path / "model.gguf").write_bytes(b.small_model() + b"more")
    for read in (tensor.raw, tensor.numpy):
        with pytest.raises(SourceError, match="changed since it was opened"):
            read()


def test_tensors_and_models_are_equal_by_what_they_hold_and_cannot_change(demo: Model) -> None:
    tensor = demo.tensors["output.weight"]
    assert replace(tensor) == tensor
    assert replace(tensor, alignment=64) != tensor
    assert isinstance(hash(tensor), int)
    with pytest.raises(AttributeError):
        tensor.alignment = 64  # type: ignore[misc]
    assert not hasattr(demo, "__dict__")
