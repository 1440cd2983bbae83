"""Hashes that other tools check, and manifests of other tools that are checked here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

import gguftool
from gguftool.analysis.verify import hash_tensors, verify_manifest
from gguftool.errors import FormatError
from tests.support import builders as b
from tests.support.command import environment, run_gguftool
from tests.support.mix_models import SHAPES, data_of, per_tensor, quant


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hashed(*arguments: object, cwd: Path | None = None, code: int = 0) -> str:
    done = run_gguftool("hash", *arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done.stdout.decode("utf-8", "surrogateescape")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(quant(tmp_path / "m.gguf", "Q8_0"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return per_tensor(tmp_path / "s", "M-Q8_0", "Q8_0")


def _damage(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


# --- the manifest of llama-gguf-hash ---


def test_the_manifest_is_that_of_llama_gguf_hash(model: Path) -> None:
    """Source: llama.cpp examples/gguf-hash/gguf-hash.cpp, printf("%-8s  %s  %s:%s\\n")."""
    parts = {name: data_of("m.gguf", name, "F32" if len(dims) == 1 else "Q8_0", dims) for name, dims in SHAPES.items()}
    expected = [f"{'sha256':8}  {sha256(data)}  m.gguf:{name}" for name, data in parts.items()]
    expected.append(f"{'sha256':8}  {sha256(b''.join(parts.values()))}  m.gguf")
    assert hashed(model).splitlines() == expected


def test_a_tensors_hash_does_not_depend_on_the_file_around_it(tmp_path: Path, model: Path) -> None:
    assert run_gguftool("split", model, tmp_path / "s" / "M", "--align", "4096", "--no-sync").returncode == 0
    shards = gguftool.open_model(str(tmp_path / "s"))
    assert [one.sha256 for one in hash_tensors(shards)] == [
        one.sha256 for one in hash_tensors(gguftool.open_model(model))
    ]


@pytest.mark.parametrize("jobs", [1, 3])
def test_json_says_the_same(model: Path, jobs: int) -> None:
    listed = json.loads(hashed(model, "--json", "--jobs", jobs))
    assert [f"sha256    {one['sha256']}  {one['name']}" for one in listed] == hashed(model).splitlines()


def test_a_manifest_checks_what_it_was_made_of(tmp_path: Path, model: Path) -> None:
    manifest = tmp_path / "m.manifest"
    manifest.write_text(hashed(model))
    assert hashed("--check", manifest) == "8 match, 0 do not, 0 have no hash to compare\n"
    _damage(model)
    said = hashed("--check", manifest, code=1)
    assert "BAD  m.gguf:output.weight: sha256 is" in said
    assert "6 match, 2 do not" in said  # the last tensor, and all data


def test_a_manifest_checks_another_layout_of_the_model(tmp_path: Path, model: Path) -> None:
    manifest = tmp_path / "m.manifest"
    manifest.write_text(hashed(model))
    assert run_gguftool("split", model, tmp_path / "s" / "M", "--no-sync").returncode == 0
    assert hashed(tmp_path / "s", "--check", manifest).startswith("8 match, 0 do not")


def test_a_tensor_that_is_not_there_is_bad(tmp_path: Path, model: Path) -> None:
    manifest = tmp_path / "m.manifest"
    manifest.write_text(hashed(model) + f"sha256    {'0' * 64}  m.gguf:none.weight\n")
    assert "BAD  m.gguf:none.weight: is not in" in hashed("--check", manifest, code=1)


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, model: Path) -> None:
    """Otherwise the last line would count, and the others would be promises that nobody checks."""
    manifest, zeros = tmp_path / "m.manifest", "0" * 64
    whole = sha256(model.read_bytes())
    for good, bad in (
        (hashed(model), f"sha256    {zeros}  m.gguf:output.weight\n"),
        (f"{whole}  m.gguf\n", f"{zeros}  m.gguf\n"),
    ):
        manifest.write_text(bad + good)
        done = run_gguftool("hash", "--check", manifest)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"another hash of 'm.gguf" in done.stderr
        manifest.write_text(good + good)
        hashed("--check", manifest)


def test_hashes_in_capitals_are_the_same_hashes(tmp_path: Path, model: Path) -> None:
    manifest = tmp_path / "m.manifest"
    digest = hashed(model).split()[1]
    manifest.write_text(hashed(model).replace(digest, digest.upper()))
    assert hashed("--check", manifest) == "8 match, 0 do not, 0 have no hash to compare\n"


@pytest.mark.parametrize("algorithm", ["xxh64", "sha1", "uuid"])
def test_other_algorithms_are_refused_by_name(tmp_path: Path, model: Path, algorithm: str) -> None:
    manifest = tmp_path / "m.manifest"
    manifest.write_text(f"{algorithm:8}  0123456789abcdef  {model.name}:output.weight\n")
    done = run_gguftool("hash", "--check", manifest)
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"its hashes are {algorithm}; only sha256 is checked".encode() in done.stderr


def test_of_a_manifest_of_several_algorithms_sha256_is_checked(tmp_path: Path, model: Path) -> None:
    """What llama-gguf-hash --all writes."""
    lines = []
    for line in hashed(model).splitlines():
        name = line.split("  ", 2)[2].strip().partition("  ")[2]
        lines += [f"xxh64     0123456789abcdef  {name}", f"sha1      {'0' * 40}  {name}", line]
    manifest = tmp_path / "m.manifest"
    manifest.write_text("\n".join(lines) + "\n")
    assert hashed("--check", manifest).startswith("8 match, 0 do not")


# --- sha256sum ---


def test_sha256sum_checks_what_files_prints(tmp_path: Path, shards: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum: apt-get install coreutils")
    odd = shards / "odd \\ na\nme\x1b.gguf"
    odd.write_bytes(b.small_model())
    for spec in (shards / "M-Q8_0-00001-of-00008.gguf", odd):
        sums = run_gguftool("hash", "--files", spec)
        assert sums.returncode == 0, sums.stderr
        (tmp_path / "SUMS").write_bytes(sums.stdout)
        check = ["sha256sum", "--strict", "--check", "SUMS"]
        done = subprocess.run(check, cwd=tmp_path, capture_output=True, check=False, env=environment())
        assert done.returncode == 0, done.stdout + done.stderr
        assert hashed("--check", tmp_path / "SUMS").endswith(" 0 do not, 0 have no hash to compare\n")


def test_names_that_are_not_utf8_pass(tmp_path: Path) -> None:
    path = tmp_path / b"na\xffme.gguf".decode("utf-8", "surrogateescape")
    try:
        path.write_bytes(b.small_model())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only; run the tests on another (TMPDIR)")
    sums = run_gguftool("hash", "--files", path).stdout
    assert b"na\xffme.gguf\n" in sums
    (tmp_path / "SUMS").write_bytes(sums)
    assert hashed("--check", tmp_path / "SUMS").startswith("1 match, 0 do not")


@pytest.mark.parametrize("form", ["{}  {}", "{} *{}", "{}  ./{}"])
def test_what_sha256sum_writes_is_checked(tmp_path: Path, model: Path, form: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(form.format(sha256(model.read_bytes()).upper(), "m.gguf") + "\n")
    assert hashed("--check", tmp_path / "SHA256SUMS").startswith("1 match, 0 do not")
    _damage(model)
    assert "BAD" in hashed("--check", tmp_path / "SHA256SUMS", code=1)


def test_names_of_sums_count_from_here_where_they_are_not_beside_the_manifest(tmp_path: Path, shards: Path) -> None:
    """`sha256sum` counts from the working folder, published sums mean the files beside them."""
    sums = hashed("--files", Path("s") / "M-Q8_0-00001-of-00008.gguf", cwd=tmp_path)
    assert "  s/M-Q8_0-00001-of-00008.gguf\n" in sums
    (tmp_path / "s" / "SUMS").write_text(sums)
    assert hashed("--check", "s/SUMS", cwd=tmp_path).startswith("8 match, 0 do not")


def test_a_missing_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "SUMS").write_text(f"{'0' * 64}  none.gguf\n")
    assert "none.gguf: cannot open" in hashed("--check", tmp_path / "SUMS", code=1)


# --- tensors.map ---


def test_a_map_is_written_and_checked(shards: Path) -> None:
    hashed(shards, "--map")
    lines = (shards / "tensors.map").read_text().splitlines()
    first = shards / "M-Q8_0-00002-of-00008.gguf"
    shape = "shape=(256, 4):dtype=q8_0:elements=1024:bytes=1088"
    assert lines[0] == (f"{first.name}:{sha256(first.read_bytes())}:token_embd.weight:{shape}")
    assert len(lines) == 7
    assert hashed("--check", shards / "tensors.map").startswith("7 match, 0 do not")
    assert hashed(shards, "--check", shards / "tensors.map").startswith("7 match, 0 do not")


def test_a_damaged_a_missing_and_a_foreign_shard_are_found(shards: Path) -> None:
    hashed(shards, "--map")
    _damage(shards / "M-Q8_0-00003-of-00008.gguf")
    (shards / "M-Q8_0-00004-of-00008.gguf").unlink()
    (shards / "M-Q8_0-00005-of-00008.gguf").write_text("<html>")
    said = hashed("--check", shards / "tensors.map", code=1).splitlines()
    assert [line.split(":")[0][-26:] for line in said if line.startswith("BAD")] == [
        "M-Q8_0-00004-of-00008.gguf",
        "M-Q8_0-00005-of-00008.gguf",
        "M-Q8_0-00003-of-00008.gguf",
    ]
    assert said[-1].startswith("4 match, 3 do not")


def test_a_map_of_zeros_promises_nothing(shards: Path) -> None:
    hashed(shards, "--map")
    text = "".join(
        line.replace(line.split(":")[1], "0" * 64) + "\n" for line in (shards / "tensors.map").read_text().splitlines()
    )
    (shards / "tensors.map").write_text(text)
    assert hashed("--check", shards / "tensors.map", code=1) == "0 match, 0 do not, 7 have no hash to compare\n"


def test_a_map_is_not_written_over_without_force(shards: Path) -> None:
    hashed(shards, "--map")
    hashed(shards, "--map", code=2)
    hashed(shards, "--map", "--force")


def test_split_says_before_it_writes_that_a_map_is_there(tmp_path: Path, model: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "tensors.map").write_text("mine\n")
    done = run_gguftool("split", model, tmp_path / "s" / "M", "--map")
    assert (done.returncode, b"tensors.map: exists already" in done.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["tensors.map"]


@pytest.mark.parametrize("prefix", ["M[1]", "*", "M"])
def test_the_map_of_a_split_is_that_of_its_own_shards(tmp_path: Path, model: Path, prefix: str) -> None:
    other = run_gguftool("split", model, tmp_path / "s" / prefix, "--max-tensors", "3", "--no-sync")
    assert other.returncode == 0, other.stderr
    done = run_gguftool("split", model, tmp_path / "s" / prefix, "--map", "--no-sync")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "s" / "tensors.map").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{prefix}-{number:05d}-of-00008.gguf" for number in range(2, 9)]


def test_a_map_without_a_model_of_its_own_misses_files(tmp_path: Path, shards: Path, model: Path) -> None:
    hashed(shards, "--map")
    said = hashed(model, "--check", shards / "tensors.map", code=1)
    assert "is in the map but not in the model" in said


# --- what is no manifest ---


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "hello\n", "\0" * 99, f"{'0' * 64}  x\nhello\n"])
def test_anything_else_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(FormatError, match="x"):
        verify_manifest(str(tmp_path / "x"), None)


def test_a_windows_manifest_is_read(tmp_path: Path, model: Path) -> None:
    (tmp_path / "SUMS").write_bytes(f"\ufeff{sha256(model.read_bytes())}  m.gguf\r\n".encode())
    assert hashed("--check", tmp_path / "SUMS").startswith("1 match, 0 do not")


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "SUMS").write_text(f"{'0' * 64}  \x1b[2Jnone\n")
    said = hashed("--check", tmp_path / "SUMS", code=1)
    assert "\\x1b[2Jnone" in said
    assert "\x1b" not in said


def test_neither_model_nor_manifest_is_bad_usage() -> None:
    done = run_gguftool("hash")
    assert (done.returncode, b"MODEL is needed" in done.stderr) == (2, True)


def test_sums_are_checked_against_the_model_that_is_named(tmp_path: Path, model: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / model.name
    copy.write_bytes(model.read_bytes())
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(hashed(model, "--files") + f"{'0' * 64}  other.gguf\n")
    assert "1 match, 0 do not" in hashed(copy, "--check", sums)
    _damage(copy)
    assert "BAD" in hashed(copy, "--check", sums, code=1)
    renamed = copy.rename(tmp_path / "copy" / "unknown.gguf")
    assert "is not in the manifest" in hashed(renamed, "--check", sums, code=1)
