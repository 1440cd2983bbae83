"""State of a run that removes its sources: its locked journal, its part files, and which command may resume it."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gguftool.errors import ExecuteError, SourceError, listed
from gguftool.storage.execute.consume_journal import FreedSource, Unfinished, read_unfinished, real_path, stamp_if_same
from gguftool.storage.execute.part import PartFile, busy, replaced
from gguftool.storage.plan import Copy, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import LocalSource
from gguftool.storage.sources.sidecars import PART, consume_path, helper_path, only_copy_path
from gguftool.storage.sources.source import Source
from gguftool.storage.system.fileio import (
    close_quietly,
    open_path,
    read_fully,
    read_some,
    set_size,
    sync_file,
    sync_folders,
)
from gguftool.storage.system.locks import lock
from gguftool.storage.system.names import unlink
from gguftool.storage.system.ownership import create_helper, open_helper

_PAGE = 4096  # bytes


def find_unfinished(anchor: Path, request: Request, check: Callable[[Plan], None]) -> Plan | None:
    """The plan that an earlier run of the same command began at `anchor`, or None.

    Some models of that command may be gone, and gone from the command line too if the shell expanded a pattern. So
    every model named now must be one that was named then. Raises `ExecuteError` if another command began the run.

    A journal is a file like any other: somebody may have edited it, or restored it from a backup. So `check` compares
    the plan with the sources that still exist, and raises if running it would lose some of their data.
    """
    found = read_unfinished(anchor)
    if found is None:
        return None
    began = found.consume.request
    paths = [step.source.path for step in found.consume.steps if isinstance(step.source, LocalSource | FreedSource)]
    strange = [model for model in request.models if not any(_matches(model, path) for path in paths)]
    unnamed = [
        source.name
        for source in found.consume.freed
        if not any(_matches(model, Path(source.name)) for model in request.models)
    ]
    if strange or unnamed or request.options != began.options:
        raise ExecuteError(
            "a merge --consume is unfinished here, and its part file may be the only copy of tensors; it was started "
            f"with {listed([*began.models, *began.options], 8)}, and only that command resumes it",
            source=str(anchor),
        )
    check(found.plan)
    return found.plan


def _matches(model: str, path: Path) -> bool:
    """Whether `model` (a file, a shard of a set, a folder or a pattern, as an absolute path) can mean `path`."""
    if os.path.isdir(model):
        return path.parent == Path(os.path.realpath(model))
    named = real_path(model)
    return path.parent == named.parent or fnmatch.fnmatch(str(path), str(named))


def discard_unused(anchor: Path) -> None:
    """Remove the files of an unfinished run; raise `ExecuteError` if a source that it may have removed is gone."""
    with contextlib.ExitStack() as cleanup:
        run = open_consuming(anchor, cleanup)
        if run is not None and not run.discard():
            raise ExecuteError(
                "the unfinished run here removed sources, so its part file is the only copy of their tensors and is "
                "kept; the same command without --no-resume resumes it",
                source=str(anchor),
            )


@dataclass(slots=True, kw_only=True)
class Consuming:
    """An unfinished run, with its journal open and locked."""

    begun: Unfinished
    fd: int
    path: Path
    _copies_by_source: dict[Source, dict[int, list[Copy]]] = field(default_factory=dict)
    _written: dict[int, PartFile] = field(default_factory=dict)  # part files that this run opened, closed again

    def __post_init__(self) -> None:
        for index, output in enumerate(self.plan.outputs):
            for copy in output.copies:
                self._copies_by_source.setdefault(copy.extent.source, {}).setdefault(index, []).append(copy)

    @property
    def plan(self) -> Plan:
        """The plan in the journal."""
        return self.begun.plan

    @property
    def steps(self) -> tuple[Step, ...]:
        """The sources in copying order."""
        return self.begun.consume.steps

    def copies_of(self, number: int) -> list[tuple[int, tuple[Copy, ...]]]:
        """Copies from the source of a step: (output's index, copies) for each output with any."""
        places = self._copies_by_source.get(self.steps[number].source, {})
        return [(index, tuple(copies)) for index, copies in places.items()]

    def is_freed(self, number: int) -> bool:
        """Whether the source of a step was removed because its bytes are safe."""
        return isinstance(self.steps[number].source, FreedSource)

    def something_is_freed(self) -> bool:
        """Whether a removable source is missing, or may be: then the part files are the only copy."""
        for step in self.steps:
            source = step.source
            if not step.frees:
                continue
            try:
                if not isinstance(source, LocalSource) or stamp_if_same(source.path, source.file_stamp) is None:
                    return True
            except SourceError:
                return True
        return False

    # --- part files ---

    @contextlib.contextmanager
    def part(self, index: int) -> Iterator[PartFile]:
        """Open the part file of output `index` for the duration of a context.

        Raises `ExecuteError` if it is not the file that this run opened before.
        """
        part = _open_part(self.plan.outputs[index], self._written.get(index))
        try:
            yield part
        finally:
            self._written[index] = part.closed()

    def check_before_removal(self) -> None:
        """Raise `ExecuteError` unless the part files and the journal at their paths are the ones that were written."""
        for part in self._written.values():
            part.require()
        if not self._has_its_journal():
            raise replaced(self.path, open_path(self.fd))

    def _has_its_journal(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.fd), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def make_part(self, index: int) -> bool:
        """Create the part file of output `index` if there is none; return whether it is new.

        Raises `ExecuteError` if it is missing although sources were removed.
        """
        output = self.plan.outputs[index]
        path = only_copy_path(output.path)
        if os.path.lexists(path):
            return False
        if self.something_is_freed():
            raise ExecuteError(
                "is gone, and so are sources that were copied into it; put it back: the journal is still there",
                source=str(path),
            )
        close_quietly(create_helper(path))
        return True

    def parts(self) -> list[PartFile]:
        """All part files, closed, in publishing order: the first output's last."""
        made = []
        for index in self.plan.publishing_order:
            with self.part(index):
                pass
            made.append(self._written[index])
        return made

    # --- the journal ---

    def note_copied(self, number: int, digest: str) -> None:
        """Record durably that all bytes of a step's source are safe."""
        self._append(f"copied {number} {digest}\n")
        self.begun.copied[number] = digest

    def note_complete(self, parts: Sequence[PartFile]) -> None:
        """Record durably that all `parts` are complete and will get the final names."""
        inodes = {part.target: part.file_id[1] for part in parts}
        self._append("complete " + " ".join(str(inodes[output.path]) for output in self.plan.outputs) + "\n")

    def _append(self, text: str) -> None:
        data = b"\n" * (not self._ends_with_newline()) + text.encode()
        while data:
            data = data[os.write(self.fd, data) :]
        sync_file(self.fd)

    def _ends_with_newline(self) -> bool:
        return read_some(self.fd, 1, os.fstat(self.fd).st_size - 1) == b"\n"

    def is_published(self) -> bool:
        """Whether the outputs already have their names: an earlier run ended before it removed the journal.

        Raises `ExecuteError` if they had their names, but are now gone or replaced.
        """
        inodes = self.begun.complete
        if inodes is None or self.begun.consume.freed:  # no run is complete before its sources are gone
            return False
        there = [_is_published_output(output, inode) for output, inode in zip(self.plan.outputs, inodes, strict=True)]
        parts = [os.path.lexists(only_copy_path(output.path)) for output in self.plan.outputs]
        if not all(there) and not any(parts):
            raise ExecuteError(
                "was complete and had its name, but is now another file, or gone; if you want it that way, "
                f"remove {self.path.name}",
                source=str(self.plan.outputs[0].path),
            )
        return all(there)

    def check_parts(self) -> None:
        """Raise `ExecuteError` unless each part file has the planned head; nothing is written.

        Before the first removal it may be blank in places, or shorter: its run ended early.
        """
        exact = self.something_is_freed()
        for output in self.plan.outputs:
            path = only_copy_path(output.path)
            with contextlib.suppress(FileNotFoundError):
                fd = open_helper(path, writable=False, target=output.path)
                try:
                    if not _begins_as_planned(fd, output, exact=exact):
                        raise ExecuteError(
                            f"is not the part file that {self.path.name} describes, and may be the only copy of "
                            "tensors: nothing was changed; put back the two that belong together, or move both away",
                            source=str(path),
                        )
                finally:
                    close_quietly(fd)

    def remove(self) -> None:
        """Remove second names of published files, then the journal; if one cannot be removed, the journal stays too."""
        parts = [only_copy_path(output.path) for output in self.plan.outputs]
        with contextlib.suppress(OSError):
            for path in (helper_path(self.path, PART), *parts, self.path):
                with contextlib.suppress(FileNotFoundError):
                    unlink(path)
            sync_folders([self.path.parent])

    def discard(self) -> bool:
        """Remove part files and journal if every source still exists; return whether they were removed."""
        if self.something_is_freed() or not self._has_its_journal():
            return False
        self.check_parts()
        self.remove()
        return True


def open_consuming(anchor: Path, cleanup: contextlib.ExitStack) -> Consuming | None:
    """Open and lock the journal at `anchor`, or None if there is none; raise `ExecuteError` if another run holds it."""
    path = consume_path(anchor)
    try:
        fd = open_helper(path, append=True, twin=helper_path(path, PART))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExecuteError(f"cannot open: {error.strerror}; nothing was removed", source=str(path)) from error
    cleanup.callback(close_quietly, fd)
    if not lock(fd):
        raise busy(anchor)
    begun = read_unfinished(anchor)
    if begun is None or not os.path.samestat(os.fstat(fd), os.lstat(path)):
        raise busy(anchor)  # its run ended just now
    return Consuming(begun=begun, fd=fd, path=path)


def _is_published_output(output: OutputFile, inode: int) -> bool:
    try:
        status = os.lstat(output.path)
    except FileNotFoundError:
        return False
    if (status.st_ino, status.st_size) != (inode, output.size):
        return False
    with open(output.path, "rb") as file:
        return file.read(len(output.head)) == output.head


def _begins_as_planned(fd: int, output: OutputFile, *, exact: bool) -> bool:
    """Whether an open part file has the size and head of `output`; without `exact`, zeros may stand for its end."""
    size = os.fstat(fd).st_size
    head = read_fully(fd, len(output.head), 0)
    if exact:
        return size == output.size and head == output.head
    starts = range(0, len(head), _PAGE)
    return size <= output.size and all(
        output.head[start : start + _PAGE].startswith(head[start : start + _PAGE].rstrip(b"\0")) for start in starts
    )


def _open_part(output: OutputFile, written: PartFile | None) -> PartFile:
    path = only_copy_path(output.path)
    fd = open_helper(path, target=output.path)
    try:
        status = os.fstat(fd)
        if written is not None and not written.is_file(status):
            raise replaced(path, None)
        if status.st_nlink != 1:
            raise ExecuteError("is not the part file that was written here; nothing was removed", source=str(path))
        if status.st_size != output.size:
            # New, or its run ended before this call. It is never longer than planned, so truncating loses no byte.
            if status.st_size > output.size:
                raise ExecuteError("is longer than planned; nothing was removed", source=str(path))
            set_size(fd, output.size)
    except BaseException:
        close_quietly(fd)
        raise
    return PartFile(path=path, target=output.path, size=output.size, fd=fd, file_id=(status.st_dev, status.st_ino))
