"""Run an engine as a child process within limits, and stop it as soon as it has shown enough.

The limits are time and anonymous memory (RssAnon), checked every few milliseconds: under RLIMIT_AS a good model would
fail, because engines map whole files. All of a child's processes are watched and killed together, including those of a
wrapper script. Linux only: the mappings and memory use of a process are read from /proc.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path

from gguftool.engines.log import Log
from gguftool.errors import ExecuteError
from gguftool.record import record
from gguftool.storage.system.processes import forbid_core, kill_tree, pin, signals_held

_STEP = 0.004  # seconds between two checks; an engine that populates a mapping reads about 4 MB in that time
_READ = 1 << 16
_DRAIN = 64 << 20  # bytes read after the child's end: its own children may still print
_MAX_PROCESSES = 64  # watched at once
# Options in the environment would change the request, and the engine does not need tokens.
_DROPPED = re.compile(r"LLAMA_(ARG|LOG)_|HF_TOKEN|HUGGING_?FACE")
_RSS_ANON = re.compile(rb"^RssAnon:\s+(\d+) kB", re.M)


class Stop(Enum):
    """Why a child ended."""

    ITSELF = "itself"
    MAPPED = "mapped"
    READY = "ready"
    TIME = "time"
    MEMORY = "memory"


@record
class Limits:
    """Seconds, and bytes of anonymous memory of all processes together; `cores` to run on, default: all."""

    seconds: float
    anonymous: int
    cores: tuple[int, ...] = ()


@record
class Ending:
    """How a child ended: its exit status if it ended by itself, negative for a signal."""

    stop: Stop
    status: int
    log: Log
    seconds: float
    anonymous: int
    mapped: bool


def run_child(
    words: Sequence[str],
    folder: Path,
    limits: Limits,
    *,
    marker: str = "",
    stop_mapped: bool = False,
    is_ready: Callable[[int], bool] | None = None,
) -> Ending:
    """Run `words` in `folder` to its end, or until it maps a file with `marker` in its path, or `is_ready`.

    Without a `marker`, its mappings are not checked.

    Raises `ExecuteError` if it cannot be started. Whatever happens, none of its processes is left running.
    """
    start = time.monotonic()
    log, mapped, peak = Log(), False, 0
    with _started(words, folder) as process:
        pin(process.pid, limits.cores)
        assert process.stdout is not None
        output = process.stdout.fileno()
        while True:
            open_output = _read(output, log)
            members = family(process.pid)
            mapped = mapped or bool(marker and any(_maps(pid, marker) for pid in members))
            peak = max(peak, used := sum(map(_anonymous, members)))
            if process.poll() is not None:
                stop = Stop.ITSELF
            elif mapped and stop_mapped:
                stop = Stop.MAPPED
            elif used > limits.anonymous:
                stop = Stop.MEMORY
            elif time.monotonic() - start > limits.seconds:
                stop = Stop.TIME
            elif is_ready is not None and is_ready(process.pid):
                stop = Stop.READY
            else:
                if not open_output:  # it closed its output but continues
                    time.sleep(_STEP)
                continue
            break
        status = process.returncode if stop is Stop.ITSELF else 0
        _kill(process)
        _drain(output, log)
    seconds = time.monotonic() - start
    return Ending(stop=stop, status=status, log=log, seconds=seconds, anonymous=peak, mapped=mapped)


@contextlib.contextmanager
def _started(words: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the child in its own session, without input and core files; kill it at the end of the block."""
    environment = {name: value for name, value in os.environ.items() if not _DROPPED.match(name)}
    environment["GGML_NO_BACKTRACE"] = "1"  # or an abort starts a debugger
    with contextlib.ExitStack() as stack:
        with signals_held():  # a signal between the start and the next block would leave the child running
            try:
                process = subprocess.Popen(
                    list(words),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise ExecuteError(f"cannot be run: {error.strerror}", source=words[0]) from error
            stack.callback(_end, process)
        forbid_core(process.pid)
        yield process


def _end(process: subprocess.Popen[bytes]) -> None:
    _kill(process)
    if process.stdout is not None:
        process.stdout.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's group and whatever it started, and wait for it."""
    kill_tree(process, family(process.pid) if process.returncode is None else None)


def _read(output: int, log: Log) -> bool:
    """Wait a step for output and read some; return False if there is no more to come."""
    if not select.select([output], [], [], _STEP)[0]:
        return True
    data = os.read(output, _READ)
    log.add(data)
    return bool(data)


def _drain(output: int, log: Log) -> None:
    """Read the rest of the pipe."""
    end = log.nbytes + _DRAIN
    while log.nbytes < end and select.select([output], [], [], 0)[0]:
        data = os.read(output, _READ)
        if not data:
            return
        log.add(data)


# --- /proc -----------------------------------------------------------------------------------------------------------


def _proc(pid: int, name: str) -> bytes:
    """A /proc file of a process, empty if the process has ended."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for member in found:
        found += map(int, _proc(member, f"task/{member}/children").split())
        if len(found) >= _MAX_PROCESSES:
            break
    return found


def _maps(pid: int, marker: str) -> bool:
    """Whether a process has mapped a file with `marker` in its path."""
    return os.fsencode(marker) in _proc(pid, "maps")


def _anonymous(pid: int) -> int:
    """Bytes of anonymous memory that a process has touched."""
    match = _RSS_ANON.search(_proc(pid, "status"))
    return int(match[1]) * 1024 if match else 0
