"""tensors.map: what is published, what is wrong with it, and what strangers may put into it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gguftool
from gguftool.analysis.verify import Verdict, hash_files, verify_against_map, verify_manifest
from gguftool.errors import FormatError, PlanError
from gguftool.format.tensors_map import MapEntry, parse_map, render_map
from gguftool.model.companions import find_maps, read_map
from gguftool.model.model import Model
from gguftool.surgery.tensors_map import plan_tensors_map
from tests.support import builders as b
from tests.support.counted_work import LINEAR, growth
from tests.support.mix_models import per_tensor, quant

SHA = "76d250311f30216577b06959f44ce299bd516c132129d24b71cf70a3da120505"
LINE = f"M-00002-of-00003.gguf:{SHA}:blk.43.ffn_gate_exps.weight:shape=(4096, 1024, 512):dtype=q8_0:elements=9:bytes=7"
ZEROS = "0" * 64


def test_seven_and_eight_fields() -> None:
    seven, eight = parse_map(f"{LINE}\n{LINE}:imatrix=444a\n", "x")
    assert (seven.file, seven.sha256, seven.shape) == ("M-00002-of-00003.gguf", SHA, (4096, 1024, 512))
    assert (seven.tensor, seven.type_id, seven.imatrix) == ("blk.43.ffn_gate_exps.weight", 8, None)
    assert eight == replace(seven, imatrix="444a")


@pytest.mark.parametrize("sha256", [ZEROS, "", "0"])
def test_zeros_or_nothing_is_no_hash(sha256: str) -> None:
    (entry,) = parse_map(LINE.replace(SHA, sha256), "x")
    assert entry.sha256 is None


def test_a_windows_map_reads_like_another() -> None:
    assert parse_map(f"\ufeff{LINE}\r\n\r\n# comment\r\n", "x") == parse_map(LINE, "x")


@pytest.mark.parametrize("shape", ["(4096,)", "(4096)", "( 4096 , )"])
def test_shapes_of_one_dimension(shape: str) -> None:
    (entry,) = parse_map(LINE.replace("(4096, 1024, 512)", shape), "x")
    assert entry.shape == (4096,)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a:b", "2 fields"),
        (LINE + ":x=1:y=2", "9 fields"),
        (LINE.replace(SHA, "g" * 64), "is not a sha256"),
        (LINE.replace(SHA, SHA[:-1]), "is not a sha256"),
        (LINE.replace("bytes=7", "bytes=-7"), "expected shape"),
        (LINE.replace("bytes=7", "bytes=\u0667"), "expected shape"),
        (LINE.replace("4096", "\u0664\u0660"), "expected shape"),
        (LINE.replace("4096", "9" * 30), "expected shape"),
        (LINE.replace("dtype", "type"), "expected shape"),
    ],
)
def test_bad_lines_are_named(line: str, said: str) -> None:
    with pytest.raises(FormatError, match=f"line 2: .*{said}"):
        parse_map(f"{LINE}\n{line}\n", "x")


def test_all_bad_lines_are_told_at_once_and_their_number_is_bounded() -> None:
    with pytest.raises(FormatError) as caught:
        parse_map("\x1b[31mbad\n" * 40, "x")
    assert str(caught.value).count("2 fields") == 0
    assert str(caught.value).count("1 fields") == 10
    assert "and 30 more" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_too_many_lines_are_refused() -> None:
    with pytest.raises(FormatError, match="at most 65,535"):
        parse_map("x\n" * 70_000, "x")


def test_blanks_in_a_shape_take_no_time() -> None:
    def parse_blanks(size: int) -> None:
        with pytest.raises(FormatError):
            parse_map(LINE.replace("(4096, 1024, 512)", "(" + " " * size + "x"), "x")

    assert growth(parse_blanks, 25_000) < LINEAR


_names = st.text(st.characters(exclude_characters=":\r\n", exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
    lambda text: text == text.strip() and not text.startswith(("#", "\ufeff"))
)


@given(
    st.builds(
        MapEntry,
        file=_names,
        sha256=st.sampled_from([None, SHA]),
        tensor=_names,
        shape=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=4).map(tuple),
        dtype=st.sampled_from(["q4_k", "type#999", "f32"]),
        elements=st.integers(0, 1 << 50),
        nbytes=st.integers(0, 1 << 50),
        imatrix=st.sampled_from([None, SHA]),
    )
)
def test_parse_reads_what_render_wrote(entry: MapEntry) -> None:
    assert parse_map(render_map([entry, entry]), "x") == (entry, entry)


@pytest.mark.parametrize("name", ["a:b", "a\nb", "a\rb"])
def test_names_that_a_map_cannot_say_are_refused(name: str) -> None:
    (entry,) = parse_map(LINE, "x")
    with pytest.raises(FormatError, match="cannot express"):
        render_map([replace(entry, tensor=name)])


@given(st.text(max_size=200))
def test_any_text_is_entries_or_a_format_error(text: str) -> None:
    with contextlib.suppress(FormatError):
        parse_map(text, "x")


# --- beside shards ---------------------------------------------------------------------------------------------------


def _map_of(folder: Path) -> str:
    """The map of the set in `folder`, as text."""
    model = gguftool.open_model(str(folder))
    plan = plan_tensors_map(model, {one.name: one.sha256 for one in hash_files(model)}, folder / "tensors.map")
    return plan.outputs[0].head.decode()


def _verify(model: Model) -> tuple[Verdict, ...]:
    entries = tuple(entry for entries in find_maps(model.files).values() for entry in entries)
    return verify_against_map(model.files, entries)


def test_a_map_of_our_own_verifies_and_has_no_line_for_the_first_shard(tmp_path: Path) -> None:
    per_tensor(tmp_path, "M-X-Q8_0-SPECIAL_TENSOR", "Q8_0")
    text = _map_of(tmp_path)
    assert [entry.file for entry in parse_map(text, "x")] == [
        f"M-X-Q8_0-SPECIAL_TENSOR-{number:05d}-of-00008.gguf" for number in range(2, 9)
    ]
    (tmp_path / "tensors.map").write_text(text)
    verdicts = _verify(gguftool.open_model(str(tmp_path)))
    assert [verdict.ok for verdict in verdicts] == [True] * 7


def test_elements_and_bytes_are_hints(tmp_path: Path) -> None:
    per_tensor(tmp_path, "M-Q8_0", "Q8_0")
    wrong = [replace(entry, elements=1, nbytes=2) for entry in parse_map(_map_of(tmp_path), "x")]
    (tmp_path / "tensors.map").write_text(render_map(wrong))
    assert all(verdict.ok for verdict in _verify(gguftool.open_model(str(tmp_path))))


def test_zeros_verify_nothing_and_say_so(tmp_path: Path) -> None:
    per_tensor(tmp_path, "M-Q8_0", "Q8_0")
    blank = [replace(entry, sha256=None) for entry in parse_map(_map_of(tmp_path), "x")]
    (tmp_path / "tensors.map").write_text(render_map(blank))
    verdicts = _verify(gguftool.open_model(str(tmp_path)))
    assert [verdict.ok for verdict in verdicts] == [None] * 7


def test_trailing_ones_in_a_map_do_not_matter(tmp_path: Path) -> None:
    per_tensor(tmp_path, "M-Q8_0", "Q8_0")
    entries = [replace(entry, shape=(*entry.shape, 1)) for entry in parse_map(_map_of(tmp_path), "x")]
    (tmp_path / "tensors.map").write_text(render_map(entries))
    assert all(verdict.ok for verdict in _verify(gguftool.open_model(str(tmp_path))))


def _cook(tmp_path: Path, *, with_own_map: bool) -> Path:
    """A cooked mix: every shard is called BF16, shard 4 is Q8_0, and the maps of the repositories lie beside them."""
    bf16 = per_tensor(tmp_path / "bf16", "M-X-BF16-SPECIAL_TENSOR", "BF16")
    q8 = per_tensor(tmp_path / "q8", "M-X-Q8_0-SPECIAL_TENSOR", "Q8_0")
    for number in (3, 7):  # norms are F32 and the same in every repository
        data = (bf16 / f"M-X-BF16-SPECIAL_TENSOR-{number:05d}-of-00008.gguf").read_bytes()
        (q8 / f"M-X-Q8_0-SPECIAL_TENSOR-{number:05d}-of-00008.gguf").write_bytes(data)
    mix = per_tensor(tmp_path / "mix", "M-X-BF16-SPECIAL_TENSOR", "BF16")
    (mix / "M-X-BF16-SPECIAL_TENSOR-00004-of-00008.gguf").write_bytes(
        (q8 / "M-X-Q8_0-SPECIAL_TENSOR-00004-of-00008.gguf").read_bytes()
    )
    (mix / "tensors.q8_0.map").write_text(_map_of(q8))
    if with_own_map:
        (mix / "tensors.bf16.map").write_text(_map_of(bf16))
    return mix


@pytest.mark.parametrize("with_own_map", [True, False])
def test_a_cooked_mix_is_checked_by_the_map_of_each_shards_type(tmp_path: Path, with_own_map: bool) -> None:
    mix = _cook(tmp_path, with_own_map=with_own_map)
    model = gguftool.open_model(str(mix))
    verdicts = {verdict.name: verdict.ok for verdict in _verify(model)}
    cooked = str(mix / "M-X-BF16-SPECIAL_TENSOR-00004-of-00008.gguf")
    assert verdicts[cooked] is True
    assert False not in verdicts.values()


def test_damage_in_a_cooked_mix_is_found(tmp_path: Path) -> None:
    mix = _cook(tmp_path, with_own_map=True)
    for number in (4, 5):
        path = mix / f"M-X-BF16-SPECIAL_TENSOR-{number:05d}-of-00008.gguf"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    bad = [verdict.name[-24:] for verdict in _verify(gguftool.open_model(str(mix))) if verdict.ok is False]
    assert bad == ["TENSOR-00004-of-00008.gguf"[-24:], "TENSOR-00005-of-00008.gguf"[-24:]]


def test_a_map_that_says_another_tensor_shape_or_type_is_believed_over_the_shard(tmp_path: Path) -> None:
    per_tensor(tmp_path, "M-Q8_0", "Q8_0")
    entries = list(parse_map(_map_of(tmp_path), "x"))
    entries[0] = replace(entries[0], tensor="other.weight")
    entries[1] = replace(entries[1], shape=(3,))
    entries[2] = replace(entries[2], dtype="q4_k")
    (tmp_path / "tensors.map").write_text(render_map(entries))
    said = [verdict.detail for verdict in _verify(gguftool.open_model(str(tmp_path))) if verdict.ok is False]
    assert len(said) == 3
    assert "other.weight" in said[0]
    assert "shape (256,), the map says (3,)" in said[1]
    assert "is q8_0, the map says q4_k" in said[2]


def test_maps_of_thousands_of_shards_are_looked_up_and_not_searched(tmp_path: Path) -> None:
    shard = b.shard_set("M", [(), *((tensor,) for tensor in b.llama_tensors())])
    for name, data in shard.items():
        (tmp_path / name).write_bytes(data)
    model = gguftool.open_model(str(tmp_path))
    entry = parse_map(LINE, "x")[0]
    many = tuple(replace(entry, file=f"N-{number:05d}-of-60000.gguf") for number in range(2, 60_000))

    def look_up(size: int) -> None:
        verify_against_map((model.files[1],) * (size // 30), many[:size], 1)

    assert growth(look_up, 7000, runs=3) < LINEAR


def test_a_single_file_or_a_shard_of_two_tensors_has_no_map(tmp_path: Path) -> None:
    single = gguftool.open_model(quant(tmp_path / "a.gguf", "Q8_0"))
    with pytest.raises(PlanError, match="it is a single file"):
        plan_tensors_map(single, {}, tmp_path / "tensors.map")
    tensors = b.llama_tensors()
    for shards in ([(), tensors], [tensors[:1], *((tensor,) for tensor in tensors[1:])]):
        folder = tmp_path / str(len(shards))
        folder.mkdir()
        for name, data in b.shard_set("M", shards).items():
            (folder / name).write_bytes(data)
        with pytest.raises(PlanError, match="one tensor in each shard"):
            plan_tensors_map(gguftool.open_model(str(folder)), {}, folder / "tensors.map")


def test_a_partial_set_has_no_map(tmp_path: Path) -> None:
    per_tensor(tmp_path, "M", "Q8_0", only=(2, 3))
    with pytest.raises(PlanError, match="incomplete"):
        plan_tensors_map(gguftool.open_model(str(tmp_path)), {}, tmp_path / "tensors.map")


def test_names_in_a_map_do_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    per_tensor(tmp_path / "set", "M", "Q8_0")
    entries = [replace(entry, file="../" + entry.file) for entry in parse_map(_map_of(tmp_path / "set"), "x")]
    (tmp_path / "set" / "tensors.map").write_text(render_map(entries))
    verdicts = verify_manifest(str(tmp_path / "set" / "tensors.map"), None)
    assert {Path(verdict.name).parent for verdict in verdicts} == {tmp_path / "set"}


def test_a_map_that_cannot_be_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "tensors.map").write_bytes(b"\xff\xfe\0\0" * 9)
    with pytest.raises(FormatError, match=r"tensors\.map"):
        read_map(str(tmp_path / "tensors.map"))
