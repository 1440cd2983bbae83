"""Run an installed llama-quantize of either engine: find it, build its command line, watch it, read its log.

Sources: llama.cpp tools/quantize/quantize.cpp, ik_llama.cpp examples/quantize/quantize.cpp (options; only tensors of a
quantized default type heed the rules, hence Q8_0).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gguftool.errors import ExecuteError, PlanError, printable
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.record import record
from gguftool.storage.system.processes import kill_tree, signals_held

_DEFAULT = "Q8_0"  # for tensors without a rule; a quantized type, or llama-quantize ignores the rules
_LOG_TAIL = 6  # last lines of the program's output that an error shows
_LOG_BYTES = 4096  # read from the log's end
_LOG_LINE = 300  # characters of one line


@record
class LlamaQuantize:
    """An installed llama-quantize; `identity` changes when the program file changes."""

    path: Path
    identity: str


@record
class LlamaQuantizeRun:
    """One run of `tool`, a llama-quantize of `engine`, from `source` to `target` by `rules`.

    A rule is `REGEX=TYPE`, in the engine's own spelling. `threads`: default: one for each core.
    """

    tool: Path
    engine: str
    source: Path
    target: Path
    rules: tuple[str, ...]
    imatrix: Path | None = None
    requantize: bool = False
    threads: int | None = None


def find_llama_quantize(name: str) -> LlamaQuantize:
    """Find the program `name`, a path or a command; raise `PlanError` if it cannot be run."""
    found = shutil.which(name)
    if found is None:
        raise PlanError(
            "no such program, or it is not executable; build it with llama.cpp or ik_llama.cpp", source=name
        )
    path = Path(found).resolve()
    status = path.stat()
    return LlamaQuantize(path=path, identity=f"{path} {status.st_size} {status.st_mtime_ns}")


def command_line(run: LlamaQuantizeRun) -> list[str]:
    """Build the command line of `run`."""
    words = [str(run.tool)]
    if run.requantize:
        words.append("--allow-requantize")
    if run.imatrix is not None:
        words += ["--imatrix", str(run.imatrix)]
    if ENGINES[run.engine].custom_q:
        words += ["--custom-q", ",".join(run.rules)]
    else:
        words += [word for rule in run.rules for word in ("--tensor-type", rule)]
    return [*words, str(run.source), str(run.target), _DEFAULT, str(run.threads or os.cpu_count() or 1)]


def run_llama_quantize(run: LlamaQuantizeRun) -> None:
    """Run the program to its end, with the log next to the target.

    Raises `ExecuteError` with the log's last lines if it fails or writes nothing.
    """
    words = command_line(run)
    log = run.target.parent / "log.txt"
    with open(log, "wb") as out, contextlib.ExitStack() as stack:
        with signals_held():  # a signal between the start and the next block would leave the program running
            try:
                # In a new session: the program may be a script, and the processes that it starts must end with it.
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                raise ExecuteError(f"cannot be run: {error.strerror}", source=words[0]) from error
            stack.enter_context(_killed_on_error(process))
        code = process.wait()
    if code:
        how = f"ended with {code}" if code > 0 else f"was stopped by signal {-code}"
        raise ExecuteError(f"{how}; it said last: {_tail(log) or 'nothing'}", source=words[0])
    if not run.target.is_file():
        raise ExecuteError("ended without an error but wrote nothing", source=words[0])


@contextlib.contextmanager
def _killed_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill `process` and everything it started if the block ends with an exception, such as Ctrl-C."""
    try:
        yield
    except BaseException:
        kill_tree(process)
        raise


def _tail(log: Path) -> str:
    """Read the last lines of a log, which may hold gigabytes."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        lines = file.read(_LOG_BYTES).decode("utf-8", "replace").splitlines()
    return " | ".join([printable(line.strip(), _LOG_LINE) for line in lines if line.strip()][-_LOG_TAIL:])
