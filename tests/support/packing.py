"""Pack files as the suite does: zstd, or bzip2."""

from __future__ import annotations

import bz2
import sys
from pathlib import Path
from typing import Any


def zstd(data: bytes, *, stated: bool = True) -> bytes:
    """`data` as a zstd frame, which says how long its content is if `stated`."""
    if sys.version_info >= (3, 14):
        from compression import zstd as library

        options: Any = {library.CompressionParameter.content_size_flag: int(stated)}
        return library.compress(data, options=options)
    import zstandard

    compressor = zstandard.ZstdCompressor(write_content_size=stated)
    return compressor.compress(data)


def pack(path: Path, *, how: str = "zstd") -> Path:
    """Replace the file at `path` by a packed one."""
    data = path.read_bytes()
    packed = path.with_name(path.name + ".zbst")
    packed.write_bytes(zstd(data) if how == "zstd" else bz2.compress(data))
    path.unlink()
    return packed
