"""Load a model's skeleton in an engine, and report the result.

A known-good and a known-bad tiny model go first: if the engine does not load the first, or loads the second, its result
for the user's file means nothing, and neither does its exit status 0. The skeleton is loaded until the engine maps it:
by then it has accepted the head, the vocabulary and the tensors. Only a small skeleton, or one that must run, is loaded
to the end: engines touch every page that they map.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from gguftool.engines.child import Ending, Limits, Stop, run_child
from gguftool.engines.log import Log
from gguftool.engines.probe import Kind, LoadEngine, command_line
from gguftool.engines.server import ServerTalk
from gguftool.engines.skeleton import PREFIX, SkeletonFile, write_skeleton, write_sparse
from gguftool.engines.tiny_model import bad_model, good_model
from gguftool.engines.xllamacpp_child import GENERATED, LOADED
from gguftool.record import record, replace
from gguftool.storage.system.processes import FROM_OUTSIDE

_SECONDS = 60.0  # the limit for work that takes an engine about one
_BYTES_PER_SECOND = 250e6  # of a skeleton that is loaded to the end; measured: 760e6
_SECONDS_PER_TOKEN = 20.0
# A thread writes llama.cpp's log, and the end of the process stops it: an engine that refuses a file may end before it
# prints the reason (one run in five on a quiet machine, three in five on a busy one). Then it is run again.
_ASKED = 40
_ASKING = 10.0  # seconds for all runs after the first
_SHELL_SIGNALS = range(129, 129 + 64)  # exit status of a shell for a command that was stopped by a signal


class Verdict(Enum):
    """The engine's result for the skeleton."""

    ACCEPTED = "accepted"  # mapped it, and was stopped there
    LOADED = "loaded"  # loaded it to the end
    RAN = "ran"  # and generated tokens
    REFUSED = "refused"
    CRASHED = "crashed"
    EXCEEDED = "exceeded"
    UNUSABLE = "unusable"  # the engine itself does not work


@record
class Outcome:
    """The result of loading: `how` it ended in words, the engine's own error `lines`, time and memory used."""

    verdict: Verdict
    how: str
    lines: tuple[str, ...]
    seconds: float
    anonymous: int

    @property
    def is_good(self) -> bool:
        """Whether the engine got as far as requested with the model."""
        return self.verdict in (Verdict.ACCEPTED, Verdict.LOADED, Verdict.RAN)


