"""`--cache`: a second look at a remote head costs a byte, and is never a look at another file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gguftool.storage.sources import head_cache
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.nginx import Nginx

Start = Callable[[Path], Nginx]


@pytest.fixture
def server(tmp_path: Path, nginx: Start) -> Nginx:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "m.gguf").write_bytes(b.gguf(b.llama_kvs(vocabulary=60_000), b.llama_tensors()))
    return nginx(tmp_path / "www")


def dump(server: Nginx, *options: object, query: str = "") -> tuple[bytes, int, int]:
    """The output, and how many requests and bytes it took."""
    requests, sent = len(server.log()), server.sent
    done = run_gguftool(*options, "dump", server.url("m.gguf") + query, "--array-limit", "60000")
    assert done.returncode == 0, done.stderr
    return done.stdout, len(server.log()) - requests, server.sent - sent


def test_a_second_look_costs_one_byte(server: Nginx, tmp_path: Path) -> None:
    wanted, _, size = dump(server)
    first, _, fetched = dump(server, "--cache", tmp_path / "kept")
    again, requests, sent = dump(server, "--cache", tmp_path / "kept")
    assert wanted == first == again
    assert fetched == size > 500_000
    assert (requests, sent) == (1, 1)


def test_nothing_is_kept_unless_asked(server: Nginx, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    dump(server)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_is_another_now_is_fetched_anew(server: Nginx, tmp_path: Path) -> None:
    dump(server, "--cache", tmp_path / "kept")
    path = tmp_path / "www" / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(vocabulary=50_000), b.llama_tensors()))
    found, _, sent = dump(server, "--cache", tmp_path / "kept")
    assert found == dump(server)[0]
    assert sent > 400_000
    assert dump(server, "--cache", tmp_path / "kept")[1:] == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "link", "other"])
def test_what_is_damaged_is_fetched_anew(server: Nginx, tmp_path: Path, damage: str) -> None:
    kept = tmp_path / "kept"
    wanted = dump(server, "--cache", kept)[0]
    (entry,) = kept.iterdir()
    data = entry.read_bytes()
    if damage == "link":
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        other = data.replace(b"m.gguf", b"n.gguf", 1)
        contents = {"cut": data[:-100], "flipped": flipped, "empty": b"", "text": b"[" * 100_000, "other": other}
        entry.write_bytes(contents[damage])
    found, _, sent = dump(server, "--cache", kept)
    assert found == wanted
    assert sent > 500_000


def test_entries_are_the_owners_alone_and_hold_no_secret(server: Nginx, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    dump(server, "--cache", kept, query="?sig=hushhush")
    (entry,) = kept.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert b"hushhush" not in entry.read_bytes()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="gives a file to another user: run as root")
def test_what_another_user_put_there_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(head_cache.VARIABLE, str(tmp_path))
    head_cache.store("http://host/m.gguf", "identity", b"head")
    (entry,) = tmp_path.iterdir()
    assert head_cache.load("http://host/m.gguf") is not None
    os.chown(entry, 65534, 65534)
    assert head_cache.load("http://host/m.gguf") is None


def test_a_folder_that_cannot_be_made_is_said(server: Nginx, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = run_gguftool("--cache", tmp_path / "file" / "kept", "dump", server.url("m.gguf"))
    assert done.returncode == 2
    assert b"cannot cache heads here" in done.stderr


def test_the_environment_names_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(head_cache.VARIABLE, str(tmp_path / "kept"))
    head_cache.store("http://host/m.gguf", "identity", b"head")
    found = head_cache.load("http://host/m.gguf")
    assert found is not None
    assert (found.identity, found.head) == ("identity", b"head")
    assert head_cache.load("http://host/n.gguf") is None
