"""Finding and opening models: any shard, folders, globs, links, partial and contradictory sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from gguftool.errors import FormatError, PlanError, SourceError
from gguftool.format.file_names import ShardName, parse_shard_name
from gguftool.model.model import Model, Sizing
from gguftool.model.opening import open_model, open_models
from gguftool.storage.plan import Request
from gguftool.surgery.merge import MergeOptions, plan_merge
from tests.support import builders as b
from tests.support.packing import pack
from tests.support.paths import FIXTURES

TENSORS = b.llama_tensors()
NAMES = [str(tensor.name) for tensor in TENSORS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def put_set(folder: Path, prefix: str = "m", numbers: Iterable[int] = (1, 2, 3), **options: str) -> None:
    files = b.shard_set(prefix, ((), TENSORS[:3], TENSORS[3:]), **options)
    put(folder, {name: data for number, (name, data) in enumerate(files.items(), 1) if number in numbers})


def contents(model: Model) -> dict[str, bytes]:
    return {name: tensor.extent.read() for name, tensor in model.tensors.items()}


WHOLE = {str(tensor.name): tensor.data for tensor in TENSORS}


# --- one model, many ways to name it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "specs",
    [
        ["m-00001-of-00003.gguf"],
        ["m-00003-of-00003.gguf"],
        ["./m-00002-of-00003.gguf"],
        [".//m-00002-of-00003.gguf"],
        ["."],
        ["m-*.gguf"],
        ["m-00003-of-00003.gguf", "m-00001-of-00003.gguf", "m-00002-of-00003.gguf"],
        ["./m-00003-of-00003.gguf", "m-00001-of-00003.gguf"],
        [".", "m-*.gguf", "m-00001-of-00003.gguf"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("absolute", [False, True])
def test_any_shard_folder_or_glob_opens_the_whole_set(folder: Path, specs: list[str], absolute: bool) -> None:
    put_set(folder)
    model = open_model(*(f"{folder}/{spec}" if absolute else spec for spec in specs))
    assert contents(model) == WHOLE
    assert list(model.tensors) == NAMES
    assert [os.path.basename(file.source.name) for file in model.files] == list(b.shard_set("m", ((), (), ())))
    assert model.is_complete
    architecture = model.get("general.architecture")
    assert architecture is not None
    assert architecture.value() == "llama"


def test_a_model_opens_from_a_path_object(folder: Path) -> None:
    put(folder, {"one.gguf": b.small_model()})
    assert contents(open_model(Path("one.gguf"))) == WHOLE


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_under_two_shard_names_counts_once(folder: Path, link: Callable[[Path, Path], None]) -> None:
    put_set(folder)
    for name in b.shard_set("m", ((), (), ())):
        link(folder / name, folder / name.replace("m-", "copy-"))
    assert contents(open_model(".")) == WHOLE


@pytest.mark.parametrize("extra", ["aaa.gguf", "zzz.gguf"])
def test_a_second_name_of_a_shard_does_not_take_it_out_of_its_set(folder: Path, extra: str) -> None:
    put_set(folder)
    os.link("m-00001-of-00003.gguf", extra)
    assert contents(open_model(".")) == WHOLE
    assert contents(open_model(extra, "m-00001-of-00003.gguf")) == WHOLE


def test_shards_that_are_links_into_a_store_open_as_a_set(folder: Path) -> None:
    """The Hub's cache looks like this: blobs under digests, and a folder of links with the real names."""
    (folder / "snapshot").mkdir()
    for number, (name, data) in enumerate(b.shard_set("m", ((), TENSORS[:3], TENSORS[3:])).items()):
        (folder / f"blob{number}").write_bytes(data)
        (folder / "snapshot" / name).symlink_to(f"../blob{number}")
    assert contents(open_model("snapshot/m-00002-of-00003.gguf")) == WHOLE


