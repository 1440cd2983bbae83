"""Digests of outputs while they grow.

sha256 takes bytes in their order, so the digest of a file is the work of one thread, and so is that over all named
ranges; the single ranges are hashed side by side.  What is complete of an output is hashed in threads of their own
while the next piece is copied, and the copy waits for them at the piece after that: what they read was just written and
comes from memory.  They read the output and not its sources, so a digest is of the bytes that are there, however they
came there: copied, shared with a source, or written by an interrupted run before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path

from gguftool.errors import ExecuteError, SourceError
from gguftool.storage.execute.fill import Follower
from gguftool.storage.plan import Digest, Digests, Plan
from gguftool.storage.sources.digest import update
from gguftool.storage.system.fileio import close_quietly
from gguftool.storage.system.threads import Pool

_PIECE = 256 << 20  # bytes; hashers are behind the copy by two pieces at most, which should still be in memory
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Hashing(Follower):
    """The digests of one run; to be closed, also after an error."""

    def __init__(self, plan: Plan, *, files: bool, parts: bool, jobs: int | None) -> None:
        outputs = plan.outputs if files else ()
        places = _places(plan) if parts else {}
        self._names = tuple(str(output.path) for output in outputs)
        self._files = [_PartialDigest([_Range(index, 0, output.size)]) for index, output in enumerate(outputs)]
        self._parts = {name: _PartialDigest([place]) for name, place in places.items()}
        has_all = parts and all(output.replaces is None and output.marks is not None for output in plan.outputs)
        self._whole = _PartialDigest(places.values()) if has_all else None
        self._of_output: dict[int, list[_PartialDigest]] = {}
        for index, file in enumerate(self._files):
            self._of_output.setdefault(index, []).append(file)
        for name, place in places.items():
            self._of_output.setdefault(place.index, []).append(self._parts[name])
        self._grown = _Grown()
        self._new: dict[int, int] = {}
        self._new_bytes = 0
        self._jobs = jobs or os.cpu_count() or 1
        self._pool: Pool | None = None
        self._running: list[Future[None]] = []

    @property
    def piece(self) -> int:
        """How many bytes of one output to write before `reached` is called again."""
        return _PIECE

    def reached(self, index: int, path: Path, end: int) -> None:
        """Take note that output `index`, now at `path`, is complete below `end`."""
        self._new_bytes += end - self._new.get(index, self._grown.ends.get(index, 0))
        self._new[index] = end
        self._grown.paths[index] = path
        if self._new_bytes >= _PIECE:
            self._start_round()

    def finish(self) -> Digests | None:
        """Hash what is left and return all digests, None where none were asked for; all outputs must be complete.

        Raises `ExecuteError` where an output cannot be read back.
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
        """Stop the threads and wait for them."""
        self._grown.stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start_round(self) -> None:
        """Wait for the round before, then start one over what is new."""
        self._wait()
        self._grown.ends |= self._new
        # Those of whole files first: they keep their cores busy while others go through the ranges.
        followers = [follower for index in self._new for follower in self._of_output.get(index, ())]
        self._new, self._new_bytes = {}, 0
        self._pool = self._pool or Pool(max_workers=self._jobs, thread_name_prefix="hashing")
        whole = [self._whole] if self._whole is not None else []
        self._running = [self._pool.submit(follower.go_on, self._grown) for follower in (*whole, *followers)]

    def _wait(self) -> None:
        running, self._running = self._running, []
        for future in running:
            future.result()


# --- one digest ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Range:
    index: int  # of the output
    offset: int
    length: int


class _Grown:
    """Where the outputs are and how far they are complete; does not change while a round runs."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}
        self.ends: dict[int, int] = {}
        self.stop = threading.Event()

    def ready(self, place: _Range) -> int:
        """Return how many bytes of `place` can be read."""
        return max(0, min(place.length, self.ends.get(place.index, 0) - place.offset))

    def progress(self, _nbytes: int) -> None:
        """Let a thread end between two buffers."""
        if self.stop.is_set():
            raise CancelledError

    @contextlib.contextmanager
    def descriptor(self, index: int) -> Iterator[int]:
        """Lend a descriptor of an output, opened anew: a set may have thousands."""
        path = self.paths[index]
        try:
            fd = os.open(path, _FLAGS)
        except OSError as error:
            raise ExecuteError(f"cannot be read back: {error.strerror}", source=str(path)) from error
        try:
            yield fd
        except SourceError as error:
            raise ExecuteError(f"cannot be read back to be hashed: {error.message}", source=str(path)) from error
        finally:
            close_quietly(fd)


class _PartialDigest:
    """A digest over ranges, which goes as far as they are complete."""

    def __init__(self, places: Iterable[_Range]) -> None:
        self._sha256 = hashlib.sha256()
        self._left = deque(place for place in places if place.length)

    def hex(self) -> str:
        """Return the digest; all ranges must have been complete."""
        if self._left:
            raise ExecuteError("was hashed before it was complete")
        return self._sha256.hexdigest()

    def go_on(self, grown: _Grown) -> None:
        """Take in what is complete now."""
        while self._left and grown.ready(self._left[0]):
            index = self._left[0].index
            with grown.descriptor(index) as fd:
                while self._left and self._left[0].index == index and self._take(fd, grown):
                    pass

    def _take(self, fd: int, grown: _Grown) -> bool:
        """Take in what is complete of the first range; return whether that was all of it."""
        place = self._left[0]
        ready = grown.ready(place)
        update(self._sha256, fd, place.offset, ready, str(grown.paths[place.index]), grown.progress)
        if ready < place.length:
            self._left[0] = _Range(place.index, place.offset + ready, place.length - ready)
            return False
        self._left.popleft()
        return True


def _places(plan: Plan) -> dict[str, _Range]:
    """Return where each named range of `plan` lies, in the plan's sequence."""
    found = {
        mark.name: _Range(index, mark.offset, mark.length)
        for index, output in enumerate(plan.outputs)
        for mark in output.marks or ()
    }
    sequence = [name for name in plan.sequence if name in found]
    return {name: found[name] for name in dict.fromkeys([*sequence, *found])}
