"""The preview of a plan, and the receipt of its execution."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from gguftool.errors import printable
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.table import Table, columns
from gguftool.render.units import format_size
from gguftool.storage.plan import BLOCK, Preview, Receipt

_MAX_FILES = 20  # to list one by one
_WORTH_A_HINT = 64 << 10  # bytes that could be shared but are not


@renders(Preview, Format.TEXT)
def preview_parts(preview: Preview) -> Iterator[str | Table]:
    """Yield the files that a plan would write, and its sources."""
    outputs = preview.outputs
    uses = [(use.name, use.nbytes) for use in preview.uses]
    yield _files(f"would write {len(outputs):,} file(s)", "output", outputs)
    yield _files(f"from {len(uses):,} source(s)", "source", uses)
    freed = [(use.name, use.nbytes) for use in preview.freed]
    if freed:
        yield _files(f"would remove {len(freed):,} source(s)", "source", freed)
    yield f"{_totals(preview)}; nothing was written (dry run)\n"


def _files(title: str, head: str, files: Sequence[tuple[str, int]]) -> Table:
    return Table(title=title, columns=columns(">bytes", head, start=head), rows=_rows(files))


def _totals(preview: Preview) -> str:
    """Sum up the bytes to write, where they come from, and how many could be shared instead."""
    parts = [f"{format_size(preview.bytes_written)} to write, {format_size(preview.bytes_copied)} of it copied"]
    if preview.bytes_fetched:
        parts.append(f"{format_size(preview.bytes_fetched)} fetched over the network")
    if preview.bytes_congruent:
        shared = format_size(preview.bytes_congruent)
        parts.append(f"{shared} of that can be shared if the file system supports it (XFS, btrfs)")
    more = preview.bytes_congruent_padded - preview.bytes_congruent
    if more >= _WORTH_A_HINT:
        parts.append(f"{format_size(more)} more with --align {BLOCK}, or --pad if the command has it")
    return ", ".join(parts)


def _rows(files: Sequence[tuple[str, int]]) -> tuple[tuple[str, str], ...]:
    """Make a row for each file or, if they do not fit on a screen, for each folder (`--json` lists every file)."""
    if len(files) <= _MAX_FILES:
        return tuple((f"{nbytes:,}", name) for name, nbytes in files)
    folders: dict[str, list[int]] = {}
    for name, nbytes in files:
        folders.setdefault(os.path.dirname(name) or ".", []).append(nbytes)
    return tuple(
        (f"{sum(sizes):,}", f"{folder}/ ({len(sizes):,} file{'s' * (len(sizes) > 1)})")
        for folder, sizes in folders.items()
    )


@renders(Receipt, Format.TEXT)
def receipt_text(receipt: Receipt) -> str:
    """Sum up the files written in one line."""
    first, last = printable(str(receipt.paths[0]), 4096), printable(str(receipt.paths[-1]), 4096)
    freed = f", removed {len(receipt.freed):,} source file(s)" if receipt.freed else ""
    if len(receipt.paths) == 1:
        return f"wrote {first} ({format_size(receipt.nbytes)}){freed}\n"
    return f"wrote {len(receipt.paths):,} files, {first} to {last} ({format_size(receipt.nbytes)}){freed}\n"
