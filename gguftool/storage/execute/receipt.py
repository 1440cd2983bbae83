"""What came of a plan that was carried out."""

from __future__ import annotations

from pathlib import Path

from gguftool.record import record


@record
class Digest:
    """The sha256, in hex, of what `name` says: a file, or a named range."""

    name: str
    sha256: str


@record
class Digests:
    """What was hashed of a plan's outputs.

    `files`: each output; `parts`: each named range, in the plan's sequence; `whole`: all of these one after the other,
    None where the outputs hold only some of a set's, or have no named ranges.
    """

    files: tuple[Digest, ...]
    parts: tuple[Digest, ...]
    whole: str | None


@record
class Receipt:
    """What was written: the paths in the plan's order, the bytes of all of them, and the digests asked for.

    `freed` are the sources that were removed.
    """

    paths: tuple[Path, ...]
    nbytes: int
    digests: Digests | None = None
    freed: tuple[str, ...] = ()
