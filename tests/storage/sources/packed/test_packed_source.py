"""Packed files are read as what is in them, in bounded memory, and what is damaged is named."""

from __future__ import annotations

import bz2
import random
from pathlib import Path

import pytest

from gguftool.errors import LimitError, SourceError
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.packed.packed_source import PackedSource
from tests.support.packing import zstd

DATA = random.Random(5).randbytes(300_000) + bytes(200_000) + random.Random(6).randbytes(3_000_000)
PACKED = {
    "zstd": zstd(DATA),
    "zstd that does not say its size": zstd(DATA, stated=False),
    "two zstd frames": zstd(DATA[:1000], stated=False) + zstd(DATA[1000:]),
    "bzip2": bz2.compress(DATA),
    "two bzip2 streams, as lbzip2 makes": bz2.compress(DATA[:1000]) + bz2.compress(DATA[1000:]),
}


def _source(tmp_path: Path, data: bytes) -> PackedSource:
    path = tmp_path / "packed.gguf.zbst"
    path.write_bytes(data)
    return PackedSource(open_local(path))


@pytest.mark.parametrize("how", PACKED)
def test_every_range_reads_as_unpacked(tmp_path: Path, how: str) -> None:
    source = _source(tmp_path, PACKED[how])
    assert source.size == len(DATA)
    for offset, length in ((0, 10), (100, 400_000), (50, 7), (len(DATA) - 5, 5), (len(DATA), 0), (0, len(DATA))):
        assert source.read_at(offset, length) == DATA[offset : offset + length]
    assert b"".join(bytes(piece) for piece in source.stream(3, len(DATA) - 3)) == DATA[3:]


def test_the_ending_opens_it_packed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf.zbst"
    path.write_bytes(zstd(b"content"))
    assert open_source(str(path)).read_at(0, 7) == b"content"


@pytest.mark.parametrize("how", ["zstd", "bzip2"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_what_is_cut_off_is_named_and_never_read_as_zeros(tmp_path: Path, how: str, kept: float) -> None:
    data = PACKED[how]
    with pytest.raises(SourceError, match=r"damaged|\.zbst is zstd or bzip2"):
        _source(tmp_path, data[: int(len(data) * kept)]).read_at(0, len(DATA))


def test_flipped_bytes_are_named(tmp_path: Path) -> None:
    damaged = bytearray(PACKED["bzip2"])
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(SourceError, match="bzip2 data are damaged"):
        _source(tmp_path, bytes(damaged))


def test_a_frame_that_understates_its_content_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, zstd(DATA[:1000]) + zstd(DATA[1000:]))
    assert source.size == 1000  # by its first frame
    with pytest.raises(SourceError, match="holds more than the 1,000 bytes"):
        source.read_at(0, 1000)


@pytest.mark.parametrize("pack", [bz2.compress, zstd, lambda data: zstd(data, stated=False)])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LimitError, match="gguftool unpacks up to 64 times the size"):
        _source(tmp_path, pack(bytes(120 << 20)))


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, len(DATA) + 1), (len(DATA) + 1, 0)])
def test_reads_beyond_the_end_are_refused(tmp_path: Path, offset: int, length: int) -> None:
    with pytest.raises(SourceError, match="bytes requested from"):
        _source(tmp_path, PACKED["zstd"]).read_at(offset, length)