def test_this_file_only_opens_a_shard_by_itself(folder: Path) -> None:
    put_set(folder)
    model = open_model("m-00002-of-00003.gguf", this_file_only=True)
    assert list(model.tensors) == NAMES[:3]
    assert not model.is_complete
    assert model.missing == ("m-00001-of-00003.gguf", "m-00003-of-00003.gguf")


def test_hidden_files_other_suffixes_and_folders_are_passed_over(folder: Path) -> None:
    put(folder, {"one.gguf": b.small_model(), ".hidden.gguf": b"x", "one.gguf.part": b"x", "readme.md": b"x"})
    (folder / "folder.gguf").mkdir()
    assert contents(open_model(".")) == WHOLE


# --- partial sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2), (2, 3), (1, 3)])
def test_a_set_with_gaps_opens_and_lists_them(folder: Path, numbers: tuple[int, ...]) -> None:
    put_set(folder, numbers=numbers)
    model = open_model(".")
    assert model.missing == tuple(f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3) if number not in numbers)
    assert model.expected_tensors == len(TENSORS)
    assert not model.is_complete
    with pytest.raises(PlanError) as error:
        plan_merge([model], folder / "out.gguf")
    assert all(name in str(error.value) for name in model.missing)


# --- odd names -------------------------------------------------------------------------------------------------------

ODD = {
    "browser": ("m-00002-of-00003 (1).gguf",),
    "importer": tuple(f"org-00{number}-of-00003-e3b5{number}.gguf" for number in ("001", "002", "003")),
    "renamed": ("model.gguf",),
    "other prefix": ("x-00002-of-00003.gguf",),
}


def put_odd(folder: Path, kind: str) -> list[str]:
    """Put a set into `folder` of which some shards have odd names; the names, in order."""
    names = list(b.shard_set("m", ((), (), ())))
    put_set(folder)
    odd = list(ODD[kind]) if len(ODD[kind]) == 3 else [*ODD[kind]]
    first = {"browser": 1, "importer": 0, "renamed": 0, "other prefix": 1}[kind]
    for place, name in enumerate(odd, first):
        os.rename(names[place], name)
        names[place] = name
    return names


@pytest.mark.parametrize("kind", ODD)
def test_shards_under_odd_names_open_as_their_set_however_it_is_named(folder: Path, kind: str) -> None:
    names = put_odd(folder, kind)
    for spec in (".", *names):
        model = open_model(spec)
        assert contents(model) == WHOLE
        assert model.is_complete
        assert [file.source.name.removeprefix("./") for file in model.files] == names
        (said,) = model.remarks
        assert "of one set have wrong names" in said
        assert all(name in said for name in ODD[kind]) or len(ODD[kind]) == 3


@pytest.mark.parametrize("kind", ODD)
def test_a_merge_takes_any_shard_under_an_odd_name_for_its_set(folder: Path, kind: str) -> None:
    for name in put_odd(folder, kind):
        assert plan_merge([name], folder / "out.gguf").outputs[0].size > 0


def test_a_second_copy_of_a_shard_is_left_out(folder: Path) -> None:
    put_set(folder)
    shutil.copy("m-00002-of-00003.gguf", "m-00002-of-00003 (1).gguf")
    model = open_model(".")
    assert contents(model) == WHOLE
    assert "m-00002-of-00003 (1).gguf" in model.remarks[-1]
    assert contents(open_model("m-00002-of-00003 (1).gguf")) == WHOLE


def test_an_odd_name_goes_to_the_set_with_its_prefix(folder: Path) -> None:
    for prefix in ("a", "b"):
        put_set(folder, prefix)
        os.rename(f"{prefix}-00002-of-00003.gguf", f"{prefix}-00002-of-00003 (1).gguf")
    for prefix in ("a", "b"):
        model = open_model(f"{prefix}-00001-of-00003.gguf")
        assert [file.source.name[0] for file in model.files] == [prefix] * 3


