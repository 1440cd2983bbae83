"""Reports, plans and receipts on standard output: text in a pipe, tables by rich on a terminal, or JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from gguftool.cli.shared.console import ReaderGone, drop_stdout, remark, standard_output, write, write_exactly
from gguftool.errors import ExecuteError
from gguftool.render.table import Table, render_rich, text_of

if TYPE_CHECKING:
    from rich.console import Console

    from gguftool.storage.plan import Preview, Receipt

T = TypeVar("T")


def show_tables(tables: Sequence[Table]) -> None:
    """Show tables: with rich on a terminal, as plain text in a pipe."""
    if sys.stdout is None or not sys.stdout.isatty():
        write(text_of(tables))
        return
    console = rich_console()
    with standard_output():
        for table in tables:
            console.print(render_rich(table))


def rich_console() -> Console:
    """Return a console for standard output that reads no text as markup."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def write_json(data: object) -> None:
    """Write a report, a plan or a receipt as one JSON document."""
    from gguftool.render.json_text import render_json

    write(render_json(data))


def show(data: T, text: Callable[[T], str], *, json: bool) -> None:
    """Write data as JSON where asked, else as `text` makes of it."""
    if json:
        write_json(data)
    else:
        write(text(data))


def show_preview(preview: Preview, *, json: bool) -> None:
    """Say what a plan would write, and from what."""
    from gguftool.render.plan import preview_text

    show(preview, preview_text, json=json)


def show_receipt(receipt: Receipt, *, json: bool, model: str = "") -> None:
    """Say what was written; digests are the data then, as `hash --files` and `hash` print them.

    `model` is the name of the model's first file, which lines of tensors begin with.

    The files are the product, and complete: where standard output cannot take this, it is told on standard error, and
    the exit code stays 0.
    """
    from gguftool.render.plan import receipt_text

    try:
        if json:
            write_json(receipt)
        elif receipt.digests is None:
            write(receipt_text(receipt))
        else:
            _show_digests(receipt, model)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (ExecuteError, OSError, ReaderGone) as error:
        drop_stdout()
        remark(f"all was written, but that could not be said: {error}")


def _show_digests(receipt: Receipt, model: str) -> None:
    from gguftool.analysis.verify import file_hashes, tensor_hashes
    from gguftool.render.hashes import manifest_text, sums_text
    from gguftool.render.plan import receipt_text

    remark(receipt_text(receipt).rstrip())
    write_exactly(sums_text(file_hashes(receipt)))
    write(manifest_text(tensor_hashes(receipt, model)))
