"""Opening importance matrices."""

from __future__ import annotations

import os

from gguftool.errors import FormatError
from gguftool.format.imatrix import MAX_IMATRIX, Imatrix, parse_imatrix
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Source


def open_imatrix(spec: str | os.PathLike[str]) -> Imatrix:
    """Read a whole imatrix file of either format.

    Raises `SourceError` where it cannot be read, `FormatError` naming the place where it is none.
    """
    return read_imatrix(open_source(os.fspath(spec)))


def read_imatrix(source: Source) -> Imatrix:
    """Read the imatrix that `source` is; raises as `open_imatrix` does."""
    if source.size > MAX_IMATRIX:  # before the bytes are asked for
        raise FormatError(
            f"has {source.size:,} bytes; an imatrix of at most {MAX_IMATRIX:,} is read", source=source.name
        )
    return parse_imatrix(source.read_at(0, source.size), source.name)