def test_two_sets_of_importers_in_one_folder_stay_two(folder: Path) -> None:
    for prefix in ("a", "b"):
        put_set(folder, prefix)
        for number in (1, 2, 3):
            os.rename(f"{prefix}-0000{number}-of-00003.gguf", f"{prefix}-0000{number}-of-00003-x.gguf")
    with pytest.raises(SourceError, match="2 models"):
        open_model(".")
    assert [model.is_complete for model in open_models(".")] == [True, True]


def test_prefixes_that_do_not_fill_all_gaps_stay_apart(folder: Path) -> None:
    put_set(folder, "a", (1,))
    put_set(folder, "b", (2,))
    model = open_model("a-00001-of-00003.gguf")
    assert len(model.files) == 1
    assert len(model.missing) == 2


def test_a_set_of_odd_names_with_a_gap_says_which_shard_is_missing(folder: Path) -> None:
    names = put_odd(folder, "importer")
    os.remove(names[1])
    for spec in (".", names[0], names[2]):
        model = open_model(spec)
        assert [os.path.basename(name) for name in model.missing] == ["org-00002-of-00003.gguf"]
        assert "gguftool merge" not in model.remarks[0]


def test_this_file_only_leaves_an_odd_shard_alone(folder: Path) -> None:
    names = put_odd(folder, "browser")
    assert len(open_model(names[1], this_file_only=True).files) == 1


def test_partial_sets_of_several_prefixes_are_one_model_by_their_tensors(folder: Path) -> None:
    put_set(folder, "b-from-x", (2,))
    put_set(folder, "a-from-y", (3,))
    put_set(folder, "c-from-z", (1,))
    model = open_model(".")
    assert contents(model) == WHOLE
    assert model.is_complete
    assert model.get("general.architecture") is not None
    assert "2 of 3 shards of one set have wrong names" in model.remarks[0]
    assert all(name in model.remarks[0] for name in ("b-from-x-00002-of-00003.gguf", "a-from-y-00003-of-00003.gguf"))


def test_a_complete_set_beside_partial_ones_is_the_model_and_says_what_it_left_out(folder: Path) -> None:
    put_set(folder)
    put_set(folder, "other", (2,))
    model = open_model(".")
    assert contents(model) == WHOLE
    assert "other-00002-of-00003.gguf" in model.remarks[-1]


def test_partial_sets_that_hold_the_same_tensor_list_it_with_both_files(folder: Path) -> None:
    put_set(folder, "a", (1, 2))
    (folder / "b-00002-of-00003.gguf").write_bytes((folder / "a-00002-of-00003.gguf").read_bytes())
    with pytest.raises(FormatError) as error:
        open_model(".")
    for text in (*NAMES[:3], "a-00002-of-00003.gguf", "b-00002-of-00003.gguf"):
        assert text in str(error.value)


def test_partial_sets_of_two_byte_orders_are_not_one_model(folder: Path) -> None:
    put_set(folder, "a", (1, 2))
    put_set(folder, "b", (3,), order=">")
    with pytest.raises(FormatError, match="byte order"):
        open_model(".")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_several_models_are_listed(folder: Path) -> None:
    put_set(folder)
    put(folder, {"one.gguf": b.small_model(), "two.gguf": b.small_model(layers=2)})
    with pytest.raises(SourceError, match="3 models") as error:
        open_model(".")
    assert all(name in str(error.value) for name in ("m-00001-of-00003.gguf", "one.gguf", "two.gguf"))
    assert [len(model.tensors) for model in open_models(".")] == [6, 6, 10]


