"""A plan before it is carried out, and the receipt after."""

from __future__ import annotations

from gguftool.errors import printable
from gguftool.render.table import Table, columns, text_of
from gguftool.render.units import format_size
from gguftool.storage.execute import Receipt
from gguftool.storage.plan import BLOCK, Preview


def preview_text(preview: Preview) -> str:
    """Return what a plan would write and take from where."""
    outputs = tuple((f"{size:,}", path) for path, size in preview.outputs)
    uses = tuple((f"{use.nbytes:,}", use.name) for use in preview.uses)
    tables = [
        Table(title=f"would write {len(outputs):,} file(s)", columns=columns(">bytes", "output"), rows=outputs),
        Table(title=f"from {len(uses):,} source(s)", columns=columns(">bytes", "source"), rows=uses),
    ]
    return f"{text_of(tables)}\n{_totals(preview)}; nothing was written (dry run)\n"


def _totals(preview: Preview) -> str:
    """Say what is written, what of it comes from where, and what could be shared instead."""
    said = [f"{format_size(preview.bytes_written)} to write, {format_size(preview.bytes_copied)} of it copied"]
    said.append(f"{format_size(preview.bytes_congruent)} of that can be shared where the file system can (XFS, btrfs)")
    more = preview.bytes_congruent_padded - preview.bytes_congruent
    if more > 0:
        said.append(f"{format_size(more)} more were it moved by less than {BLOCK} bytes (--pad; --align {BLOCK})")
    return ", ".join(said)


def receipt_text(receipt: Receipt) -> str:
    """Return one line on what was written."""
    first, last = printable(str(receipt.paths[0]), 4096), printable(str(receipt.paths[-1]), 4096)
    if len(receipt.paths) == 1:
        return f"wrote {first} ({format_size(receipt.nbytes)})\n"
    return f"wrote {len(receipt.paths):,} files, {first} to {last} ({format_size(receipt.nbytes)})\n"
