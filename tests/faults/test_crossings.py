"""Where two features meet: left-overs of one run under another, signals of two kinds, threads that end late."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError, SourceError
from gguftool.storage.execute import run as run_module
from gguftool.storage.execute import streaming
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import copy_all
from gguftool.storage.execute.executor import execute as execute_plan
from gguftool.storage.execute.options import Options, Sizes
from gguftool.storage.execute.resume import read_resume
from gguftool.storage.plan import Copy, OutputFile, Plan, Receipt
from gguftool.storage.sources.digest import digest_all
from gguftool.storage.sources.sidecars import helper_path
from gguftool.storage.sources.source import Extent
from gguftool.storage.sources.source import whole as whole_of
from tests.support import builders as b
from tests.support.builders import filler
from tests.support.command import environment, run_gguftool
from tests.support.slow_source import SlowSource

KIB = 1 << 10
DATA = filler("crossings", 1 << 20)


class Stop(BaseException):
    """Ends a run as a signal does."""


SIZES = Sizes(least_request=64 * KIB, most_request=64 * KIB, range_step=64 * KIB, range_pause=0.0)


def execute(plan: Plan, options: Options | None = None) -> Receipt:
    """Carry out `plan` in small steps, so that little data has many."""
    options = options or Options()
    return execute_plan(plan, replace(options, sizes=SIZES) if options.sizes == Sizes() else options)


def whole(path: Path, source: SlowSource, gap: int = 0) -> Plan:
    """`source` at `path`, with `gap` bytes of padding in the middle of it."""
    half = source.size // 2
    copies = (
        Copy(extent=Extent(source=source, offset=0, length=half), offset=0),
        Copy(extent=Extent(source=source, offset=half, length=source.size - half), offset=half + gap),
    )
    return Plan(outputs=(OutputFile(path=path, head=b"", copies=copies, size=source.size + gap),), inputs=(source,))


# --- left-overs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_padding_of_a_streamed_output_is_zeros_whatever_part_lay_there(
    resume: bool, sync: bool, tmp_path: Path
) -> None:
    path, gap = tmp_path / "out", 5000
    helper_path(path, "part").write_bytes(b"\xff" * (len(DATA) + gap))  # of another plan, killed before its first note
    execute(whole(path, SlowSource(DATA), gap), Options(resume=resume, sync=sync))
    half = len(DATA) // 2
    assert path.read_bytes() == DATA[:half] + bytes(gap) + DATA[half:]


def interrupted(path: Path) -> None:
    """Leave a part file and its journal of ranges."""
    with pytest.raises(SourceError):
        execute(whole(path, SlowSource(DATA, fail_at=len(DATA) // 2)), Options(jobs=1))
    assert helper_path(path, "part").exists()
    assert helper_path(path, "resume").exists()


def test_what_an_earlier_run_left_survives_a_signal_before_the_journal_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    interrupted(path)

    def stopped(*_: object, **__: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "ResumeJournal", stopped)
        with pytest.raises(Stop):
            execute(whole(path, SlowSource(DATA)))
    again = SlowSource(DATA)
    execute(whole(path, again))
    assert again.served < len(DATA)
    assert path.read_bytes() == DATA


def test_a_run_that_goes_on_and_is_given_up_leaves_no_part_of_the_earlier_one(tmp_path: Path) -> None:
    def plan(source: SlowSource) -> Plan:
        plans = [whole(tmp_path / f"out{number}", source) for number in range(4)]
        return Plan(outputs=tuple(plan.outputs[0] for plan in plans), inputs=(source,))

    class FullDisk(SlowSource):
        def stream(self, offset: int, length: int) -> Iterator[bytes]:
            raise OSError(errno.ENOSPC, "full")

        def read_at(self, offset: int, length: int) -> bytes:
            return self.data[offset : offset + length]

    with pytest.raises(SourceError):
        execute(plan(SlowSource(DATA, fail_at=len(DATA) * 5 // 2)), Options(jobs=1))
    helper_path(tmp_path / "out1", "part").unlink()
    assert helper_path(tmp_path / "out2", "part").exists()
    with pytest.raises(ExecuteError, match="disk is full"):
        execute(plan(FullDisk(DATA)), Options(jobs=1))
    assert not list(tmp_path.iterdir())


def test_a_journal_says_nothing_of_a_part_file_that_was_made_after_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    interrupted(path)
    last = read_resume(whole(path, SlowSource(DATA))).ranges[0][-1]
    helper_path(path, "part").unlink()

    class Backwards(SlowSource):
        """Gives what ends the last range noted, and then the run is killed."""

        def stream(self, offset: int, length: int) -> Iterator[bytes]:
            if offset <= last[1] - 1 < offset + length:
                yield from super().stream(offset, length)
                time.sleep(0.3)
                os._exit(9)
            time.sleep(5)
            yield b""

    child = os.fork()
    if not child:
        try:
            execute(whole(path, Backwards(DATA)), Options(jobs=20))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert helper_path(path, "part").read_bytes()[last[1] - 64 * KIB : last[1]] == DATA[last[1] - 64 * KIB : last[1]]
    execute(whole(path, SlowSource(DATA)))
    assert path.read_bytes() == DATA


# --- signals ---------------------------------------------------------------------------------------------------------

# The command line, with one signal while bytes are written and another while what it interrupted unwinds.
_TWO = """SUFFIX = {suffix!r}
import os, signal
from gguftool.storage.execute import copying, executor
from gguftool.cli.main import main
real, join = os.pwrite, copying.join_all
sent = []
def pwrite(fd, data, offset):
    if os.readlink(f"/proc/self/fd/{{fd}}").endswith(SUFFIX) and offset and not sent:
        sent.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
    return real(fd, data, offset)
