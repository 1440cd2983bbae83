"""Decoders for compressed streams, chosen by the first bytes: Python's bzip2, zstd of Python 3.14 or of `zstandard`.

A decoder is a file to read from front to back. It never holds more than a window and a block in memory, whatever the
file claims.

Sources: RFC 8878 section 3.1.1 (head of a zstd frame); the magic of bzip2 is that of its first block.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import IO, Any

from gguftool.errors import SourceError
from gguftool.record import record

HEAD = 18  # bytes that `find_packing` needs: the longest head of a zstd frame
_ZSTD, _BZIP2 = b"\x28\xb5\x2f\xfd", b"BZh"
_WINDOW_LOG = 27  # 128 MiB; zstd -19 takes 8 MiB
_INSTALL = "pip install zstandard"


@record
class Packing:
    """A compression format: `open` makes a decoder for a file; `size`: decompressed bytes, None if not stated.

    `errors` are the exceptions that the decoder raises for damaged data.
    """

    name: str
    open: Callable[[IO[bytes]], IO[bytes]]
    errors: tuple[type[Exception], ...]
    size: int | None = None


def find_packing(head: bytes, source: str) -> Packing:
    """The packing of a file that begins with `head`; raises `SourceError` if it is another, or a library is missing."""
    if head.startswith(_ZSTD):
        return _zstd(_stated_size(head), source)
    if head.startswith(_BZIP2):
        return _bzip2(source)
    raise SourceError(
        f"a .zbst is zstd or bzip2, but this begins with {head[:4].hex(' ') or 'nothing'}; "
        "if it is not packed, its name should end in .gguf",
        source=source,
    )


def _bzip2(source: str) -> Packing:
    try:
        import bz2
    except ImportError:  # Python may be built without it
        raise SourceError("is bzip2, which this Python cannot read; unpack it: bzip2 -d", source=source) from None
    return Packing(name="bzip2", open=bz2.BZ2File, errors=(OSError, EOFError, ValueError))


def _zstd(size: int | None, source: str) -> Packing:
    if sys.version_info >= (3, 14):
        from compression import zstd

        options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        return Packing(
            name="zstd",
            open=lambda file: zstd.ZstdFile(file, options=options),
            errors=(zstd.ZstdError, EOFError),
            size=size,
        )
    try:
        import zstandard
    except ImportError:
        raise SourceError(f"is zstd, which needs one more library: {_INSTALL}", source=source) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)

    def opened(file: IO[bytes]) -> IO[bytes]:
        reader: Any = decompressor.stream_reader(file, read_across_frames=True)
        return io.BufferedReader(reader)

    return Packing(name="zstd", open=opened, errors=(zstandard.ZstdError, EOFError), size=size)


def _stated_size(head: bytes) -> int | None:
    """The size of its content that a zstd frame states."""
    if len(head) < HEAD:
        return None
    descriptor = head[4]
    flag, single = descriptor >> 6, descriptor >> 5 & 1
    length = (1 if single else 0, 2, 4, 8)[flag]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(head[start : start + length], "little") + (256 if flag == 1 else 0)
    return size if length else None
