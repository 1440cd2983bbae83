"""Run measurements: in this process with one bench, with a few benches pinned to cores, or on a dask cluster.

All executors have one interface: `prepare` makes logits, `floor` measures them, `run` yields each task as it finishes,
with its line or its error; `finish` checks scratch copies and removes them.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gguftool.cooking.measure_lines import FloorLine, KldLine
from gguftool.cooking.measuring.bench import Bench, Inputs, Setup, Task, open_inputs
from gguftool.cooking.measuring.logits import SavedLogits
from gguftool.cooking.measuring.work_folder import remove_folder
from gguftool.engines.llama_perplexity import StoppedError
from gguftool.errors import GGUFToolError, PlanError
from gguftool.storage.system.processes import available_cores

Outcome = tuple[Task, KldLine | GGUFToolError]
_SCRATCH = "scratch"
_PATIENCE = 10  # seconds to wait for a scheduler


class Executor(ABC):
    """Measures tasks."""

    @abstractmethod
    def prepare(self) -> float:
        """Make sure that the reference's logits exist; return the seconds that the engine took for them."""

    @abstractmethod
    def floor(self) -> FloorLine:
        """Measure the reference against its own logits."""

    @abstractmethod
    def run(self, tasks: Sequence[Task], floor: FloorLine) -> Iterator[Outcome]:
        """Measure `tasks`; closing the iterator stops running engines."""

    @abstractmethod
    def finish(self) -> None:
        """Check that scratch copies are the reference again."""

    @abstractmethod
    def close(self) -> None:
        """Stop running engines, and remove scratch copies."""


