"""Where two features meet: left-overs of one run under another, signals of two kinds, threads that end late."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import filler
from remote_source import SlowSource

from gguftool.errors import SourceError
from gguftool.storage import execute as executing
from gguftool.storage import landing, runs
from gguftool.storage.execute import Options, execute
from gguftool.storage.local import helper_path
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.source import Extent

KIB = 1 << 10
DATA = filler("crossings", 1 << 20)


class Stop(BaseException):
    """Ends a run as a signal does."""


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MIN_REQUEST", 64 * KIB)
    monkeypatch.setattr(runs, "MAX_REQUEST", 64 * KIB)
    monkeypatch.setattr(landing, "STEP", 64 * KIB)
    monkeypatch.setattr(landing, "_SHORTEST", 0.0)


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

    def stopped(_plan: Plan) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(executing, "read_ranges", stopped)
        with pytest.raises(Stop):
            execute(whole(path, SlowSource(DATA)))
    again = SlowSource(DATA)
    execute(whole(path, again))
    assert again.served < len(DATA)
    assert path.read_bytes() == DATA


def test_a_journal_says_nothing_of_a_part_file_that_was_made_after_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    interrupted(path)
    last = executing.read_ranges(whole(path, SlowSource(DATA)))[0][-1]
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
