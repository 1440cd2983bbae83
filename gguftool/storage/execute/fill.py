"""Write heads and copies of outputs into part files, and verify the result: sizes, durability, expected checksum."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import Work, copy_works
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import PartFile
from gguftool.storage.plan import Digests, OutputFile, Plan
from gguftool.storage.sources.local import open_local_even_unfinished
from gguftool.storage.sources.source import whole
from gguftool.storage.system.fileio import sync_file, write_fully

Parts = Sequence[tuple[PartFile, OutputFile]]


def write_outputs(parts: Parts, state: CopyState, *, fresh: bool = True) -> int:
    """Write heads and copies of outputs into their parts; several small outputs at once keep all threads busy.

    Returns the number of bytes written, without those shared with their sources, which takes no time.
    `fresh`: the parts read as zeros wherever nothing was written.
    """
    with _attach_path(parts):
        for part, output in parts:
            write_fully(part.fd, output.head, 0)
        works = [Work(copies=output.copies, target=part.fd) for part, output in parts]
        copied = copy_works(works, state, fresh=fresh)
    return copied + sum(len(output.head) for _, output in parts)


def check_sizes(parts: Parts) -> None:
    """Raise `ExecuteError` unless every part file has its output's size."""
    for part, output in parts:
        written = os.fstat(part.fd).st_size
        if written != output.size:
            raise ExecuteError(f"is {written:,} bytes long, but {output.size:,} were planned", source=str(part.path))


def sync_parts(parts: Parts) -> None:
    """Make part files durable."""
    with _attach_path(parts):
        for part, _ in parts:
            sync_file(part.fd)


@contextlib.contextmanager
def _attach_path(parts: Parts) -> Iterator[None]:
    """Attach the output's path, or the folder if there are several, to OSErrors without a filename."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            path = parts[0][1].path
            error.filename = str(path if len(parts) == 1 else path.parent)
        raise


def verify_checksum(written: Path, output: OutputFile) -> None:
    """Verify the expected sha256 of `output`, which is complete in file `written`; raise `ExecuteError` on mismatch."""
    if output.sha256 is None:
        return
    from gguftool.storage.sources.digest import digest  # only files of the Hub have an expected checksum

    found = digest([whole(open_local_even_unfinished(written))])
    if found != output.sha256:
        raise ExecuteError(
            f"would have sha256 {found}, but the recorded one is {output.sha256}: bytes were damaged on the way, at "
            "their source, or in the part that was here already; nothing was written: fetch the file again",
            source=str(output.path),
        )


# --- optional digests ------------------------------------------------------------------------------------------------


def digests_for(plan: Plan, options: Options) -> NullDigests:
    """Make the digester for `options`; the caller closes it, also after an error."""
    if not (options.hash_files or options.hash_parts):
        return NullDigests()
    from gguftool.storage.execute.output_digests import OutputDigests  # most runs hash nothing

    return OutputDigests(plan, options)


def digests_of(plan: Plan, options: Options, paths: Sequence[Path] | None = None) -> Digests | None:
    """Hash complete outputs, at `paths` or under their final names; None if `options` request no digest."""
    with contextlib.closing(digests_for(plan, options)) as digests:
        for index, output in enumerate(plan.outputs):
            digests.update(index, paths[index] if paths else output.path, output.size)
        return digests.finish()


class NullDigests:
    """Null digester, for runs without digests."""

    @property
    def step(self) -> int:
        """Bytes of one output to write before the next `update`."""
        return sys.maxsize

    def update(self, index: int, path: Path, end: int) -> None:
        """Output `index`, now at `path`, is complete below `end`."""

    def finish(self) -> Digests | None:
        """Hash what remains; all outputs must be complete. None if no digest is requested."""
        return None

    def close(self) -> None:
        """Stop all threads and wait for them."""
