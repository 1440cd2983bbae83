"""How a plan is carried out, and the one way in which bytes get into a part file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from gguftool.errors import ExecuteError
from gguftool.record import record
from gguftool.storage.copying import Work, copy_works
from gguftool.storage.durable import sync_file
from gguftool.storage.part import PartFile
from gguftool.storage.plan import OutputFile
from gguftool.storage.positional import write_fully
from gguftool.storage.tally import Watch


@record
class Options:
    """How to carry out a plan.

    `force` replaces existing outputs; `sync` makes them durable before they get a name (without it a run cannot be
    resumed); `resume` goes on from where an interrupted run of the same plan stopped; `checkpoint` is how many bytes
    may have to be copied again then; `note` is told what a user should know. `jobs` is the number of threads that
    copy, and of those that hash, None for as many as pay. `hash_files` and `hash_parts` ask for digests in the receipt:
    of the outputs, and of their marks. `publishing` is called when outputs begin to get their names: what a signal
    raises from then on still takes them back, but little is left to do.
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
) -> None:
    """Write heads and copies of outputs into their parts: of several small ones at once, so that no thread idles.

    `fresh` says that the parts read as zeros where nothing was written.
    """
    try:
        for part, output in parts:
            write_fully(part.fd, output.head, 0)
        copy_works(
            [Work(copies=output.copies, target=part.fd) for part, output in parts],
            jobs=options.jobs,
            progress=options.progress,
            durable=options.sync,
            fresh=fresh,
            watch=watch,
        )
        for part, _ in parts if options.sync and sync else ():
            sync_file(part.fd)
    except OSError as error:
        if error.filename is None:
            path = parts[0][1].path
            error.filename = str(path if len(parts) == 1 else path.parent)
        raise
    for part, output in parts:
        written = os.fstat(part.fd).st_size
        if written != output.size:
            raise ExecuteError(f"is {written:,} bytes long, planned were {output.size:,}", source=str(part.path))
