"""What was published: hashes of maps, signatures of maps, and what no one recorded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguftool.cooking.making import signatures
from gguftool.cooking.making.gather import Gathered, gather
from gguftool.cooking.making.published import check_published
from gguftool.errors import PlanError, SourceError
from gguftool.format.recipe import parse_recipe
from tests.support.suite import make_suite

RECIPE = parse_recipe("norm=f32\nattn=q4_K\n.*=q8_0")
GPG = shutil.which("gpg")
needs_gpg = pytest.mark.skipif(GPG is None, reason="gpg is not installed: apt-get install gnupg")


@pytest.fixture
def gathered(tmp_path: Path) -> Gathered:
    return gather(make_suite(tmp_path, ("Q4_K", "Q8_0")), RECIPE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GPG home with a key of its own; short, as sockets lie in it."""
    folder = tmp_path_factory.mktemp("g")
    folder.chmod(0o700)
    _gpg(folder, "--passphrase", "", "--quick-gen-key", "Maker <maker@example.org>", "ed25519", "sign", "never")
    yield folder
    subprocess.run(["gpgconf", "--homedir", str(folder), "--kill", "all"], check=False, capture_output=True)


@pytest.fixture
def keys(home: Path, tmp_path: Path) -> str:
    path = tmp_path / "trusted-keys.asc"
    _gpg(home, "--armor", "--output", str(path), "--export")
    return str(path)


def _gpg(home: Path, *words: str) -> None:
    subprocess.run([str(GPG), "--homedir", str(home), "--batch", "--yes", *words], check=True, capture_output=True)


def _sign(home: Path, gathered: Gathered) -> None:
    for one in gathered.repositories:
        _gpg(home, "--detach-sign", str(one.map))
    first = next(path for path in Path(gathered.repositories[0].folder).iterdir() if "-00001-of-" in path.name)
    _gpg(home, "--detach-sign", str(first))


@needs_gpg
def test_maps_that_the_keys_signed_pass(gathered: Gathered, home: Path, keys: str) -> None:
    _sign(home, gathered)
    (remark,) = check_published([gathered], keys)
    assert remark.startswith("signatures, good: ")


@needs_gpg
def test_a_map_that_was_changed_after_signing_is_refused_also_without_keys(
    gathered: Gathered, home: Path, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sign(home, gathered)
    with open(str(gathered.repositories[1].map), "a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(SourceError, match=r"1 file\(s\).*tensors\.map: its signature is bad"):
        check_published([gathered], keys)
    monkeypatch.setenv("GNUPGHOME", str(home))
    with pytest.raises(SourceError, match="its signature is bad"):
        check_published([gathered])


@needs_gpg
def test_with_keys_a_missing_signature_and_a_stranger_are_refused(
    gathered: Gathered, home: Path, keys: str, tmp_path: Path
) -> None:
    _sign(home, gathered)
    Path(f"{gathered.repositories[1].map}.sig").unlink()
    with pytest.raises(SourceError, match=r"1 file\(s\).*: not signed"):
        check_published([gathered], keys)
    stranger = tmp_path / "s"
    stranger.mkdir(mode=0o700)
    _gpg(stranger, "--passphrase", "", "--quick-gen-key", "Other <o@example.org>", "ed25519", "sign", "never")
    _sign(stranger, gathered)
    with pytest.raises(SourceError, match=r"3 file\(s\).*its key is not known \([0-9A-F]{16}\)"):
        check_published([gathered], keys)
    subprocess.run(["gpgconf", "--homedir", str(stranger), "--kill", "all"], check=False, capture_output=True)


@needs_gpg
def test_a_signature_that_is_none_is_bad(gathered: Gathered, keys: str) -> None:
    Path(f"{gathered.repositories[0].map}.sig").write_bytes(b"no signature")
    with pytest.raises(SourceError, match="its signature is bad"):
        check_published([gathered], keys)


@needs_gpg
def test_keys_that_are_none_are_named(gathered: Gathered, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("no keys")
    with pytest.raises(SourceError, match="holds no keys that gpg can read"):
        check_published([gathered], str(tmp_path / "keys"))


def test_without_gpg_it_is_said_and_keys_are_refused(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "_PROGRAM", "no-such-gpg")
    (remark,) = check_published([gathered])
    assert remark.startswith("signatures, gpg is not installed: ")
    with pytest.raises(PlanError, match="needs gpg, which is not installed"):
        check_published([gathered], "keys.asc")


def test_a_shard_with_another_tensor_than_its_map_says_is_refused(tmp_path: Path) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    path = Path(template.replace("{QTYPE}", "Q8_0")) / "tensors.map"
    path.write_text(path.read_text().replace("shape=(256, 7)", "shape=(256, 9)"))
    with pytest.raises(SourceError, match=r"has shape \(256, 7\), the map says \(256, 9\)"):
        check_published([gather(template, RECIPE)])
