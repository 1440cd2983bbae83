"""Optional hashing of outputs while they are written.

sha256 takes bytes in order, so one thread computes the digest of a file, and one the digest over all named ranges;
single ranges are hashed in parallel. Other threads hash the complete part of an output while the next chunk is copied,
and the copy waits for them at the chunk after that: so they read bytes that were just written, from memory.
They read the output, not its sources. So a digest covers the bytes in the file, however they got there: copied, shared
with a source, or written by an earlier run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from gguftool.errors import ExecuteError, SourceError
from gguftool.record import record
from gguftool.storage.execute.fill import NullDigests
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Digest, Digests, Plan
from gguftool.storage.sources.digest import update
from gguftool.storage.system.fileio import close_quietly
from gguftool.storage.system.names import open_file
from gguftool.storage.system.threads import Background, CancelledError


class OutputDigests(NullDigests):
    """Digests of one run's outputs."""

    def __init__(self, plan: Plan, options: Options) -> None:
        outputs = plan.outputs if options.hash_files else ()
        places = _ranges_by_name(plan) if options.hash_parts else {}
        self._step = options.sizes.hash_step
        self._names = tuple(str(output.path) for output in outputs)
        self._files = [
            _PartialDigest([_Range(index=at, offset=0, length=each.size)]) for at, each in enumerate(outputs)
        ]
        self._parts = {name: _PartialDigest([place]) for name, place in places.items()}
        has_all = options.hash_parts and all(
            output.replaces is None and output.marks is not None for output in plan.outputs
        )
        self._whole = _PartialDigest(places.values()) if has_all else None
        self._of_output: dict[int, list[_PartialDigest]] = {}
        for index, file in enumerate(self._files):
            self._of_output.setdefault(index, []).append(file)
        for name, place in places.items():
            self._of_output.setdefault(place.index, []).append(self._parts[name])
        self._grown = _GrownOutputs()
        self._new: dict[int, int] = {}
        self._new_bytes = 0
        self._jobs = options.jobs or os.cpu_count() or 1
        self._running: Background[None] | None = None

    @property
    def step(self) -> int:
        """Bytes of one output to write before the next `update`."""
        return self._step

    def update(self, index: int, path: Path, end: int) -> None:
        """Output `index`, now at `path`, is complete below `end`."""
        self._new_bytes += end - self._new.get(index, self._grown.ends.get(index, 0))
        self._new[index] = end
        self._grown.paths[index] = path
        if self._new_bytes >= self._step:
            self._start_round()

    def finish(self) -> Digests | None:
        """Hash what remains; all outputs must be complete. None if no digest is requested.

        Raises `ExecuteError` if an output cannot be read back.
        """
        if not (self._of_output or self._whole):
            return None
        self._start_round()
        self._wait()
        return Digests(
            files=tuple(
                Digest(name=name, sha256=file.hex()) for name, file in zip(self._names, self._files, strict=True)
            ),
            parts=tuple(Digest(name=name, sha256=part.hex()) for name, part in self._parts.items()),
            whole=self._whole.hex() if self._whole is not None else None,
        )

    def close(self) -> None:
        """Stop all threads and wait for them."""
        self._grown.stop.set()
        if self._running is not None:
            self._running.cancel()

    def _start_round(self) -> None:
        """Wait for the previous round, then start one over new bytes."""
        self._wait()
        self._grown.ends |= self._new
        # Digests of whole files first: they keep their cores busy while other threads hash the ranges.
        digests = [digest for index in self._new for digest in self._of_output.get(index, ())]
        if self._whole is not None:
            digests.insert(0, self._whole)
        self._new, self._new_bytes = {}, 0
        calls = [partial(digest.advance, self._grown) for digest in digests]
        self._running = Background(calls, self._jobs, self._grown.stop)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.wait()


# --- one digest ------------------------------------------------------------------------------------------------------


@record
class _Range:
    index: int  # of the output
    offset: int
    length: int


class _GrownOutputs:
    """Paths of the outputs, and offsets below which they are complete; unchanged while a round runs."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}
        self.ends: dict[int, int] = {}
        self.stop = threading.Event()

    def ready(self, place: _Range) -> int:
        """Number of complete bytes of `place`."""
        return max(0, min(place.length, self.ends.get(place.index, 0) - place.offset))

    def progress(self, _nbytes: int) -> None:
        """Stop a thread between two buffers: raise `CancelledError` after the stop signal."""
        if self.stop.is_set():
            raise CancelledError

    @contextlib.contextmanager
    def descriptor(self, index: int) -> Iterator[int]:
        """Open an output for one use: a set may have thousands."""
        path = self.paths[index]
        try:
            fd = open_file(path, os.O_RDONLY, follow=False)
        except OSError as error:
            raise ExecuteError(f"cannot be read back: {error.strerror}", source=str(path)) from error
        try:
            yield fd
        except SourceError as error:
            raise ExecuteError(f"cannot be read back to be hashed: {error.message}", source=str(path)) from error
        finally:
            close_quietly(fd)


class _PartialDigest:
    """A digest over ranges, as far as they are complete."""

    def __init__(self, places: Iterable[_Range]) -> None:
        self._sha256 = hashlib.sha256()
        self._left = deque(place for place in places if place.length)

    def hex(self) -> str:
        """The digest in hex; all ranges must be complete and hashed."""
        if self._left:
            raise ExecuteError("was hashed before it was complete")
        return self._sha256.hexdigest()

    def advance(self, grown: _GrownOutputs) -> None:
        """Hash what is complete now."""
        while self._left and grown.ready(self._left[0]):
            index = self._left[0].index
            with grown.descriptor(index) as fd:
                while self._left and self._left[0].index == index and self._take(fd, grown):
                    pass

    def _take(self, fd: int, grown: _GrownOutputs) -> bool:
        """Hash the complete part of the first range; return whether that was all of it."""
        place = self._left[0]
        ready = grown.ready(place)
        update(self._sha256, fd, place.offset, ready, str(grown.paths[place.index]), grown.progress)
        if ready < place.length:
            self._left[0] = _Range(index=place.index, offset=place.offset + ready, length=place.length - ready)
            return False
        self._left.popleft()
        return True


def _ranges_by_name(plan: Plan) -> dict[str, _Range]:
    """Named ranges of `plan`, in the plan's sequence."""
    found = {
        mark.name: _Range(index=index, offset=mark.offset, length=mark.length)
        for index, output in enumerate(plan.outputs)
        for mark in output.marks or ()
    }
    sequence = [name for name in plan.sequence if name in found]
    return {name: found[name] for name in dict.fromkeys([*sequence, *found])}
