"""Diff of headers: what differs, what does not count, mirror images, hostile input, and every output format."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gguftool.analysis.diff.metadata import KVChange
from gguftool.analysis.diff.models import DiffOptions, HeaderDiff, diff_headers
from gguftool.analysis.diff.tensors import Change, TensorChange
from gguftool.analysis.diff.text import text_difference
from gguftool.cli.app import app
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.render.diff.csv import render_diff_csv
from gguftool.render.diff.text import render_diff_markdown, summary
from gguftool.render.format import Format
from gguftool.render.registry import parts_of, render
from tests.support import builders
from tests.support.command import run_gguftool
from tests.support.counted_work import LINEAR, growth
from tests.support.diff_models import ARRAY, BOOL, F32, F64, I32, STRING, U32, Memory, f32, gguf, made, model
from tests.support.paths import FIXTURES, GOLDEN, REPO

LAYOUT = DiffOptions(layout=True)
HOSTILE = "x\x1b[31m\n|`\u202e<script>\udcff"


def changes(a: Model, b: Model, **options: Any) -> dict[str, Any]:
    return {change.key: change for change in diff_headers(a, b, DiffOptions(**options)).metadata}


# --- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_added_removed_changed() -> None:
    found = changes(
        made([("same", U32, 1), ("gone", STRING, "x"), ("other", U32, 7)]),
        made([("other", U32, 8), ("same", U32, 1), ("new", BOOL, 1)]),
    )
    assert {key: change.change for key, change in found.items()} == {
        "gone": Change.REMOVED,
        "other": Change.CHANGED,
        "new": Change.ADDED,
    }
    assert (found["other"].old.value, found["other"].new.value) == (7, 8)
    assert found["gone"].new is None
    assert found["new"].new.value is True


def test_same_number_of_another_type_differs() -> None:
    found = changes(made([("k", U32, 8)]), made([("k", I32, 8)]))["k"]
    assert (found.old.type, found.new.type) == ("UINT32", "INT32")


def test_token_array_names_entry_and_counts_the_others() -> None:
    old = [f"<{i}>" for i in range(1000)]
    new = [*old, "more"]
    new[151], new[700] = "x", "y"
    array = changes(made([("t", ARRAY, (STRING, old))]), made([("t", ARRAY, (STRING, new))]))["t"].array
    assert (array.differing, array.old_count, array.new_count) == (2, 1000, 1001)
    assert [(entry.index, entry.old, entry.new) for entry in array.entries] == [
        (151, "<151>", "x"),
        (700, "<700>", "y"),
    ]


def test_number_arrays_differ_at_chunk_borders() -> None:
    old = list(range(100_000))
    new = [*old[:-1], 5]
    new[16383] = new[16384] = 0  # the last number of the first 64 KiB and the one behind it
    array = changes(made([("n", ARRAY, (I32, old))]), made([("n", ARRAY, (I32, new))]))["n"].array
    assert [entry.index for entry in array.entries] == [16383, 16384, 99_999]
    assert array.differing == 3


def test_array_that_only_grew_says_so() -> None:
    a, b = made([("t", ARRAY, (I32, [1, 2]))]), made([("t", ARRAY, (I32, [1, 2, 3]))])
    assert "2 -> 3 entries; the first 2 are the same" in render(diff_headers(a, b), Format.TEXT)


def test_equal_arrays_are_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [("t", ARRAY, (STRING, [f"token {i}" for i in range(262_144)]))]
    a, b = made(tokens), made(tokens)
    monkeypatch.setattr("gguftool.format.kv._decode", pytest.fail)
    monkeypatch.setattr("gguftool.format.values._entries", pytest.fail)
    assert not diff_headers(a, b).differs


def test_nan_equals_itself_and_not_a_number() -> None:
    nan = made([("f", F32, float("nan")), ("a", ARRAY, (F64, [float("nan"), 1.0]))])
    assert not diff_headers(nan, nan).differs
    assert set(changes(nan, made([("f", F32, 1.0), ("a", ARRAY, (F64, [float("nan"), 2.0]))]))) == {"f", "a"}


def test_repeated_keys_are_paired_in_order() -> None:
    a = made([("k", U32, 1), ("k", U32, 2)])
    report = diff_headers(a, made([("k", U32, 1), ("k", U32, 3)]))
    assert [(change.key, change.occurrence, change.new.value) for change in report.metadata] == [("k", 2, 3)]
    assert "k (occurrence 2)" in render(report, Format.TEXT)


KINDS_OF_VALUES = [
    ("u", U32, 0x01020304),
    ("f", F32, 0.5),
    ("nan", F64, struct.pack("<Q", 0x7FF8_0000_0000_0123)),
    ("s", STRING, "text"),
    ("ints", ARRAY, (I32, [1, -2, 3])),
    ("strings", ARRAY, (STRING, ["a", "", "ccc"])),
    ("nested", ARRAY, (ARRAY, [(STRING, ["a"]), (U32, [1, 2]), (ARRAY, [])])),
]


def test_other_byte_order_is_no_difference() -> None:
    little = made(KINDS_OF_VALUES, [("w", (4,), 0, f32(1, 2, 3, 4))])
    big = made(KINDS_OF_VALUES, [("w", (4,), 0, f32(1, 2, 3, 4, order=">"))], order=">")
    assert not diff_headers(little, big).differs
    assert [change.what for change in diff_headers(little, big, LAYOUT).layout] == ["byte order"]


@pytest.mark.parametrize("key", [entry[0] for entry in KINDS_OF_VALUES])
def test_other_byte_order_hides_no_difference(key: str) -> None:
    other = {
        "u": 1,
        "f": 2.0,
        "nan": b"\0" * 8,
        "s": "tex7",
        "ints": (I32, [1, -2, 4]),
        "strings": (STRING, ["b", "", "ccc"]),
    }
    other["nested"] = (ARRAY, [(STRING, ["a"]), (U32, [1, 3]), (ARRAY, [])])
    big = made([(k, kind, other[k] if k == key else v) for k, kind, v in KINDS_OF_VALUES], order=">")
    assert set(changes(made(KINDS_OF_VALUES), big)) == {key}


# --- long texts ------------------------------------------------------------------------------------------------------

TEMPLATE = "\n".join(f"{{%- line {i} %}}" for i in range(40))


def apply_unified(old: str, lines: tuple[str, ...]) -> str:
    """Apply a unified diff as `patch` does, believing its line numbers."""
    source, out, pos = old.split("\n"), [], 0
    for line in lines:
        if line.startswith("@@"):
            start, count = map(int, line.split()[1][1:].split(","))
            begin = start - 1 if count else start
            out += source[pos:begin]
            pos = begin
        elif line[0] == "+":
            out.append(line[1:])
        else:
            assert source[pos] == line[1:]
            if line[0] == " ":
                out.append(source[pos])
            pos += 1
    return "\n".join([*out, *source[pos:]])


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "@@ x", "-d"]), max_size=30).map("\n".join)


@given(LINES, LINES)
def test_text_diff_can_be_applied_both_ways(old: str, new: str) -> None:
    if old != new:
        assert apply_unified(old, text_difference(old, new).lines) == new
        assert apply_unified(new, text_difference(new, old).lines) == old


def test_template_is_shown_as_text_diff() -> None:
    new = TEMPLATE.replace("line 20 ", "LINE ")
    text = changes(made([("t", STRING, TEMPLATE)]), made([("t", STRING, new)]))["t"].text
    assert text.lines == (
        "@@ -18,7 +18,7 @@",
        *(f" {{%- line {i} %}}" for i in (17, 18, 19)),
        "-{%- line 20 %}",
        "+{%- LINE %}",
        *(f" {{%- line {i} %}}" for i in (21, 22, 23)),
    )


def test_text_on_one_long_line_shows_where_it_parts() -> None:
    old = "x" * 5000 + "OLD" + "y" * 5000
    text = text_difference(old, old.replace("OLD", "NEW"))
    assert (text.at, text.lines) == (5000, ())
    assert "OLD" in text.old_excerpt
    assert "NEW" in text.new_excerpt
    assert len(text.old_excerpt) < 200


@pytest.mark.parametrize("line", ["x", "x\ny", "\n"])
def test_huge_texts_take_bounded_time(line: str) -> None:
    def compare(size: int) -> None:
        old, new = f"{line}\n" * (3 * size), f"{line}\nz\n" * (2 * size)
        text_difference(old, new)
        text_difference(old, old + "tail")

    assert growth(compare, 12_500, runs=3) < LINEAR


# --- tensors ---------------------------------------------------------------------------------------------------------

Q8_0, Q4_0 = 8, 2


def layers(
    kind: int, numbers: Iterable[int], size: int, name: str = "ffn_down_exps.weight"
) -> list[tuple[str, tuple[int, ...], int, bytes]]:
    return [(f"blk.{n}.{name}", (32, 2), kind, bytes(size)) for n in numbers]


def test_types_are_grouped_over_layers() -> None:
    a = made((), [*layers(Q4_0, range(14), 36), *layers(0, range(14), 256, "attn_q.weight")])
    b_layers = [n for n in range(14) if n != 7 and n != 6]
    b = made(
        (),
        [*layers(Q8_0, b_layers, 68), *layers(Q4_0, [6, 7], 36), *layers(0, range(14), 256, "attn_q.weight")],
    )
    report = diff_headers(a, b)
    (group,) = report.groups
    assert (group.name, group.tensors, group.bytes_change) == ("blk.*.ffn_down_exps.weight", 12, 12 * 32)
    text = render(report, Format.TEXT)
    assert text.splitlines()[0] == "12 tensors differ; B is 384 B larger"
    assert "Q4_0 -> Q8_0  in 12 layers (0-5, 8-13)" in text
    assert "+384 B" in text


def test_trailing_ones_are_no_difference_but_shapes_are() -> None:
    a = made((), [("w", (4, 2, 1), 0, bytes(32)), ("v", (4, 2), 0, bytes(32))])
    b = made((), [("w", (4, 2), 0, bytes(32)), ("v", (2, 4), 0, bytes(32))])
    report = diff_headers(a, b)
    assert [(change.name, change.shape_changed, change.type_changed) for change in report.tensors] == [
        ("v", True, False)
    ]
    assert "4 x 2 -> 2 x 4" in render(report, Format.TEXT)
    assert "spelling of dims" in [change.what for change in diff_headers(a, b, LAYOUT).layout]


def test_names_that_look_like_a_group_stay_apart() -> None:
    tensors = [("blk.*.w", (1,), 0, bytes(4)), ("blk.1.w", (1,), 0, bytes(4)), (f"blk.{'9' * 5000}.w", (0,), 0, b"")]
    groups = diff_headers(made((), tensors), made()).groups
    assert [(group.name, group.tensors, group.layers) for group in groups[:2]] == [
        ("blk.*.w", 1, ()),
        ("blk.*.w", 1, (1,)),
    ]
    assert len(groups) == 3


def test_ignore_leaves_out_keys_and_tensors() -> None:
    a, b = made([("general.name", STRING, "a")], [("w", (1,), 0, bytes(4))]), made([("general.name", STRING, "b")])
    assert diff_headers(a, b, DiffOptions(ignore=("name$", "^w"))).differs is False
    assert diff_headers(a, b, DiffOptions(ignore=("name$",))).differs is True


def test_layout_counts_only_when_asked() -> None:
    kvs, tensors = [("k", U32, 1), ("l", U32, 2)], [("v", (4,), 0, f32(1, 2, 3, 4)), ("w", (1,), 0, f32(5))]
    extra = [("split.count", 2, 0), ("gguftool.padding", ARRAY, (0, [0] * 99)), ("gguftool.tensor_order", STRING, "x")]
    a, b = made(kvs, tensors), made([*extra, *kvs[::-1]], tensors[::-1], alignment=4096, version=2)
    assert not diff_headers(a, b).differs
    report = diff_headers(a, b, LAYOUT)
    assert {change.what for change in report.layout} == {
        "GGUF version",
        "alignment",
        "data offset of the first file",
        "order of metadata keys",
        "order of tensors",
        "offset in the data",
    }
    assert {change.key for change in report.metadata} == {
        "general.alignment",
        "split.count",
        "gguftool.padding",
        "gguftool.tensor_order",
    }


def test_without_data_nothing_is_read() -> None:
    sources = [Memory(gguf((), [("w", (4,), 0, f32(1, 2, 3, n))])) for n in (4, 5)]
    a, b = map(model, sources)
    for source in sources:
        source.reads.clear()
    assert not diff_headers(a, b, LAYOUT).differs
    assert [source.reads for source in sources] == [[], []]


# --- properties ------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "blk.0.w", "blk.1.w", "general.name", "general.file_type", "split.no", HOSTILE])
SCALARS = st.one_of(
    st.tuples(st.just(U32), st.integers(0, 3)),
    st.tuples(st.just(F32), st.sampled_from([0.0, 1.0, float("nan"), float("inf")])),
    st.tuples(st.just(STRING), st.one_of(st.text(max_size=5), LINES)),
    st.tuples(st.just(ARRAY), st.tuples(st.just(I32), st.lists(st.integers(0, 2), max_size=4))),
    st.tuples(st.just(ARRAY), st.tuples(st.just(STRING), st.lists(st.sampled_from(["x", "y", HOSTILE]), max_size=4))),
)
KVS = st.lists(st.tuples(NAMES, SCALARS).map(lambda kv: (kv[0], *kv[1])), max_size=5)
SHAPES = st.sampled_from([(32, 2), (64,), (32, 2, 1), (0,), ()])
KINDS = {0: (1, 4), 1: (1, 2), Q8_0: (32, 34), 156: (256, 102), 4711: (1, 3)}


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    found = []
    for name in names:
        dims, kind = draw(SHAPES), draw(st.sampled_from(list(KINDS)))
        elements = 1
        for dim in dims:
            elements *= dim
        block, size = KINDS[kind]
        found.append(
            (name, dims, kind, draw(st.sampled_from([b"\0", b"\x3c", b"\xff"])) * (-(-elements // block) * size))
        )
    return found


MODELS = st.builds(made, KVS, tensor_lists(), order=st.sampled_from("<>"), alignment=st.sampled_from([32, 64]))
FLIP = {Change.ADDED: Change.REMOVED, Change.REMOVED: Change.ADDED, Change.CHANGED: Change.CHANGED}


def flipped_kv(change: KVChange) -> KVChange:
    array, text = change.array, change.text
    if array:
        entries = tuple(replace(entry, old=entry.new, new=entry.old) for entry in array.entries)
        array = replace(array, old_count=array.new_count, new_count=array.old_count, entries=entries)
    if text:
        text = replace(
            text,
            old_length=text.new_length,
            new_length=text.old_length,
            old_excerpt=text.new_excerpt,
            new_excerpt=text.old_excerpt,
            lines=(),
        )
    return replace(change, change=FLIP[change.change], old=change.new, new=change.old, array=array, text=text)


def flipped_tensor(change: TensorChange) -> TensorChange:
    return replace(change, change=FLIP[change.change], old=change.new, new=change.old)


def marked(change: KVChange, sign: str) -> list[str]:
    return [line[1:] for line in change.text.lines if line[0] == sign] if change.text else []


def without_lines(change: KVChange) -> KVChange:
    return replace(change, text=change.text and replace(change.text, lines=()))


def assert_mirrored(ab: HeaderDiff, ba: HeaderDiff) -> None:
    forth = {(one.key, one.occurrence): one for one in ab.metadata}
    back = {(one.key, one.occurrence): one for one in ba.metadata}
    assert forth.keys() == back.keys()
    for key, change in forth.items():
        # repr: NaN is not equal to itself, its name is
        assert repr(flipped_kv(change)) == repr(without_lines(back[key]))
        assert marked(change, "-") == marked(back[key], "+")
        assert marked(change, "+") == marked(back[key], "-")
    assert {one.name: flipped_tensor(one) for one in ab.tensors} == {one.name: one for one in ba.tensors}
    assert {(one.name, one.layers, one.old_type, one.new_type, one.bytes_change) for one in ab.groups} == {
        (one.name, one.layers, one.new_type, one.old_type, -one.bytes_change) for one in ba.groups
    }
    assert {(one.what, one.count) for one in ab.layout or ()} == {(one.what, one.count) for one in ba.layout or ()}
    assert ab.differs == ba.differs
    assert (ab.a, ab.b) == (ba.b, ba.a)


@pytest.mark.slow
@given(MODELS)
def test_a_model_does_not_differ_from_itself(one: Model) -> None:
    report = diff_headers(one, one, LAYOUT)
    assert (report.differs, report.metadata, report.tensors, report.groups, report.layout) == (False, (), (), (), ())


@given(MODELS, MODELS)
def test_diff_mirrors(a: Model, b: Model) -> None:
    assert_mirrored(diff_headers(a, b, LAYOUT), diff_headers(b, a, LAYOUT))


@given(MODELS, MODELS)
@settings(max_examples=50)
def test_no_output_holds_raw_text_of_a_file(a: Model, b: Model) -> None:
    report = diff_headers(a, b, LAYOUT)
    for output in (render(report, Format.TEXT), render_diff_markdown(report), render_diff_csv(report)):
        assert not set(output) & set("\x1b\u202e\udcff\r\0\x85")
    outside_code = re.sub(r"(`{3,})diff\n.*?\n\1\n", "", render_diff_markdown(report), flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside_code)


def test_summary_holds_no_text_of_a_file() -> None:
    a = replace(made([(HOSTILE, U32, 1)], [(HOSTILE, (1,), 0, bytes(4))]), name=HOSTILE)
    assert summary(diff_headers(a, made())) == "1 metadata key and 1 tensor differ; B is 4 B smaller"


def test_a_template_cannot_leave_its_code_block() -> None:
    old, new = "a\n```\n````\n<img>", "b\n```\n````\n<img>"
    lines = render_diff_markdown(diff_headers(made([("t", STRING, old)]), made([("t", STRING, new)]))).split("\n")
    opening = next(index for index, line in enumerate(lines) if line.endswith("diff") and line.startswith("`````"))
    closing = [index for index, line in enumerate(lines) if line.strip() == "`````"]
    assert closing[0] > max(index for index, line in enumerate(lines) if "<img>" in line) > opening


# --- models of the engines -------------------------------------------------------------------------------------------


def all_models() -> list[Path]:
    return [path for kind in ("*.gguf", "sets/*", "zoo/*.gguf") for path in sorted((FIXTURES / "engines").glob(kind))]


def test_models_of_the_engines_equal_themselves_and_mirror_each_other() -> None:
    opened = [open_model(path) for path in all_models()]
    assert len(opened) == 9 + 2 + 4
    for one in opened:
        assert not diff_headers(one, one, LAYOUT).differs
    for a, b in permutations(opened, 2):
        assert_mirrored(diff_headers(a, b, LAYOUT), diff_headers(b, a, LAYOUT))


@pytest.mark.parametrize(("single", "folder"), [("Q4_K", "mainline-Q4_K"), ("IQ4_KS", "ik-IQ4_KS")])
def test_a_set_equals_the_file_it_was_split_from(single: str, folder: str) -> None:
    a, b = (open_model(FIXTURES / "engines" / name) for name in (f"tiny-llama-{single}.gguf", f"sets/{folder}"))
    report = diff_headers(a, b)
    assert not report.differs
    assert (report.a.files, report.b.files) == (1, 22)


# --- command line ----------------------------------------------------------------------------------------------------

KVS_A = [
    ("general.architecture", STRING, "llama"),
    ("general.name", STRING, "Tiny"),
    ("general.file_type", U32, 15),
    ("llama.rope.freq_base", F32, 10000.0),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "</s>", "a", "b"])),
    ("tokenizer.chat_template", STRING, TEMPLATE),
]
KVS_B = [
    ("general.architecture", STRING, "llama"),
    ("general.file_type", U32, 7),
    ("general.url", STRING, HOSTILE),
    ("llama.rope.freq_base", F32, 1e6),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "</s>", "A", "B", "c"])),
    ("tokenizer.chat_template", STRING, TEMPLATE.replace("line 20 ", "LINE ")),
]
ROWS = f32(*(n / 64 for n in range(64)))
NEAR = f32(*(n / 64 + (n % 3) / 1024 for n in range(64)))
TENSORS_A = [
    ("token_embd.weight", (32, 2), 0, ROWS),
    *((f"blk.{n}.ffn_down_exps.weight", (32, 2), 0, ROWS) for n in range(4)),
    ("blk.0.attn_norm.weight", (32, 2), 0, ROWS),
    ("old.weight", (32,), 156, bytes(99)),
]
BLOCKS = b"".join(b"\x10\x24" + bytes(range(start, start + 32)) for start in (0, 32))  # Q8_0 with a scale of 0.0159
TENSORS_B = [
    ("token_embd.weight", (32, 2), 0, NEAR),
    *((f"blk.{n}.ffn_down_exps.weight", (32, 2), *((0, ROWS) if n == 2 else (8, BLOCKS))) for n in range(4)),
    ("blk.0.attn_norm.weight", (32, 2), 0, ROWS),
    (HOSTILE, (32,), 0, bytes(128)),
]


@pytest.fixture
def two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.gguf").write_bytes(gguf(KVS_A, TENSORS_A))
    Path("b.gguf").write_bytes(gguf(KVS_B, TENSORS_B))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["diff", *arguments])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("diff.txt", ()),
        ("diff.data.txt", ("--data", "--layout")),
        ("diff.layer.txt", ("--data", "--by", "layer", "--ignore", "general|tokenizer")),
        ("diff.json", ("--data", "--by", "layer", "--json")),
        ("diff.md", ("--data", "--markdown")),
        ("diff.csv", ("--data", "--layout", "--by", "layer", "--csv")),
    ],
)
def test_golden(two_files: None, name: str, arguments: tuple[str, ...]) -> None:
    result = run("a.gguf", "b.gguf", *arguments)
    assert result.exit_code == 1, result.output
    if os.environ.get("GGUFTOOL_UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(result.stdout, encoding="utf-8")
    assert result.stdout == (GOLDEN / name).read_text(encoding="utf-8")


def test_machine_formats_parse(two_files: None) -> None:
    found = json.loads(run("a.gguf", "b.gguf", "--json").stdout)
    assert found["metadata"][0]["key"] == "general.name"
    assert found["data"] is None
    rows = list(csv.DictReader(io.StringIO(run("a.gguf", "b.gguf", "--csv").stdout)))
    assert {row["section"] for row in rows} == {"metadata", "tensor"}
    assert [row["a_bytes"] for row in rows if row["name"] == "blk.0.ffn_down_exps.weight"] == ["256"]


def test_terminal_shows_the_same_sections(two_files: None) -> None:
    report = diff_headers(open_model("a.gguf"), open_model("b.gguf"))
    text = render(report, Format.TEXT)
    assert all(part.as_text() in text for part in parts_of(report))
    assert text.startswith(summary(report) + "\n")


def test_no_differences_exit_0(two_files: None) -> None:
    result = run("a.gguf", "a.gguf", "--layout")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == (
        "no differences in 6 metadata keys and 7 tensors; their data was not compared (--data does)"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a.gguf", "missing.gguf"), "missing.gguf: cannot open"),
        (("a.gguf", "text.gguf"), "not a GGUF file"),
        (("a.gguf", "b.gguf", "--ignore", "("), "is not a regular expression"),
        (("a.gguf", "b.gguf", "--by", "layer"), "add --data"),
        (("a.gguf", "b.gguf", "--json", "--csv"), "exclude each other"),
    ],
)
def test_trouble_exits_2_without_traceback(two_files: None, arguments: tuple[str, ...], said: str) -> None:
    Path("text.gguf").write_text("<html>no model</html>" * 9)
    root = str(REPO)
    done = subprocess.run(
        [sys.executable, "-m", "gguftool", "diff", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_every_json_name_is_documented(two_files: None) -> None:
    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(names, value.values()))
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    page = (REPO / "docs" / "diff.md").read_text(encoding="utf-8")
    found = names(json.loads(run("a.gguf", "b.gguf", "--data", "--by", "layer", "--layout", "--json").stdout))
    assert len(found) > 50
    assert {name for name in found - {"b64"} if f"`{name}" not in page} == set()


@pytest.mark.parametrize("arguments", [(), ("--data", "--by", "layer", "--ignore", "^(general|output|token)")])
def test_documented_output_is_real(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES / "engines")
    page = (REPO / "docs" / "diff.md").read_text(encoding="utf-8")
    shown = {line[4:] for line in page.splitlines() if line.startswith("    ")}
    lines = run("tiny-llama-Q4_K.gguf", "tiny-llama-Q8_0.gguf", *arguments).stdout.splitlines()
    if arguments:  # the page leaves out the middle
        lines = [lines[0], *lines[next(i for i, line in enumerate(lines) if line.startswith("data:")) :]]
    assert [line for line in lines if line and line not in shown] == []


def test_missing_shards_are_said(tmp_path: Path) -> None:
    source = FIXTURES / "engines" / "sets" / "mainline-Q4_K"
    shards = sorted(source.iterdir())
    for shard in shards[:-1]:
        (tmp_path / shard.name).symlink_to(shard)
    report = diff_headers(open_model(source), open_model(tmp_path))
    assert [change.change for change in report.tensors] == [Change.REMOVED]
    assert "B is incomplete" in report.remarks[0]
    assert shards[-1].name in report.remarks[0]


# --- which files of a set differ -------------------------------------------------------------------------------------


def _set_of_three(folder: Path, *, layer: int | None = None) -> Path:
    """A set with one tensor in each of shards 2 and 3; that of `layer` has another shape."""
    folder.mkdir()
    tensors = [builders.tensor(f"blk.{n}.x.weight", "F32", (8, 4 if n == layer else 2)) for n in (0, 1)]
    for name, data in builders.shard_set("m", ((), tensors[:1], tensors[1:])).items():
        (folder / name).write_bytes(data)
    return folder


def test_the_shards_in_which_tensors_differ_are_named(tmp_path: Path) -> None:
    a, b = _set_of_three(tmp_path / "a"), _set_of_three(tmp_path / "b", layer=1)
    found = diff_headers(a, b)
    shard = "m-00003-of-00003.gguf"
    assert found.remarks == tuple(f"{side}: the tensors that differ are in 1 of 3 files: {shard}" for side in "AB")


def test_no_shard_is_named_where_nothing_differs_or_there_is_one_file(tmp_path: Path) -> None:
    a, b = _set_of_three(tmp_path / "a"), _set_of_three(tmp_path / "b")
    assert diff_headers(a, b).remarks == ()
    one, other = (
        made(tensors=[("x", (8, rows), 0, bytes(32 * rows))])  # 0: F32
        for rows in (2, 4)
    )
    found = diff_headers(one, other)
    assert (found.differs, found.remarks) == (True, ())


def test_shards_with_other_bytes_are_named_under_data(tmp_path: Path) -> None:
    a, b = _set_of_three(tmp_path / "a"), _set_of_three(tmp_path / "b")
    path = b / "m-00002-of-00003.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = run_gguftool("diff", a, b, "--data")
    assert done.returncode == 1
    assert b"are in 1 of 3 files: m-00002-of-00003.gguf" in done.stdout + done.stderr