class LocalExecutor(Executor):
    """Measures in `folder` on this machine, `jobs` tasks at a time, each on its own share of the cores."""

    def __init__(self, inputs: Inputs, setup: Setup, folder: Path, jobs: int) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._logits: SavedLogits | None = None
        shares = shares_of_cores(jobs)
        for number in range(len(shares)):
            remove_folder(self._scratch(number))  # left by a killed run
        self._benches = [
            Bench(inputs, setup, self._scratch(number), cores=cores, stopped=self._stop.is_set)
            for number, cores in enumerate(shares)
        ]
        self._all_cores = Bench(inputs, setup, folder)

    def _scratch(self, number: int) -> Path:
        return self._folder / f"{_SCRATCH}-{number}"

    def prepare(self) -> float:
        """Find or make the logits, with all cores."""
        self._logits = self._all_cores.save_logits(self._folder)
        return self._logits.seconds

    def floor(self) -> FloorLine:
        """Measure the reference itself, with all cores."""
        return self._all_cores.floor(self._saved)

    @property
    def _saved(self) -> SavedLogits:
        assert self._logits is not None
        return self._logits

    def run(self, tasks: Sequence[Task], floor: FloorLine) -> Iterator[Outcome]:
        """Measure in this thread, or in one for each bench."""
        if len(self._benches) == 1:
            for task in tasks:
                yield task, _outcome(self._benches[0], task, self._saved, floor)
            return
        todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Task, Any]] = queue.SimpleQueue()
        for task in tasks:
            todo.put(task)
        threads = [
            threading.Thread(target=self._work, args=(bench, todo, done, floor), daemon=True) for bench in self._benches
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in tasks:
                task, found = done.get()
                if isinstance(found, BaseException) and not isinstance(found, GGUFToolError):
                    raise found
                yield task, found
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self._stop.clear()

    def _work(
        self,
        bench: Bench,
        todo: queue.SimpleQueue[Task],
        done: queue.SimpleQueue[tuple[Task, Any]],
        floor: FloorLine,
    ) -> None:
        while not self._stop.is_set():
            try:
                task = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((task, _outcome(bench, task, self._saved, floor)))
            except BaseException as error:  # raised again in the thread that waits for it
                done.put((task, error))
                return

    def finish(self) -> None:
        """Check every scratch copy."""
        for bench in self._benches:
            bench.verify()

    def close(self) -> None:
        """Remove the scratch copies; the logits stay for a later run."""
        self._stop.set()
        for bench in self._benches:
            remove_folder(bench.folder)


def _outcome(bench: Bench, task: Task, logits: SavedLogits, floor: FloorLine) -> KldLine | GGUFToolError:
    try:
        return bench.measure(task, logits, floor)
    except GGUFToolError as error:
        return error


def shares_of_cores(jobs: int) -> list[tuple[int, ...]]:
    """Divide the cores that this process may use among `jobs`; a single job gets no share, because it may use all.

    Raises `PlanError` for more jobs than cores.
    """
    if jobs == 1:
        return [()]
    cores = available_cores()
    if jobs > len(cores):
        raise PlanError(f"--jobs {jobs} on {len(cores)} cores: each job needs a core of its own")
    each, more = divmod(len(cores), jobs)
    shares, start = [], 0
    for number in range(jobs):
        end = start + each + (number < more)
        shares.append(tuple(cores[start:end]))
        start = end
    return shares


# --- a cluster -------------------------------------------------------------------------------------------------------


class ClusterExecutor(Executor):
    """Measures on the workers of a dask.distributed scheduler; each makes its own logits and its own scratch copy.

    Every worker finds model, text and engine under the names in `setup`, and compares their digests with `inputs`.
    """

    def __init__(self, inputs: Inputs, setup: Setup, address: str) -> None:
        try:
            self._dask: Any = import_module("distributed")
        except ImportError:
            raise PlanError("--scheduler needs dask.distributed: pip install distributed") from None
        self._inputs = inputs
        self._setup = setup
        try:
            self._client: Any = self._dask.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise PlanError(f"no scheduler answers: {error}", source=address) from error
        self._key = _key(setup)

    def prepare(self) -> float:
        """Do nothing: each worker makes its logits with its first task."""
        if not self._client.scheduler_info()["workers"]:
            raise PlanError("this cluster has no workers", source="--scheduler")
        return 0.0

    def floor(self) -> FloorLine:
        """Let one worker measure its reference."""
        found: FloorLine = self._submit(None, None).result()
        return found

    def run(self, tasks: Sequence[Task], floor: FloorLine) -> Iterator[Outcome]:
        """Give all tasks to the scheduler, which moves those of a dead worker to another."""
        futures = {self._submit(task, floor): task for task in tasks}
        try:
            for future in self._dask.as_completed(list(futures), loop=self._client.loop):
                task, error = futures[future], future.exception()
                if error is not None and not isinstance(error, GGUFToolError):
                    error = PlanError(f"its workers died or cannot run it: {error}", source="--scheduler")
                yield task, error or future.result()
        finally:
            self._client.cancel(list(futures))

    def _submit(self, task: Task | None, floor: FloorLine | None) -> Any:
        return self._client.submit(measure_on_worker, self._setup, self._inputs.basis, task, floor, pure=False)

    def finish(self) -> None:
        """Let every worker check its scratch copy."""
        for error in self._client.run(verify_on_worker, self._key).values():
            if error is not None:
                raise error

    def close(self) -> None:
        """Let the workers stop their engines, and remove logits and scratch copies."""
        try:
            self._client.run(close_on_worker, self._key)
        finally:
            self._client.close()


class _WorkerBench:
    """The bench of one worker process: one task at a time."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.inputs = open_inputs(setup, folder)
        self.bench = Bench(self.inputs, setup, folder / _SCRATCH, stopped=self.stop.is_set)
        self.logits: SavedLogits | None = None


_benches: dict[str, _WorkerBench] = {}
_making = threading.Lock()


def _key(setup: Setup) -> str:
    return hashlib.sha256(repr(setup).encode()).hexdigest()[:24]


def measure_on_worker(setup: Setup, basis: Any, task: Task | None, floor: FloorLine | None) -> FloorLine | KldLine:
    """Measure `task` in this worker's process, or the floor if it is None; raises `PlanError` if inputs differ."""
    key = _key(setup)
    with _making:
        if key not in _benches:
            _benches[key] = _WorkerBench(setup, _worker_folder() / f"gguftool-{key}")
    own = _benches[key]
    differences = own.inputs.basis.differences(basis)
    if differences:
        raise PlanError(f"files of the same name differ on this worker: {' and '.join(differences)}", source=_worker())
    try:
        with own.lock:
            if own.logits is None:
                own.logits = own.bench.save_logits(own.folder)
            if task is None or floor is None:
                return own.bench.floor(own.logits)
            return own.bench.measure(task, own.logits, floor)
    except StoppedError:
        raise PlanError("stopped", source=_worker()) from None


def verify_on_worker(key: str) -> GGUFToolError | None:
    """Check this worker's scratch copy, if it has one; return the error."""
    own = _benches.get(key)
    try:
        if own is not None:
            own.bench.verify()
    except GGUFToolError as error:
        return error
    return None


def close_on_worker(key: str) -> None:
    """Stop this worker's engine and remove its files."""
    own = _benches.pop(key, None)
    if own is not None:
        own.stop.set()
        with own.lock:
            remove_folder(own.folder)


def _worker_folder() -> Path:
    return Path(import_module("distributed").get_worker().local_directory)


def _worker() -> str:
    import socket

    return f"worker on {socket.gethostname()}"
