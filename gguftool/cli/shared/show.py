"""Show reports, plans and receipts on standard output: whole in a pipe, fitted to a terminal, or in another format."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gguftool.cli.shared.console import ReaderGone, drop_stdout, remark, standard_output, write, write_exactly
from gguftool.errors import ExecuteError
from gguftool.render.format import Format
from gguftool.render.registry import Part, joined, parts_of, render
from gguftool.render.screen import fitted

if TYPE_CHECKING:
    from gguftool.storage.plan import Receipt

_NARROWEST = 20


def show(
    report: object,
    format: Format = Format.TEXT,
    *,
    full_paths: bool = False,
    paths: Iterable[str] = (),
    **options: object,
) -> None:
    """Write a report in `format`; `options` are those of the report's renderers.

    Text is for this terminal. The other formats are for sharing: without `full_paths` they name no local folder.
    `paths` are files that the report names in fields that can also hold other things.
    """
    if format is Format.TEXT:
        show_parts(parts_of(report, **options))
    elif full_paths:
        write(render(report, format, **options))
    else:
        from gguftool.render.sharing import without_folders  # noqa: PLC0415 - only for output to share

        # Code scanning finds a file by its path in the repository.
        shared = without_folders(report, paths, below_here=format is Format.SARIF)
        write(render(shared, format, **options))


def show_parts(parts: Sequence[str | Part]) -> None:
    """Write parts of a report: joined in a pipe, fitted to a terminal; text from files is never read as markup."""
    if sys.stdout is None or not sys.stdout.isatty():
        write(joined(parts))
        return
    width = screen_width()
    for at, part in enumerate(parts):
        shown = fitted(part, width) if isinstance(part, str) else part.as_rich(width)
        if isinstance(shown, str):
            write(shown + "\n" * (at + 1 < len(parts)))
        else:
            _print_rich(shown, width)


def screen_width() -> int:
    """Return the terminal's columns, or the value of COLUMNS; 80 if neither is known."""
    from shutil import get_terminal_size  # noqa: PLC0415 - imports three compression libraries

    return max(get_terminal_size((80, 24)).columns, _NARROWEST)


def _print_rich(shown: object, width: int) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False, width=width)
    with standard_output():
        console.print(shown)


def show_receipt(receipt: Receipt, *, json: bool, model: str = "") -> None:
    """Show the files written, or their digests if there are any, as `hash --files` and `hash` print them.

    `model` is the name of the model's first file, with which the lines of tensors begin.

    The files are complete: if standard output fails now, a note goes to standard error and the exit code stays 0.
    """
    try:
        if json or receipt.digests is None:
            write(render(receipt, Format.JSON if json else Format.TEXT))
        else:
            _show_digests(receipt, model)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (ExecuteError, OSError, ReaderGone) as error:
        drop_stdout()
        remark(f"everything was written, but the report of it could not be printed: {error}")


def _show_digests(receipt: Receipt, model: str) -> None:
    from gguftool.analysis.verify import file_hashes, tensor_hashes  # noqa: PLC0415 - only for --hash
    from gguftool.render.hashes import manifest_text, sums_text  # noqa: PLC0415

    remark(render(receipt, Format.TEXT).rstrip())
    write_exactly(sums_text(file_hashes(receipt)))
    write(manifest_text(tensor_hashes(receipt, model)))
