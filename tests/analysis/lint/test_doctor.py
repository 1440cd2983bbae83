"""Every cause of a bad GGUF that can be seen locally, made here and named for what it is."""

from __future__ import annotations

import bz2
import gzip
import json
import struct
import zipfile
from pathlib import Path

import pytest

from gguftool.analysis.lint.check import CheckOptions, CheckReport, check
from gguftool.analysis.lint.doctor import DIAGNOSES
from gguftool.errors import SourceError
from tests.support.check_models import File, T, model, shards
from tests.support.paths import FIXTURES

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 4661211424\n".encode()
ZIP = b"PK\x03\x04" + bytes(60)
SAFETENSORS = struct.pack("<Q", 16) + b'{"a":{}}        ' + bytes(16)
OLD_IMATRIX = struct.pack("<ii", 3, 22) + b"blk.0.attn_norm.weight" + bytes(64)

# what the file holds, the code, words that the diagnosis or its way out says
CAUSES = {
    "empty": (b"", "N03", "0 bytes"),
    "pointer": (POINTER, "N04", "4,661,211,424"),
    "pointer, oid": (POINTER, "N04", OID),
    "pointer, command": (POINTER, "N04", "git lfs pull --include m.gguf"),
    "pointer, cut": (POINTER[:60], "N04", "without a size"),
    "page": (b"<!DOCTYPE html><html>...", "N05", "/resolve/"),
    "page, lower case": (b"\xef\xbb\xbf \n<html lang=en>", "N05", "web page"),
    "entry": (b"Entry not found", "N06", "no such file"),
    "password": (b"Invalid username or password.", "N06", "token was refused"),
    "gated": (b"Access to model x/y is restricted", "N06", "gated"),
    "json": (b'{"error":"Repository not found"}', "N06", "Repository not found"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "N06", "expired"),
    "zeros": (bytes(5000), "N07", "data at 0 of 8 sampled places"),
    "zeroed head": (bytes(4096) + b"\x07" * 50000, "N07", "the head of a file with the same model"),
    "magic alone": (b"GGUF" + bytes(60) + b"\x07" * 50000, "N07", "only the magic is there"),
    "ggml": (b"lmgg" + bytes(60), "N10", "GGML"),
    "ggmf": (b"fmgg" + bytes(60), "N10", "GGMF"),
    "ggjt": (b"tjgg" + bytes(60), "N10", "convert_llama_ggml_to_gguf.py"),
    "ggla": (b"algg" + bytes(60), "N10", "LoRA"),
    "gzip": (gzip.compress(b"x" * 100), "N11", "gunzip"),
    "bzip2": (bz2.compress(b"x" * 100), "N11", "bunzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(60), "N11", "zstd -d"),
    "zip": (ZIP, "N11", "PyTorch"),
    "safetensors": (SAFETENSORS, "N11", "safetensors"),
    "llamafile": (b"MZqFpD='" + bytes(60), "N11", "unzip -l"),
    "old imatrix": (OLD_IMATRIX, "N12", "3 entries, the first for blk.0.attn_norm.weight"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "N13", "version 4"),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 1, 1) + bytes(100), "N13", "version 0"),
    "cut head": (model().bytes()[:150], "N09", "ends inside its head"),
    "too many dims": (File(tensors=[T("x", (1,) * 33, 0)]).bytes(), "N16", "at most 32"),
    "damaged head": (model(kvs=[("a", "raw", struct.pack("<I", 99))]).bytes(), "N14", "value type 99"),
    "noise": (b"\x9c\xff\x1b[31m" + bytes(range(1, 200)), "N15", "expected 'GGUF'"),
}


def diagnosed(path: Path | str) -> CheckReport:
    report = check(str(path))
    assert not report.readable
    assert report.findings == ()
    assert all(f.code in DIAGNOSES for f in report.diagnoses)
    return report


def said(path: Path | str, code: str) -> str:
    (finding,) = diagnosed(path).diagnoses
    assert finding.code == code, finding
    assert finding.where.isprintable()
    text = f"{finding.message} -> {finding.way_out}"
    assert text.isprintable()
    return text


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_is_named(tmp_path: Path, cause: str) -> None:
    data, code, words = CAUSES[cause]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert words in said(path, code)


def test_a_real_old_imatrix() -> None:
    assert "69 entries" in said(FIXTURES / "engines" / "zoo" / "zoo-f32-ik.gguf.imatrix.dat", "N12")


def test_every_code_is_tried() -> None:
    elsewhere = {"N01", "N02", "N08"}
    assert {code for _, code, _ in CAUSES.values()} | elsewhere == set(DIAGNOSES)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in said(tmp_path / "m.gguf", "N01")


def test_a_missing_file_whose_set_is_there(tmp_path: Path) -> None:
    shards(tmp_path, prefix="big")
    assert "big-00001-of-00003.gguf" in said(tmp_path / "big.gguf", "N01")


def test_a_folder(tmp_path: Path) -> None:
    assert "no files" in said(tmp_path, "N02")
    (tmp_path / "README.md").write_text("x")
    assert "README.md" in said(tmp_path, "N02")
    (tmp_path / "m.gguf").write_bytes(model().bytes())
    assert check(str(tmp_path)).readable


NAMES = [
    ("m.gguf.part1of3", "m.gguf.part2of3", "m.gguf.part10of3"),
    ("m.gguf-split-a", "m.gguf-split-b", "m.gguf-split-c"),
    ("m.gguf.001", "m.gguf.002", "m.gguf.003"),
    ("m.gguf.part-aa", "m.gguf.part-ab", "m.gguf.part-ac"),
    ("m-part1.gguf"[:-5], "m-part2", "m-part3"),
    ("m.ggufaa", "m.ggufab", "m.ggufac"),
]


