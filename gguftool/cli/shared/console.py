"""Standard output and standard error: data goes to the former, progress and remarks go to the latter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gguftool import __version__
from gguftool.errors import ExecuteError, printable, without_secrets


class ReaderGone(BaseException):
    """The reader of standard output is gone; not an `OSError`, for which the command line library would exit with 1."""


def prepare_streams() -> None:
    """Escape characters that the terminal's encoding lacks, instead of ending the program.

    Replace a closed standard error with a silent one: `print` would put its text into the data instead.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Write data to standard output as it is."""
    with standard_output() as out:
        out.write(text)


def write_version() -> None:
    """Write the program's name and version to standard output."""
    write(f"gguftool {__version__}\n")


def write_bytes(data: bytes) -> None:
    """Write raw bytes to standard output."""
    with standard_output() as out:
        out.flush()
        out.buffer.write(data)


def write_exactly(text: str) -> None:
    """Write lines: names as their own bytes into a pipe, escaped on a terminal."""
    if sys.stdout.isatty():
        write("".join(printable(line, len(line)) + "\n" for line in text.splitlines()))
    else:
        write_bytes(text.encode("utf-8", "surrogateescape"))


@contextmanager
def standard_output() -> Iterator[Any]:
    """Yield standard output; raise `ReaderGone`, or `ExecuteError` if it is closed or cannot take the data."""
    if sys.stdout is None:
        raise ExecuteError("is closed", source="standard output")
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise ReaderGone("standard output: its reader went away") from None
    except OSError as error:
        drop_stdout()
        raise ExecuteError(f"cannot write: {error.strerror}", source="standard output") from error


def drop_stdout() -> None:
    """Point standard output at the null device, so that a later flush of unwritten data stays silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def remark(text: str) -> None:
    """Print a note to the user on standard error."""
    _say(f"note: {printable(without_secrets(text), 4096)}")


def remark_each(texts: Iterable[str]) -> None:
    """Print notes; print a repeated one once, with its count."""
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    for text, count in counts.items():
        remark(text if count == 1 else f"{text} ({count:,} times)")


def _say(line: str) -> None:
    """Print to standard error, where no bar is; continue if nobody reads it."""
    try:
        for bar in _bars:
            bar.clear()
        print(line, file=sys.stderr, flush=True)
        for bar in _bars:
            bar.refresh()
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open to the end


def fail(text: str, problems: Sequence[str] = ()) -> None:
    """Print an error on one line, whatever the text holds, and each of several problems on another."""
    if len(problems) == 1:
        text, problems = f"{text}: {problems[0]}", ()
    _say(f"gguftool: error: {printable(without_secrets(text), 1 << 16)}{':' if problems else ''}")
    for problem in problems:
        _say(f"  - {printable(without_secrets(problem), 1 << 16)}")


def fail_use(text: str, hint: Sequence[str]) -> None:
    """Print how to call the command, then the usage error."""
    for line in hint:
        _say(printable(line, 1 << 16))
    fail(text)


# What a bar of bytes shows on a terminal at least this wide, on a narrower one, and without a known total.
_WIDE = 72
_BAR = "{desc}: {percentage:3.0f}% |{bar}| {size} of {whole} [{elapsed}<{remaining}, {speed}]"
_NARROW_BAR = "{desc}: {percentage:3.0f}% of {whole}, {remaining} left"
_ENDLESS_BAR = "{desc}: {size} [{elapsed}, {speed}]"
_COUNT = "{desc}: {n_fmt} of {total_fmt} {unit} [{elapsed}<{remaining}]"


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[float], Any]]:
    """Yield a callback that takes the bytes done since its last call; `what` names the work.

    On a terminal it draws a bar with `what` before it, sizes in the units of other texts, the rate and the time left;
    elsewhere it draws nothing. A `total` of 0 means that the size is unknown.
    """
    if not sys.stderr.isatty():
        yield lambda nbytes: None
        return
    from tqdm import tqdm

    from gguftool.render.units import format_size  # noqa: PLC0415

    class SizedBar(tqdm):  # type: ignore[misc]
        @property
        def format_dict(self) -> Any:
            facts = super().format_dict
            rate = facts["rate"] or (facts["n"] - facts["initial"]) / max(facts["elapsed"], 0.01)
            sizes = {"size": int(facts["n"]), "whole": facts["total"] or 0, "speed": int(rate)}
            return facts | {name: format_size(size) + "/s" * (name == "speed") for name, size in sizes.items()}

    wide = not 0 < os.get_terminal_size(sys.stderr.fileno()).columns < _WIDE  # 0: the terminal does not say
    form = _ENDLESS_BAR if not total else _BAR if wide else _NARROW_BAR
    with _drawn(SizedBar(total=total, desc=what, bar_format=form, leave=False, dynamic_ncols=True)) as bar:
        yield bar.update


@contextmanager
def counting_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that takes the number of `unit` done, and the total; on a terminal it draws a bar."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with _drawn(tqdm(desc=what, unit=unit, bar_format=_COUNT, leave=False, dynamic_ncols=True)) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            bar.refresh()

        yield update


_bars: list[Any] = []


@contextmanager
def _drawn(bar: Any) -> Iterator[Any]:
    """Keep `bar` on the terminal: notes are printed in its place, and it is drawn again below them."""
    _bars.append(bar)
    try:
        with bar:
            yield bar
    finally:
        _bars.remove(bar)
