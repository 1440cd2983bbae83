"""Edits: types that stay, elements of arrays, special tokens, and changes in place."""

from __future__ import annotations

import math
import shlex
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import gguftool
from gguftool.errors import PlanError
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.surgery.edit.plan import Edits, edited
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool

TOKENS = ("<unk>", "<s>", "</s>", "a", "a", "<|im_end|>")


def array(key: str, element: int, items: list[Any] | tuple[Any, ...]) -> b.KV:
    return b.KV(key, b.ARR, b.Array(element, items))


KVS = (
    b.KV("general.architecture", b.STR, "llama"),
    b.KV("general.name", b.STR, "A long enough name for a demo"),
    b.KV("llama.block_count", b.U32, 2),
    b.KV("llama.context_length", b.U32, 2),
    b.KV("x.small", b.U8, 1),
    b.KV("x.wide", b.I64, 1),
    b.KV("x.eps", b.F32, 0.5),
    b.KV("x.flag", b.BOOL, False),
    b.KV("x[3]", b.U32, 1),
    b.KV("x.a=b", b.STR, "c"),
    array("x", b.I32, [1, 2, 3, 4, 5]),
    array("x.empty", b.I32, []),
    array("x.floats", b.F32, [0.5]),
    array("x.deep", b.ARR, [b.Array(b.I32, [1])]),
    array("tokenizer.ggml.tokens", b.STR, TOKENS),
    array("tokenizer.ggml.token_type", b.I32, [2, 3, 3, 1, 1, 3]),
    b.KV("tokenizer.ggml.eos_token_id", b.U32, 2),
)