@pytest.mark.parametrize("names", NAMES, ids=[names[0] for names in NAMES])
def test_byte_split_parts(tmp_path: Path, names: list[str]) -> None:
    data = model(T("blk.0.ffn_down.weight", (256, 64))).bytes()
    for index, name in enumerate(names):
        (tmp_path / name).write_bytes(data[index * 6000 : (index + 1) * 6000] or b"\x11")
    joined = " ".join(str(tmp_path / name) for name in names)
    line = f"cat {joined} > {tmp_path / 'm.gguf'}"
    assert line in said(tmp_path / names[1], "N08")
    first = said(tmp_path / names[0], "N08")
    assert line in first
    assert "bytes are missing" in first
    assert line in said(tmp_path / "m.gguf", "N08")
    assert line in said(tmp_path, "N02")


def test_an_unpacked_part_is_not_called_a_part(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf.001"
    path.write_bytes(gzip.compress(b"x"))
    assert "gunzip" in said(path, "N11")


def test_names_in_commands_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a b;rm.gguf.001"
    path.write_bytes(b"\x9c" * 100)
    assert f"cat '{path}' > '{tmp_path}/a b;rm.gguf'" in said(path, "N08")


@pytest.mark.parametrize("cut", [1, 1088, 1089, 3000])
def test_truncation_counts_bytes_and_tensors(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.gguf"
    whole = model(T("blk.0.a.weight"), T("blk.0.b.weight"))
    path.write_bytes(whole.bytes()[:-cut])
    text = said(path, "N09")
    assert f"{cut:,} of {len(whole.bytes()):,} bytes are missing" in text
    hit = -(-cut // 1088)
    assert f"{hit} tensor(s) of 4" in text
    (finding,) = diagnosed(path).diagnoses
    assert finding.tensors == ("token_embd.weight", "output.weight", "blk.0.a.weight", "blk.0.b.weight")[-hit:]


def test_missing_padding_is_no_truncation(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = model(T("blk.0.a.weight", (32, 31))).bytes()
    path.write_bytes(whole[:-2])
    assert check(str(path)).readable


def test_a_damaged_offset_is_no_truncation(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model(T("blk.0.a.weight", offset=1 << 60)).bytes())
    assert "offset is damaged" in said(path, "N14")


def test_forgotten_row_metadata_is_no_truncation(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    bare = 32 * 136
    tensors = [T(f"blk.0.{name}.weight", (256, 32), 144, nbytes=bare) for name in "abc"]
    path.write_bytes(model(*tensors).bytes())
    report = check(str(path))
    assert report.readable
    (finding,) = [f for f in report.findings if f.code == "F02"]
    assert len(finding.tensors) == 3
    path.write_bytes(model(*tensors).bytes()[:-64])
    assert "bytes are missing" in said(path, "N09")


def test_a_set_names_each_bad_shard(tmp_path: Path) -> None:
    paths = shards(tmp_path, 5)
    paths[1].write_bytes(POINTER)
    paths[3].write_bytes(paths[3].read_bytes()[:-100])
    report = diagnosed(paths[0])
    assert [(f.code, f.where) for f in report.diagnoses] == [("N04", str(paths[1])), ("N09", str(paths[3]))]
    assert report.files == 5


def test_what_can_be_read_is_no_diagnosis(tmp_path: Path) -> None:
    """Later shards, other byte orders, imatrix files, adapters, joined shards and long files are findings of rules."""
    files = {
        "F16": model(order=">"),
        "F17": model(tail=bytes(100)),
        "F18": File(tensors=[], kvs=[("split.count", "u16", 2)], tail=model().bytes()),
        "F27": File(kvs=[("general.type", "str", "mmproj"), ("general.architecture", "str", "clip")]),
    }
    for code, file in files.items():
        path = tmp_path / f"{code}.gguf"
        path.write_bytes(file.bytes())
        assert code in {f.code for f in check(str(path)).findings}


def test_a_real_shard_2() -> None:
    path = FIXTURES / "engines" / "sets" / "ik-IQ4_KS" / "tiny-llama-TEST-IQ4_KS-SPECIAL_TENSOR-00002-of-00022.gguf"
    report = check(str(path), CheckOptions(this_file_only=True))
    (finding,) = [f for f in report.findings if f.code == "F21"]
    assert "shard 2 of 22" in finding.message
    assert "load shard 1" in finding.way_out


def test_reads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zeroed file of a terabyte (a hole) is told from a few kilobytes of it."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as out:
        out.truncate(1 << 40)
    reads = []

    from gguftool.storage.sources.local import LocalSource

    read = LocalSource.read_at
    monkeypatch.setattr(LocalSource, "read_at", lambda self, at, n: reads.append(n) or read(self, at, n))
    assert "data at 0 of 8 sampled places" in said(path, "N07")
    assert sum(reads) < 1 << 18


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model().bytes())

    from gguftool.storage.sources.local import LocalSource

    def refuse(self: LocalSource, offset: int, length: int) -> bytes:
        raise SourceError("cannot read: Input/output error", source=self.name, offset=offset)

    monkeypatch.setattr(LocalSource, "read_at", refuse)
    assert "Input/output error" in said(path, "N01")


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 12, 23, 24])
@pytest.mark.parametrize("byte", [b"\0", b"G", b"\xff"])
def test_short_files_are_named_too(tmp_path: Path, length: int, byte: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes((b"GGUF" + byte * 20)[:length])
    diagnosed(path)
    path.write_bytes(byte * length)
    diagnosed(path)


def test_a_zip_as_written_by_python(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.json", json.dumps({}))
    assert "zip" in said(path, "N11")
