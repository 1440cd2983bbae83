"""A thread pool that makes do with the threads that there are to be had."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class Pool(ThreadPoolExecutor):
    """Takes as many threads as the system allows (ulimit -u, limits of containers), at last the caller's own.

    Where a thread cannot be started its work is in the queue already, for one of the others. This method of the library
    is not a public one: where a later Python has another, the limit is an error again, as in the plain pool.
    """

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                self._work_queue.get_nowait().run()
