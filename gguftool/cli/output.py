"""Standard output and standard error: data goes to the first, progress and remarks to the second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gguftool.errors import printable
from gguftool.render.table import Table, render_rich, text_of


def prepare_streams() -> None:
    """Let names that the terminal's encoding lacks be shown escaped instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Write data to standard output as it is."""
    sys.stdout.write(text)


def write_bytes(data: bytes) -> None:
    """Write raw bytes to standard output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def write_exactly(text: str) -> None:
    """Write lines with names as their own bytes into a pipe, escaped on a terminal."""
    if sys.stdout.isatty():
        write("".join(printable(line, len(line)) + "\n" for line in text.splitlines()))
    else:
        write_bytes(text.encode("utf-8", "surrogateescape"))


def show_tables(tables: Sequence[Table]) -> None:
    """Show tables: with rich on a terminal, as plain text in a pipe."""
    if not sys.stdout.isatty():
        write(text_of(tables))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    for table in tables:
        console.print(render_rich(table))


def remark(text: str) -> None:
    """Tell the user something about what is done, on standard error."""
    print(f"note: {printable(text, 4096)}", file=sys.stderr)


def fail(text: str, problems: Sequence[str] = ()) -> None:
    """Print an error: one line, whatever the text holds, and one more for each of several problems."""
    if len(problems) == 1:
        text, problems = f"{text}: {problems[0]}", ()
    print(f"gguftool: error: {printable(text, 1 << 16)}{':' if problems else ''}", file=sys.stderr)
    for problem in problems:
        print(f"  - {printable(problem, 1 << 16)}", file=sys.stderr)


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], Any]]:
    """Yield a callback that takes the bytes done since its last call; a bar is drawn on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda nbytes: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, leave=False) as bar:
        yield bar.update
