"""State that all threads of one copy share: options, bytes done, the first error, the stop signal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from gguftool.storage.execute.options import Options, Sizes
from gguftool.storage.system.fileio import WriteBack
from gguftool.storage.system.reflink import KernelCopies

Progress = Callable[[int], None]

_STEP = 0.1  # seconds between progress reports while the owner waits


class ProgressListener(Protocol):
    """A listener that learns which bytes of the target were written."""

    def on_written(self, offset: int, nbytes: int) -> None:
        """Bytes were written; called in the thread that wrote them."""

    def tick(self) -> None:
        """Called many times a second in the thread that started the copy."""


class CopyState:
    """The shared state of one copy.

    `jobs`: maximum number of threads (None: chosen by the sources). `write_back` starts write-back early, for a target
    that will be fsynced; None for others. `kernel` makes in-kernel copies. `progress` and the listener's `tick` are
    called in the thread that created the state, its owner.
    """

    def __init__(
        self,
        *,
        jobs: int | None = None,
        progress: Progress = lambda nbytes: None,
        write_back: WriteBack | None = None,
        kernel: KernelCopies | None = None,
        sizes: Sizes | None = None,
        listener: ProgressListener | None = None,
    ) -> None:
        self.jobs = jobs
        self.kernel: KernelCopies = kernel or KernelCopies()
        self.sizes: Sizes = sizes or Sizes()
        self.stop: threading.Event = threading.Event()
        self.error: BaseException | None = None
        self.copied: int = 0  # bytes written, without those shared with a source
        self._progress = progress
        self._write_back = write_back
        self._listener = listener
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._unreported = 0

    @classmethod
    def of(
        cls,
        options: Options,
        write_back: WriteBack | None = None,
        kernel: KernelCopies | None = None,
        listener: ProgressListener | None = None,
    ) -> CopyState:
        """Make the state of a copy by `options`; `write_back` and `kernel` may serve several copies."""
        return cls(
            jobs=options.jobs,
            progress=options.progress,
            write_back=write_back if options.sync else None,
            kernel=kernel,
            sizes=options.sizes,
            listener=listener,
        )

    def guard(self, work: Callable[[], None]) -> Callable[[], None]:
        """Wrap `work` for a thread: the first error is kept, and stops all threads."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                with self._lock:
                    self.error = self.error or error
                self.stop.set()

        return guarded

    def written(self, offset: int, nbytes: int, *, shared: bool = False) -> None:
        """Count bytes written at `offset` of the target; in the owner's thread, report the progress of all threads."""
        if self._listener is not None:
            self._listener.on_written(offset, nbytes)
        with self._lock:
            self._unreported += nbytes
            self.copied += 0 if shared else nbytes
        if threading.get_ident() == self._owner:
            self.report()

    def report(self) -> None:
        """Report progress since the last report."""
        with self._lock:
            nbytes, self._unreported = self._unreported, 0
        if nbytes:
            self._progress(nbytes)
        if self._listener is not None:
            self._listener.tick()

    def start_write_back(self, target: int, offset: int, length: int) -> None:
        """Start write-back of a range just written, if the target will be fsynced."""
        if self._write_back is not None:
            self._write_back.start(target, offset, length)

    def wait(self, threads: Sequence[threading.Thread]) -> None:
        """Wait until `threads` are done or the copy stops, in steps, so that signals and progress get through."""
        for thread in threads:
            while thread.is_alive() and not self.stop.is_set():
                thread.join(_STEP)
                self.report()