@pytest.fixture(params=["<", ">"], ids=["little", "big"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(KVS, [b.tensor("token_embd.weight", "F32", (8, 6))], order=request.param))
    return path


def after(model: Path, *settings: str, **edits: Any) -> dict[str, KV]:
    out = model.with_name("out.gguf")
    out.unlink(missing_ok=True)
    gguftool.execute(gguftool.plan_edit(model, Edits(settings=settings, **edits), out))
    return {kv.key: kv for kv in gguftool.open_model(out).kvs}


@pytest.mark.parametrize(
    ("setting", "key", "kind", "value"),
    [
        ("general.name=Foo", "general.name", ValueType.STRING, "Foo"),
        ("general.name=https://example.org/x", "general.name", ValueType.STRING, "https://example.org/x"),
        (r"general.name=C:\x", "general.name", ValueType.STRING, r"C:\x"),
        ("general.name=str:u32:5", "general.name", ValueType.STRING, "u32:5"),
        ("general.name=U32:5", "general.name", ValueType.STRING, "U32:5"),
        ("general.name=", "general.name", ValueType.STRING, ""),
        ("general.name=a=b\nc", "general.name", ValueType.STRING, "a=b\nc"),
        ("x.a=b=d", "x.a=b", ValueType.STRING, "d"),
        ("llama.context_length=7", "llama.context_length", ValueType.UINT32, 7),
        ("llama.context_length=int:7", "llama.context_length", ValueType.UINT32, 7),
        ("x.wide=int:-7", "x.wide", ValueType.INT64, -7),
        ("x.small=255", "x.small", ValueType.UINT8, 255),
        ("x.eps=1", "x.eps", ValueType.FLOAT32, 1.0),
        ("x.eps=float:-inf", "x.eps", ValueType.FLOAT32, -math.inf),
        ("x.flag=bool:true", "x.flag", ValueType.BOOL, True),
        ("x[3]=9", "x[3]", ValueType.UINT32, 9),
        ("x[2]=9", "x", ValueType.ARRAY, [1, 2, 9, 4, 5]),
        ("x[-1]=int:9", "x", ValueType.ARRAY, [1, 2, 3, 4, 9]),
        ("x=[]", "x", ValueType.ARRAY, []),
        ("x.empty=[1]", "x.empty", ValueType.ARRAY, [1]),
        ("x.floats=[1, Infinity]", "x.floats", ValueType.ARRAY, [1.0, math.inf]),
        ("tokenizer.ggml.tokens[1]=<bos>", "tokenizer.ggml.tokens", ValueType.ARRAY, ["<unk>", "<bos>", *TOKENS[2:]]),
        ("new.key=i8[]:[-1]", "new.key", ValueType.ARRAY, [-1]),
    ],
)
def test_a_setting_changes_the_value_and_keeps_the_type(
    model: Path, setting: str, key: str, kind: ValueType, value: object
) -> None:
    before = {kv.key: kv for kv in gguftool.open_model(model).kvs}
    now = after(model, setting)
    assert (now[key].type, now[key].value()) == (kind, value)
    assert {name: kv for name, kv in now.items() if name != key} == {n: kv for n, kv in before.items() if n != key}


def test_nan_is_a_value(model: Path) -> None:
    assert math.isnan(after(model, "x.eps=nan")["x.eps"].value())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("llama.block_count=str:2", "'llama.block_count' is u32, not str: leave the type out"),
        ("llama.block_count=i64:2", "u32, not i64"),
        ("llama.block_count=float:2", "u32, not float"),
        ("general.name=u32:3", "str: in front makes the whole text the value"),
        ("x=i64[]:[1]", r"i32\[\], not i64\[\]"),
        ("x=i32:1", r"i32\[\], not i32:"),
        ("x.small=256", "256 does not fit u8, which goes from 0 to 255"),
        ("x.small=-1", "-1 does not fit u8"),
        ("x[0]=2147483648", "does not fit i32, which goes from -2147483648 to 2147483647"),
        ("x=[1,-2147483649]", "does not fit i32"),
        ("x.eps=1e39", "too large for f32"),
        ("x.eps=1e400", "not a number of type f32"),
        ("x.small=1.5", "'1.5' is not a whole number of type u8"),
        ("x.flag=yes", "'yes' is not true or false"),
        ("x[5]=1", r"'x' has 5 elements, \[0\] to \[4\]: \[5\] is out of range"),
        ("x[-6]=1", r"\[-6\] is out of range"),
        ("x.empty[0]=1", "'x.empty' has no elements"),
        ("x.deep[0]=1", "array of arrays"),
        ("x.deep=[[1]]", "array of arrays"),
        ("x[0]=i64:1", "elements of 'x' are i32, not i64"),
        ("x.small[0]=1", "'x.small' is u8, not an array"),
        ("tokenizer.ggml.token_typ[1]=3", r"did you mean 'tokenizer.ggml.token_type'"),
        ("new.key=Foo", r"--set new.key=str:Foo, --set new.key=u32:1, --set 'new.key=f32\[\]:\[0.5, 1\]'"),
        ("new.key=int:3", "a new one needs a type"),
        ("general.alignment=64", "merge --align N"),
        ("nothing", "is not of the form --set KEY="),
    ],
)
def test_what_does_not_fit_is_refused(model: Path, setting: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        after(model, setting)


def test_a_forced_type_and_a_new_length_are_remarks(model: Path) -> None:
    edits = Edits(settings=("x.small=str:2", "x=[1]"), force_type=True)
    plan = gguftool.plan_edit(model, edits, model.with_name("out.gguf"))
    assert plan.remarks[:2] == ("'x.small' was u8 and is now str", "'x' had 5 element(s) and now has 1")
    assert [text.partition(" (")[0] for text in plan.remarks[2:]] == ["errors of the input remain"]
    value = make_kv("x.eps", ValueType.FLOAT64, 1.0)
    with pytest.raises(PlanError, match="f32, not f64"):
        edited([make_kv("x.eps", ValueType.FLOAT32, 1.0)], Edits(values=(value,)))


def test_the_last_of_several_settings_counts(model: Path) -> None:
    now = after(model, "x[0]=7", "x[1]=8", "x[0]=9", "x.floats[0]=3", "x.floats=[1]")
    assert now["x"].value() == [9, 8, 3, 4, 5]
    assert now["x.floats"].value() == [1.0]


def test_renames_and_removals_of_unknown_keys_name_the_nearest(model: Path) -> None:
    for edits in (Edits(remove=("general.nam",)), Edits(remove=("name",)), Edits(rename=(("general.nmae", "y"),))):
        with pytest.raises(PlanError, match=r"did you mean 'general\.name'"):
            gguftool.plan_edit(model, edits, model.with_name("out.gguf"))
    dumped = run_gguftool("dump", model, "--key", "general.nmae")
    assert "did you mean 'general.name'" in one_error_line(dumped.stderr)


@pytest.mark.parametrize(
    ("spelled", "content", "key", "value"),
    [
        ("general.name=@", b"no\0text \xff\n", "general.name", "no\0text \udcff\n"),
        ("general.name=str:@", b"T", "general.name", "T"),
        ("general.name=", b"T", "general.name", "T"),
        ("tokenizer.chat_template=@", b"{{ x }}", "tokenizer.chat_template", "{{ x }}"),
        ("tokenizer.ggml.token_type=@", b"[1, 1,\n1, 1, 1, 3]\n", "tokenizer.ggml.token_type", [1, 1, 1, 1, 1, 3]),
        ("x=i32[]:@", b"[4]", "x", [4]),
        ("x.small=@", b"7\n", "x.small", 7),
        ("x.flag=@", b"true\n", "x.flag", True),
    ],
)
def test_a_file_gives_a_value_of_the_keys_type(
    model: Path, spelled: str, content: bytes, key: str, value: object
) -> None:
    file = model.with_name("value")
    file.write_bytes(content)
    assert after(model, file_settings=(f"{spelled}{file}",))[key].value() == value


def test_a_file_does_not_change_a_type(model: Path) -> None:
    file = model.with_name("value")
    file.write_bytes(b"text")
    with pytest.raises(PlanError, match="written as a JSON list"):
        after(model, file_settings=(f"x=@{file}",))
    with pytest.raises(PlanError, match=r"i32\[\], not str"):
        after(model, file_settings=(f"x=str:@{file}",))


def test_an_element_changes_a_list_from_a_file(model: Path) -> None:
    file = model.with_name("value")
    file.write_bytes(b"[7, 8, 9]")
    assert after(model, "x[0]=1", file_settings=(f"x=@{file}",))["x"].value() == [1, 8, 9]


def test_a_value_comes_from_one_place(model: Path) -> None:
    file = model.with_name("value")
    file.write_bytes(b"[7, 8, 9]")
    with pytest.raises(PlanError, match="'x' is given by --set and by --set-file"):
        after(model, "x=[1]", file_settings=(f"x=@{file}",))


def test_keys_that_stand_more_than_once_are_not_dropped_without_a_remark() -> None:
    twice = [make_kv("x", ValueType.STRING, value) for value in ("first", "second")]
    result = edited(twice, Edits(settings=("x=new",)))
    assert [kv.value() for kv in result.kvs] == ["new"]
    assert result.remarks == ("'x' was in the metadata 2 times and is now there once",)


def test_a_special_token_is_set_by_its_text(model: Path) -> None:
    now = after(model, tokens=(("eos", "<|im_end|>"), ("pad", "<unk>")))
    assert now["tokenizer.ggml.eos_token_id"].value() == 5
    pad = now["tokenizer.ggml.padding_token_id"]
    assert (pad.type, pad.value()) == (ValueType.UINT32, 0)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("eos", "<im_end>", r"no token has the text '<im_end>'; did you mean '<\|im_end\|>'"),
        ("eos", "a", "2 tokens have the text 'a': 3, 4; --set tokenizer.ggml.eos_token_id=u32:ID"),
        ("eos", "5", "--set tokenizer.ggml.eos_token_id=5"),
        ("oes", "</s>", "'oes' is not a special token; those are bos, eos"),
    ],
)
def test_a_token_that_is_not_clear_is_refused(model: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        after(model, tokens=((name, text),))


def test_elements_of_a_large_vocabulary_cost_no_more_than_reading_it() -> None:
    count = 262_144
    kinds = make_kv("kinds", ValueType.ARRAY, [1] * count, element=ValueType.INT32)
    words = make_kv("words", ValueType.ARRAY, [f"w{n}" for n in range(count)], element=ValueType.STRING)
    settings = [f"{key}[{index}]=3" for key in ("kinds", "words") for index in range(0, count, count // 64)]
    start = time.process_time()
    result = edited([kinds, words], Edits(settings=tuple(settings)))
    assert time.process_time() - start < 3  # one pass a setting over the strings takes 64 times as long
    old = bytearray(kinds.raw)
    for index in range(0, count, count // 64):
        struct.pack_into("<i", old, 12 + 4 * index, 3)
    assert result.kvs[0].raw == bytes(old)
    assert result.kvs[1].value()[count // 64 : count // 64 + 2] == ["3", f"w{count // 64 + 1}"]


def test_order_of_bytes_is_the_models() -> None:
    kvs = [make_kv("x", ValueType.UINT32, 1, byte_order=ByteOrder.BIG)]
    assert edited(kvs, Edits(settings=("x=2",)), ByteOrder.BIG).kvs[0].raw == b"\0\0\0\2"


def test_a_shorter_value_goes_in_place(model: Path) -> None:
    size = model.stat().st_size
    tensor = gguftool.open_model(model).tensors["token_embd.weight"].raw()
    for name in ("N", "A long enough name for a demo", "Another"):
        done = run_gguftool("edit", model, "--set", f"general.name={name}", "--in-place")
        assert done.returncode == 0, done.stderr
        opened = gguftool.open_model(model)
        assert opened["general.name"] == name
        assert model.stat().st_size == size
        assert opened.tensors["token_embd.weight"].raw() == tensor


def test_what_does_not_fit_in_place_names_the_command_that_does_it(model: Path) -> None:
    text = "it's " + "n" * 200
    refused = run_gguftool("edit", model, "--set", f"general.name={text}", "--set-token", "eos=</s>", "--in-place")
    command = one_error_line(refused.stderr).partition("next edit in place: '")[2].rstrip("'\n")
    done = run_gguftool(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    edited_model = gguftool.open_model(model.with_name("m-new.gguf"))
    assert edited_model["general.name"] == text
    assert edited_model["tokenizer.ggml.eos_token_id"] == 2
