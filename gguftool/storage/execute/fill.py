"""How a plan is carried out, and the one way in which bytes get into a part file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.record import record
from gguftool.storage.execute.copying import Work, copy_works
from gguftool.storage.execute.part import PartFile
from gguftool.storage.plan import Digests, OutputFile, Plan
from gguftool.storage.sources.local import open_local_even_unfinished
from gguftool.storage.sources.source import whole
from gguftool.storage.system.fileio import sync_file, write_fully
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


# --- following -----------------------------------------------------------------------------------------------------


class Follower:
    """Who goes along while outputs grow; this one does nothing, see `Hashing`."""

    @property
    def piece(self) -> int:
        """How many bytes of one output to write before `reached` is called again."""
        return sys.maxsize

    def reached(self, index: int, path: Path, end: int) -> None:
        """Take note that output `index`, now at `path`, is complete below `end`."""

    def finish(self) -> Digests | None:
        """Return the digests that were asked for, None where none were; all outputs must be complete."""
        return None

    def close(self) -> None:
        """End what was begun."""


def follower_of(plan: Plan, options: Options) -> Follower:
    """Return who makes the digests that `options` ask for while outputs grow; to be closed, also after an error."""
    if not (options.hash_files or options.hash_parts):
        return Follower()
    from gguftool.storage.execute.output_digests import (
        Hashing,  # most runs hash nothing, and the library takes a while to load
    )

    return Hashing(plan, files=options.hash_files, parts=options.hash_parts, jobs=options.jobs)


def digests_of(plan: Plan, options: Options, paths: Sequence[Path] | None = None) -> Digests | None:
    """Return the digests of complete outputs, which lie at `paths`, or have their names already."""
    with contextlib.closing(follower_of(plan, options)) as follower:
        for index, output in enumerate(plan.outputs):
            follower.reached(index, paths[index] if paths else output.path, output.size)
        return follower.finish()


# --- promised ------------------------------------------------------------------------------------------------------


def refuse_other_bytes(written: Path, output: OutputFile) -> None:
    """Raise `ExecuteError` where `output`, complete in the file `written`, has not the sha256 that it must have."""
    if output.sha256 is None:
        return
    from gguftool.storage.sources.digest import digest

    found = digest([whole(open_local_even_unfinished(written))])
    if found != output.sha256:
        raise ExecuteError(
            f"would have sha256 {found}, recorded is {output.sha256}: bytes were damaged on the way, at their source, "
            "or in what was here already; nothing was written, fetch the file anew",
            source=str(output.path),
        )
