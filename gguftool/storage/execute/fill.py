"""How a plan is carried out, and the one way in which bytes get into a part file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from gguftool.errors import ExecuteError
from gguftool.record import record
from gguftool.storage.execute.copying import Work, copy_works
from gguftool.storage.execute.part import PartFile
from gguftool.storage.plan import OutputFile
from gguftool.storage.system.durable import sync_file
from gguftool.storage.system.fileio import write_fully
from gguftool.storage.system.threads import Watch


@record
class Options:
    """How to carry out a plan.

    `force` replaces existing outputs; `sync` makes them durable before they get a name (without it a run cannot be
    resumed); `resume` goes on from where an interrupted run of the same plan stopped; after about
    `checkpoint` bytes, and twice as many at the most, it is noted how far the outputs are; `note` is told what a user
    should know. `jobs` is the number of threads that copy, and of those that hash, None for as many as pay.
    `hash_files` and `hash_parts` ask for digests in the receipt: of the outputs, and of their marks. `publishing` is
    called when outputs begin to get their names: what a signal raises from then on still takes them back, but little is
    left to do.
    """

    force: bool = False
    sync: bool = True
    resume: bool = True
    checkpoint: int = 1 << 30
    jobs: int | None = None
    hash_files: bool = False
    hash_parts: bool = False
    progress: Callable[[int], None] = lambda nbytes: None
    note: Callable[[str], None] = lambda text: None
    publishing: Callable[[], None] = lambda: None


def fill(
    parts: Sequence[tuple[PartFile, OutputFile]],
    options: Options,
    *,
    sync: bool,
    fresh: bool = True,
    watch: Watch | None = None,
) -> int:
    """Write heads and copies of outputs into their parts: of several small ones at once, so that no thread idles.

    Returns how many bytes had to be written; others are shared with their sources, which takes no time. `fresh` says
    that the parts read as zeros where nothing was written.
    """
    with _naming(parts):
        for part, output in parts:
            write_fully(part.fd, output.head, 0)
        copied = copy_works(
            [Work(copies=output.copies, target=part.fd) for part, output in parts],
            jobs=options.jobs,
            progress=options.progress,
            durable=options.sync,
            fresh=fresh,
            watch=watch,
        )
    if options.sync and sync:
        sync_parts(parts)
    for part, output in parts:
        written = os.fstat(part.fd).st_size
        if written != output.size:
            raise ExecuteError(f"is {written:,} bytes long, planned were {output.size:,}", source=str(part.path))
    return copied + sum(len(output.head) for _, output in parts)


def sync_parts(parts: Sequence[tuple[PartFile, OutputFile]]) -> None:
    """Make what was written of outputs durable."""
    with _naming(parts):
        for part, _ in parts:
            sync_file(part.fd)


@contextlib.contextmanager
def _naming(parts: Sequence[tuple[PartFile, OutputFile]]) -> Iterator[None]:
    """Let what the system answers name the output, or the folder of several."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            path = parts[0][1].path
            error.filename = str(path if len(parts) == 1 else path.parent)
        raise