@pytest.mark.parametrize(
    ("spec", "said"),
    [(".", "holds no"), ("*.gguf", "no file matches"), ("x.gguf", "No such"), ("x-00001-of-00002.gguf", "No such")],
)
def test_nothing_there_is_said(folder: Path, spec: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_model(spec)


def test_contradictory_shards_are_one_error_that_names_them_all(folder: Path) -> None:
    put(
        folder,
        {
            "m-00001-of-00003.gguf": b.gguf((*b.llama_kvs(), *b.split_kvs(2, 3, 6))),
            "m-00002-of-00003.gguf": b.gguf(b.split_kvs(2, 4, 7), TENSORS[:3]),
            "m-00003-of-00003.gguf": b.gguf(b.split_kvs(3, 3, 6), TENSORS[3:], order=">"),
        },
    )
    with pytest.raises(FormatError) as error:
        open_model(".")
    for text in (
        "m-00001-of-00003.gguf says split.no = 1",
        "m-00002-of-00003.gguf says split.count = 4",
        "m-00003-of-00003.gguf has another byte order",
        "split.tensors.count differs",
    ):
        assert text in str(error.value)


def test_a_tensor_in_two_shards_is_named_with_both(folder: Path) -> None:
    put(folder, b.shard_set("m", (TENSORS[:2], TENSORS[1:])))
    with pytest.raises(FormatError, match=NAMES[1]) as error:
        open_model(".")
    assert "m-00001-of-00002.gguf and m-00002-of-00002.gguf" in str(error.value)


def test_a_broken_shard_is_named(folder: Path) -> None:
    put_set(folder)
    (folder / "m-00002-of-00003.gguf").write_bytes(b"<html>")
    with pytest.raises(FormatError) as error:
        open_model("m-00001-of-00003.gguf")
    assert error.value.source is not None
    assert "m-00002-of-00003.gguf" in error.value.source


# --- places of tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [10**6, 1 << 32, (1 << 64) - 32, (1 << 64) - 1])
@pytest.mark.parametrize("kind", ["F32", "unknown"])
def test_an_offset_outside_the_file_is_an_error_with_place_and_offset(folder: Path, offset: int, kind: str) -> None:
    type_id = 0 if kind == "F32" else 999
    head = b.head((), [b.Tensor("x", (8,), type_id, b"", offset)])
    put(folder, {"x.gguf": head + bytes(100)})
    with pytest.raises(FormatError, match="outside the file") as error:
        open_model("x.gguf")
    assert error.value.where == "tensor info 0, 'x'"
    assert error.value.offset is not None
    assert error.value.offset > offset


def test_a_file_that_ends_inside_a_tensor_is_an_error(folder: Path) -> None:
    put(folder, {"x.gguf": b.gguf((), [b.tensor("x", "F32", (8,))])[:-1]})
    with pytest.raises(FormatError, match="truncated"):
        open_model("x.gguf")


def test_sizes_come_from_type_gap_or_conflict(folder: Path) -> None:
    tensors = (
        b.tensor("known", "F32", (3,)),
        b.Tensor("unknown", (64,), 999, bytes(40)),
        b.Tensor("odd rows", (33,), 8, bytes(64)),
        b.Tensor("too much room", (8,), 0, bytes(96)),
        b.tensor("last", "F32", (8,)),
    )
    put(folder, {"x.gguf": b.gguf((), tensors)})
    model = open_model("x.gguf")
    assert [(t.sizing, t.nbytes, t.padded_extent.length) for t in model.tensors.values()] == [
        (Sizing.EXACT, 12, 32),
        (Sizing.GAP, 64, 64),
        (Sizing.GAP, 64, 64),
        (Sizing.CONFLICT, 32, 96),
        (Sizing.EXACT, 32, 32),
    ]
    assert model.tensors["known"].bits_per_weight == 32.0


def test_tensors_that_overlap_are_in_conflict(folder: Path) -> None:
    tensors = (b.tensor("a", "F32", (64,), offset=0), b.tensor("b", "F32", (64,), offset=0))
    put(folder, {"x.gguf": b.gguf((), tensors)})
    sizing = {name: tensor.sizing for name, tensor in open_model("x.gguf").tensors.items()}
    assert Sizing.CONFLICT in sizing.values()


def test_data_in_another_order_than_the_infos_is_found(folder: Path) -> None:
    tensors = (
        b.tensor("a", "F32", (8,), offset=64),
        b.tensor("b", "F32", (8,), offset=0),
        b.tensor("c", "F32", (8,), offset=32),
    )
    data = b.gguf((), tensors[:0])
    head = b.head((), tensors)
    data = head.ljust(b.round_up(len(head), 32), b"\0") + b"".join(t.data for t in (tensors[1], tensors[2], tensors[0]))
    put(folder, {"x.gguf": data})
    assert contents(open_model("x.gguf")) == {str(t.name): t.data for t in tensors}


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("m-00001-of-00003.gguf", ("m", 1, 3)),
        ("dir/a-b-00012-of-00012.gguf", ("dir/a-b", 12, 12)),
        ("m\n-00001-of-00003.gguf", ("m\n", 1, 3)),
        ("m-00004-of-00003.gguf", None),
        ("m-00000-of-00003.gguf", None),
        ("m-1-of-3.gguf", None),
        ("m-00001-of-00003.gguf.part", None),
        ("m-\u0660\u0660\u0660\u0660\u0661-of-00003.gguf", None),
    ],
)
def test_shard_names(name: str, parts: tuple[str, int, int] | None) -> None:
    shard = parse_shard_name(name)
    assert (shard and (shard.prefix, shard.number, shard.count)) == parts
    if parts is not None:
        assert str(ShardName(prefix=parts[0], number=parts[1], count=parts[2])) == name


