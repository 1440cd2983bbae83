"""Files behind any scheme that fsspec knows, tried with its file system in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gguftool.errors import SourceError
from gguftool.model.opening import open_model
from gguftool.storage.sources.locate import expand, open_source
from gguftool.storage.sources.source import AbsentError, ChangedError
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool

DATA = bytes(range(256)) * 40


@pytest.fixture
def files() -> Iterator[Callable[[str, bytes], None]]:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory.pipe_file
    memory.store.clear()


def test_sets_folders_and_globs(files: Callable[[str, bytes], None]) -> None:
    tensors = b.llama_tensors(2)
    shards = b.shard_set("m", [tensors[at::3] for at in range(3)])
    for name, data in shards.items():
        files(f"/bucket/set/{name}", data)
    names = [f"memory://bucket/set/{name}" for name in shards]
    assert list(expand("memory://bucket/set", ".gguf")) == names
    assert list(expand("memory://bucket/*/*.gguf", ".gguf")) == names
    for spec in (names[1], "memory://bucket/set", "memory://bucket/set/*.gguf"):
        model = open_model(spec)
        assert model.is_complete
        assert [source.name for source in model.sources] == names
    with pytest.raises(SourceError, match="no file matches"):
        expand("memory://bucket/nothing*", ".gguf")


def test_a_change_is_noticed(files: Callable[[str, bytes], None]) -> None:
    files("/a.bin", DATA)
    source = open_source("memory://a.bin")
    source.check_unchanged()
    files("/a.bin", DATA[::-1])
    with pytest.raises(ChangedError):
        source.check_unchanged()
    assert open_source("memory://a.bin").identity != source.identity


def test_what_is_not_there(files: Callable[[str, bytes], None]) -> None:
    with pytest.raises(AbsentError, match="no such file"):
        open_source("memory://nothing.gguf")
    files("/folder/a.gguf", DATA)
    with pytest.raises(SourceError, match="is a directory"):
        open_source("memory://folder")


@pytest.mark.parametrize(
    "wrong", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: None]
)
def test_a_file_system_that_gives_other_lengths_is_not_believed(
    files: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch, wrong: Callable[[bytes], Any]
) -> None:
    import fsspec

    files("/a.bin", DATA)
    source = open_source("memory://a.bin")
    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "cat_file", lambda self, path, start, end: wrong(DATA[start:end]))
    with pytest.raises(SourceError, match="does not honour ranges"):
        source.read_at(10, 100)


def test_what_a_file_system_raises_is_one_line_without_its_words(
    files: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    def fail(*args: object, **options: object) -> bytes:
        raise RuntimeError("secret://key:s3cr3t@host\nsecond line")

    files("/a.bin", DATA)
    source = open_source("memory://a.bin")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    with pytest.raises(SourceError) as error:
        source.read_at(0, 1)
    assert str(error.value) == "memory://a.bin: cannot be read: RuntimeError"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/a.gguf", "s3fs"),
        ("gs://bucket/a.gguf", "gcsfs"),
        ("nosuch://bucket/a.gguf", "not a scheme that fsspec knows"),
    ],
)
def test_a_scheme_that_cannot_be_read_says_what_is_missing(url: str, said: str) -> None:
    done = run_gguftool("dump", url)
    assert done.returncode == 2
    assert said in one_error_line(done.stderr)


def test_file_urls_are_paths(tmp_path: Path) -> None:
    path = tmp_path / "a b.gguf"
    path.write_bytes(b.small_model())
    model = open_model(f"file://{tmp_path}/a%20b.gguf")
    assert model.sources[0].file_id is not None
    assert model.sources[0].name == str(path)
    with pytest.raises(SourceError, match="another machine"):
        open_model("file://elsewhere/a.gguf")