def load(
    engine: LoadEngine,
    files: Sequence[SkeletonFile],
    folder: Path,
    *,
    tokens: int = 0,
    seconds: float | None = None,
) -> Outcome:
    """Load the skeleton of `files` in `engine`, after a known-good and a known-bad model, all in `folder`.

    With `tokens`, also generate that many. Raises `ExecuteError` if the skeleton cannot be written, or the engine
    cannot be started.
    """
    free = free_memory()
    limits = Limits(seconds=seconds or _SECONDS, anonymous=free // 2)
    broken = _try_out(engine, folder, limits)
    if broken is not None:
        return broken
    path = write_skeleton(folder, files)
    size = sum(file.size for file in files)
    to_the_end = bool(tokens) or size < free // 2
    if to_the_end and seconds is None:
        limits = replace(limits, seconds=_SECONDS + size / _BYTES_PER_SECOND + tokens * _SECONDS_PER_TOKEN)
    outcome = _ask(engine, path, folder, limits, tokens=tokens, to_the_end=to_the_end)
    end = time.monotonic() + _ASKING
    for _ in range(_ASKED - 1):
        if outcome.verdict is not Verdict.REFUSED or outcome.lines or time.monotonic() > end:
            break
        outcome = _ask(engine, path, folder, limits, tokens=tokens, to_the_end=to_the_end)
    return outcome


def free_memory() -> int:
    """Bytes of memory available to programs."""
    with open("/proc/meminfo", encoding="ascii") as table:
        fields = dict(line.split(":", 1) for line in table)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _try_out(engine: LoadEngine, folder: Path, limits: Limits) -> Outcome | None:
    """Load the known-good and the known-bad model; return None if the engine tells them apart."""
    good, bad = folder / "good.gguf", folder / "bad.gguf"
    write_sparse(good, good_model().head, good_model().size)
    write_sparse(bad, bad_model().head, bad_model().size)
    outcome = _ask(engine, good, folder, limits, to_the_end=True)
    if not outcome.is_good:
        how = f"it does not load a known-good model: {outcome.how}"
        return replace(outcome, verdict=Verdict.UNUSABLE, how=how)
    outcome = _ask(engine, bad, folder, limits, to_the_end=True)
    if outcome.verdict is not Verdict.REFUSED:
        how = f"it does not refuse a model with an architecture that does not exist: {outcome.how}"
        return replace(outcome, verdict=Verdict.UNUSABLE, how=how)
    return None


def _ask(engine: LoadEngine, path: Path, folder: Path, limits: Limits, *, tokens: int = 0, to_the_end: bool) -> Outcome:
    """Load the file at `path` once."""
    text = folder / "text.txt"
    text.write_text("a", encoding="ascii")
    talk = ServerTalk(tokens) if engine.kind is Kind.SERVER else None
    ending = run_child(
        command_line(engine, path, tokens, text),
        folder,
        limits,
        marker=f"{folder.name}/{PREFIX if path.name.startswith(PREFIX) else path.stem}",
        stop_mapped=not to_the_end,
        is_ready=talk.is_ready if talk else None,
    )
    failed = talk.answer if talk else ""
    verdict, how = _judge(engine, ending, limits, tokens, failed)
    log = ending.log
    lines = () if verdict in (Verdict.ACCEPTED, Verdict.LOADED, Verdict.RAN) else log.errors()
    lines = tuple(line.replace(f"{folder}{os.sep}", "") for line in lines)
    if failed:
        extra = Log()
        extra.add(f"error: {failed}".encode())
        lines = (*extra.errors(), *lines)
    return Outcome(verdict=verdict, how=how, lines=lines, seconds=ending.seconds, anonymous=ending.anonymous)


def _judge(engine: LoadEngine, ending: Ending, limits: Limits, tokens: int, failed: str) -> tuple[Verdict, str]:
    """The verdict on one run, and how it ended in words."""
    done = Verdict.RAN if tokens else Verdict.LOADED
    if ending.stop is Stop.MAPPED:
        return Verdict.ACCEPTED, "it was stopped when it mapped the file"
    if ending.stop is Stop.READY:
        return (Verdict.REFUSED, "the request failed") if failed else (done, "it answers requests")
    if ending.stop is Stop.TIME:
        return Verdict.EXCEEDED, f"it did not finish within {limits.seconds:,.0f} seconds"
    if ending.stop is Stop.MEMORY:
        return Verdict.EXCEEDED, f"it took more than {limits.anonymous / 1e9:,.1f} GB of memory of its own"
    number = _signal_of(ending.status)
    if number is not None and number in FROM_OUTSIDE:
        return Verdict.EXCEEDED, f"something else ended it with {number.name}, which systems do when memory runs out"
    if number is not None:
        return Verdict.CRASHED, number.name
    how = f"exit status {ending.status}"
    if ending.status:
        return Verdict.REFUSED, how
    if engine.kind is Kind.SERVER or not _is_proven(engine, ending, tokens):
        return Verdict.REFUSED, f"{how}, without having loaded it"
    return done, how


def _signal_of(status: int) -> signal.Signals | None:
    number = -status if status < 0 else status - 128 if status in _SHELL_SIGNALS else 0
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def _is_proven(engine: LoadEngine, ending: Ending, tokens: int) -> bool:
    """Whether there is better evidence of success than an exit status 0."""
    if engine.kind is Kind.XLLAMACPP:
        return (GENERATED if tokens else LOADED) in ending.log.text()  # lines of the log may run into it
    return "error loading model" not in ending.log.text()