def join_all(*arguments):
    if len(sent) == 1:
        sent.append(2)
        os.kill(os.getpid(), signal.SIGHUP)
    return join(*arguments)
os.pwrite, copying.join_all = pwrite, join_all
main()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks /proc which file a descriptor is of (Linux)")
@pytest.mark.parametrize(
    ("line", "suffix"),
    [
        (["swap", "m.gguf", "--from", "donor.gguf", "--tensor", "blk", "--in-place"], "m.gguf"),
        (["merge", "m.gguf", "-o", "x.gguf", "--jobs", "2"], ".part"),
    ],
)
def test_a_signal_of_another_kind_does_not_interrupt_the_undoing(
    line: list[str], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kvs = b.llama_kvs(b.KV("general.quantization_version", b.U32, 2))
    (tmp_path / "m.gguf").write_bytes(b.gguf(kvs, b.llama_tensors()))
    tensors = [replace(tensor, data=tensor.data[::-1]) for tensor in b.llama_tensors()]
    (tmp_path / "donor.gguf").write_bytes(b.gguf(kvs, tensors))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", _TWO.format(suffix=suffix), *line]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


_AT_THE_END = """
import atexit, os, signal
from gguftool.cli.main import main
atexit.register(lambda: os.kill(os.getpid(), signal.{name}))
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(("line", "code"), [(["merge", "m.gguf", "-o", "x.gguf"], 0), (["dump", "none.gguf"], 2)])
def test_a_signal_while_the_interpreter_ends_does_not_change_what_is_said(
    name: str, line: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b.small_model())
    command = [sys.executable, "-c", _AT_THE_END.format(name=name), *line]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    assert b"Interrupted" not in done.stderr
    assert (tmp_path / "x.gguf").exists() == (code == 0)


_FEW_THREADS = """
import threading
real, left = threading.Thread.start, [{allowed}]
def start(thread):
    if not left[0]:
        raise RuntimeError("can't start new thread")
    left[0] -= 1
    real(thread)
threading.Thread.start = start
from gguftool.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize(
    "line",
    [
        ["merge", "m.gguf", "-o", "x.gguf", "--hash", "--jobs", "4"],
        ["hash", "m.gguf", "--jobs", "4"],
        ["diff", "m.gguf", "n.gguf", "--data"],
    ],
    ids=" ".join,
)
def test_fewer_threads_than_wanted_only_cost_time(
    allowed: int, line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.gguf", "n.gguf"):
        (tmp_path / name).write_bytes(b.gguf(b.llama_kvs(), b.llama_tensors()))
    wanted = run_gguftool(*line)
    (tmp_path / "x.gguf").unlink(missing_ok=True)
    command = [sys.executable, "-c", _FEW_THREADS.format(allowed=allowed), *line]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (wanted.returncode, wanted.stdout), done.stderr


# --- threads that end late -------------------------------------------------------------------------------------------


def test_no_byte_is_written_after_the_copying_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread in a write is waited for, however slow the disk: what undoes a change writes to the same place."""
    real, writing, over = streaming.write_fully, threading.Event(), threading.Event()
    late: list[int] = []

    def slow_disk(fd: int, data: memoryview, offset: int, *rest: object) -> None:
        writing.set()
        time.sleep(0.7)
        late.append(offset) if over.is_set() else None
        real(fd, data, offset, *rest)  # type: ignore[arg-type]

    class Failing(SlowSource):
        def stream(self, offset: int, length: int) -> Iterator[bytes]:
            if offset:
                writing.wait(5)
                raise SourceError("the server is gone", source=self.name)
            yield self.data[:length]

    monkeypatch.setattr(streaming, "write_fully", slow_disk)
    source = Failing(DATA)
    copy = Copy(extent=Extent(source=source, offset=0, length=len(DATA)), offset=0)
    with (tmp_path / "out").open("w+b") as out:
        with pytest.raises(SourceError, match="gone"):
            copy_all([copy], out.fileno(), CopyState(jobs=2, sizes=replace(SIZES, grace=0.1)))
        over.set()
    for thread in threading.enumerate():
        if thread.name == "gguftool":
            thread.join(5)
    assert writing.is_set()
    assert not late


@pytest.mark.parametrize("jobs", [1, 3])
def test_hashing_ends_with_its_first_error_and_not_with_its_longest_file(jobs: int) -> None:
    class Endless(SlowSource):
        @property
        def size(self) -> int:
            return 1 << 50

        def stream(self, offset: int, length: int) -> Iterator[bytes]:
            while True:
                yield bytes(1 << 16)

    class Broken(SlowSource):
        def stream(self, offset: int, length: int) -> Iterator[bytes]:
            raise SourceError("the server is gone", source=self.name, offset=offset)

    with pytest.raises(SourceError, match="gone"):
        digest_all([[whole_of(Broken(DATA))], [whole_of(Endless(DATA))], [whole_of(Endless(DATA))]], jobs)
