"""The contract of every Source; a new backend adds its maker to MAKERS."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import SourceError
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.locate import expand, open_source
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.sources.virtual import BytesSource, joined
from tests.support.memory_source import MemorySource
from tests.support.rude_server import RudeServer

DATA = bytes(range(256)) * 300


def _local(folder: Path, data: bytes) -> Source:
    path = folder / "local.bin"
    path.write_bytes(data)
    path.chmod(0o400)
    return open_local(path)


def _symlink(folder: Path, data: bytes) -> Source:
    (folder / "blob").write_bytes(data)
    (folder / "link.bin").symlink_to("blob")
    return open_source(str(folder / "link.bin"))


_names = itertools.count()


@lru_cache(maxsize=1)
def _web() -> RudeServer:
    """A server that behaves; its threads end with the tests."""
    return RudeServer()


def _http(folder: Path, data: bytes) -> Source:
    name = f"{next(_names)}.bin"
    _web().files[name] = data
    return open_source(_web().url("honest", name))


def _redirected(folder: Path, data: bytes) -> Source:
    name = f"{next(_names)}.bin"
    _web().files[name] = data
    return open_source(_web().url("linked_etag", name))


def _fsspec(folder: Path, data: bytes) -> Source:
    import fsspec

    name = f"memory://{folder.name}/{next(_names)}.bin"
    with fsspec.open(name, "wb") as file:
        file.write(data)
    return open_source(name)


def _joined(folder: Path, data: bytes) -> Source:
    """Pieces of all lengths of a file in which they lie in the opposite order, with a byte between them."""
    cuts = [0, 1, 2, 5, 4000, 30_000, 30_001, len(data)]
    pieces = [data[start:stop] for start, stop in itertools.pairwise(cuts)]
    file, end, extents = _local(folder, b"|".join(pieces[::-1])), 0, []
    for piece in pieces[::-1]:
        extents.append(Extent(source=file, offset=end, length=len(piece)))
        end += len(piece) + 1
    return joined(extents[::-1]).source


MAKERS: dict[str, Callable[[Path, bytes], Source]] = {
    "local": _local,
    "through a symlink": _symlink,
    "memory": lambda folder, data: MemorySource(label="memory.bin", data=data),
    "bytes": lambda folder, data: BytesSource(label="list.bin", data=data),
    "joined": _joined,
    "http": _http,
    "http, redirected": _redirected,
    "fsspec": _fsspec,
}
every_source = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_source
@given(offset=st.integers(0, len(DATA)), length=st.integers(0, len(DATA)))
def test_reads_exactly_what_is_asked(
    make: Callable[[Path, bytes], Source], tmp_path_factory: pytest.TempPathFactory, offset: int, length: int
) -> None:
    source = make(tmp_path_factory.mktemp("source"), DATA)
    length = min(length, len(DATA) - offset)
    assert source.read_at(offset, length) == DATA[offset : offset + length]
    assert Extent(source=source, offset=offset, length=length).read() == DATA[offset : offset + length]


@every_source
@pytest.mark.parametrize(("offset", "length"), [(len(DATA) - 1, 2), (len(DATA), 1), (1 << 62, 1)])
def test_reading_past_the_end_is_an_error_that_names_the_source(
    make: Callable[[Path, bytes], Source], tmp_path: Path, offset: int, length: int
) -> None:
    source = make(tmp_path, DATA)
    with pytest.raises(SourceError) as error:
        source.read_at(offset, length)
    assert error.value.source == source.name


@every_source
def test_size_name_and_identity(make: Callable[[Path, bytes], Source], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source, other = make(tmp_path / "a", DATA), make(tmp_path / "b", DATA[1:])
    assert source.size == len(DATA)
    assert source.name.endswith(".bin")
    assert source.identity != other.identity
    assert source.file_id is None or source.file_id != other.file_id
    source.check_unchanged()


@every_source
def test_a_lent_descriptor_reads_the_same_bytes_and_cannot_write(
    make: Callable[[Path, bytes], Source], tmp_path: Path
) -> None:
    source = make(tmp_path, DATA)
    lent = source.descriptor()
    if lent is None:
        assert source.file_id is None
        return
    with lent as fd:
        assert os.pread(fd, 100, 1000) == DATA[1000:1100]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@every_source
def test_many_threads_may_read_one_source(make: Callable[[Path, bytes], Source], tmp_path: Path) -> None:
    source = make(tmp_path, DATA)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda offset: source.read_at(offset, 300), range(0, len(DATA), 300)))
    assert b"".join(parts) == DATA


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _replace(path: Path) -> None:
    (path.parent / "new").write_bytes(DATA)
    os.replace(path.parent / "new", path)


@pytest.mark.parametrize("change", [_append, _rewrite, _replace, lambda path: os.truncate(path, 5), Path.unlink])
def test_a_local_file_that_changed_is_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    source = open_local(path)
    change(path)
    for use in (source.check_unchanged, lambda: source.read_at(0, 1)):
        with pytest.raises(SourceError, match=r"changed since it was opened|No such file"):
            use()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file"),
        (Path.mkdir, "is a directory"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("/dev/null"), "not a regular file"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "x.gguf"
    make(path)
    with pytest.raises(SourceError, match=said) as error:
        open_local(path)
    assert error.value.source == str(path)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sources = []
    for number in range(50):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(DATA)
        sources.append(open_local(path))
    assert [source.read_at(0, 2) for source in sources] == [DATA[:2]] * 50
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    for name in ("a[1].gguf", "a1.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert expand(str(tmp_path / "a[1].gguf"), ".gguf") == (str(tmp_path / "a[1].gguf"),)
    assert len(expand(str(tmp_path / "a*.gguf"), ".gguf")) == 2