def test_a_real_partial_set_opens(tmp_path: Path) -> None:
    for shard in sorted((FIXTURES / "engines" / "sets" / "ik-IQ4_KS").iterdir())[:3]:
        shutil.copy(shard, tmp_path)
    model = open_model(tmp_path)
    assert len(model.missing) == 19
    assert model.expected_tensors == 21
    assert {tensor.sizing for tensor in model.tensors.values()} == {Sizing.EXACT}


def test_the_model_is_found_among_its_projector_imatrix_and_adapter(folder: Path) -> None:
    put(folder, {"model.gguf": b.small_model()})
    for name, key, value in (
        ("a-mmproj.gguf", "general.type", "mmproj"),
        ("old-projector.gguf", "general.architecture", "clip"),
        ("imatrix.gguf", "general.type", "imatrix"),
        ("lora.gguf", "general.type", "adapter"),
    ):
        put(folder, {name: b.gguf((b.KV(key, b.STR, value),), TENSORS[:1])})
    model = open_model(".")
    assert contents(model) == WHOLE
    assert "left out 4 file(s) that accompany a model" in model.remarks[0]
    os.remove("model.gguf")
    with pytest.raises(SourceError, match="4 models"):
        open_model(".")


def test_missing_shards_of_several_partial_sets_are_those_that_none_has(folder: Path) -> None:
    put_set(folder, "a", (1,))
    put_set(folder, "b", (2,))
    assert [os.path.basename(name) for name in open_model(".").missing] == ["a-00003-of-00003.gguf"]


# --- packed shards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["zstd", "bzip2"])
@pytest.mark.parametrize("specs", [["."], ["m-00001-of-00003.gguf"], ["m-00002-of-00003.gguf.zbst"], ["m-*.gguf*"]])
def test_packed_shards_are_shards(folder: Path, how: str, specs: list[str]) -> None:
    put_set(folder)
    pack(folder / "m-00002-of-00003.gguf", how=how)
    model = open_model(*specs)
    assert model.is_complete
    assert contents(model) == WHOLE


def test_of_a_shard_and_its_packed_twin_the_plain_one_is_read(folder: Path) -> None:
    put_set(folder)
    plain = (folder / "m-00002-of-00003.gguf").read_bytes()
    packed = pack(folder / "m-00002-of-00003.gguf")
    (folder / "m-00002-of-00003.gguf").write_bytes(plain)
    packed.write_bytes(b"\x28\xb5\x2f\xfd damaged")
    assert contents(open_model(".")) == WHOLE


def test_packed_shards_are_never_removed_as_consumed(folder: Path) -> None:
    put_set(folder)
    packed = pack(folder / "m-00002-of-00003.gguf")
    with pytest.raises(PlanError, match="zbst"):
        plan_merge(".", folder / "out.gguf", MergeOptions(consume=Request()))
    assert packed.exists()
