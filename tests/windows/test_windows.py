"""The promises of writing, kept by a Windows Python under wine: the same bytes, nothing left over or half named."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.support.command import run_gguftool
from tests.support.paths import REPO
from tests.support.windows_python import FAULTS, TRIED_THERE, WindowsPython, WineError, on_drive, windows_python
from tests.support.writer_cases import DONOR, MODEL

# wine fails at times, in its server or in a page fault of its own: then, and only then, a test is run again.
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=3, only_rerun=["WineError"])]

STARTS = ["donor.gguf", "m.gguf", "set-00001-of-00002.gguf"]
READERS = (
    ("dump", "m.gguf"),
    ("dump", "m.gguf", "--json"),
    ("report", "m.gguf"),
    ("check", "m.gguf"),
    ("hash", "m.gguf"),
    ("diff", "m.gguf", "donor.gguf"),
    ("types",),
    ("check", "set-00001-of-00002.gguf"),
    ("merge", "m.gguf", "donor.gguf", "-o", "x.gguf"),
)
WRITERS = (
    ("split", "m.gguf", "parts"),
    ("merge", "parts-00001-of-00005.gguf", "-o", "merged.gguf", "--hash"),
    ("merge", "m.gguf", "-o", "merged.gguf", "--force"),
    ("swap", "m.gguf", "--from", "donor.gguf", "--tensor", "attn_q", "-o", "swapped.gguf"),
    ("edit", "merged.gguf", "--set", "general.name=Tony", "--in-place"),
    ("edit", "m.gguf", "--set", "general.name=A much longer name than it had", "-o", "merged.gguf", "--force"),
    ("split", "merged.gguf", "parts", "--force"),
    ("export", "m.gguf", "--tensor", "attn_q", "-o", "q.safetensors"),
)


@pytest.fixture(scope="module")
def windows() -> WindowsPython:
    return windows_python()


def set_up(folder: Path) -> Path:
    folder.mkdir()
    (folder / "m.gguf").write_bytes(MODEL)
    (folder / "donor.gguf").write_bytes(DONOR)
    (folder / "set-00001-of-00002.gguf").write_bytes(MODEL[:200])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def text(data: bytes) -> str:
    return data.decode("utf-8").replace("\r\n", "\n")


SPEAK = "import sys; sys.stderr.write('wine: a fault\\nours\\n'); sys.exit(int(sys.argv[1]))"


def test_what_wine_says_is_told_from_what_the_program_says(windows: WindowsPython, tmp_path: Path) -> None:
    assert text(windows.run("-c", SPEAK, 0, cwd=tmp_path).stderr) == "ours\n"
    with pytest.raises(WineError, match="wine: a fault"):
        windows.run("-c", SPEAK, 3, cwd=tmp_path)


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_readers_say_the_same(words: tuple[str, ...], windows: WindowsPython, tmp_path: Path) -> None:
    folder = set_up(tmp_path / "x")
    here = run_gguftool(*words, cwd=folder)
    there = windows.gguftool(*words, cwd=folder)
    assert (there.returncode, text(there.stdout)) == (here.returncode, text(here.stdout)), there.stderr
    assert text(there.stderr) == text(here.stderr)


def test_writers_write_the_same_bytes_and_leave_nothing_else(windows: WindowsPython, tmp_path: Path) -> None:
    here, there = set_up(tmp_path / "here"), set_up(tmp_path / "there")
    for words in WRITERS:
        done, other = windows.gguftool(*words, cwd=there), run_gguftool(*words, cwd=here)
        assert done.returncode == other.returncode == 0, (words, done.stderr, other.stderr)
        assert files(there) == files(here), words
        assert text(done.stdout) == text(other.stdout)


@pytest.mark.parametrize("name", ["nul.gguf", "aux", "x.gguf.", "a?.gguf"])
def test_names_that_windows_has_for_something_else(name: str, windows: WindowsPython, tmp_path: Path) -> None:
    folder = set_up(tmp_path / "x")
    done = windows.gguftool("merge", "m.gguf", "-o", name, cwd=folder)
    assert done.returncode == 2
    assert "Windows" in text(done.stderr)
    assert len(text(done.stderr).splitlines()) == 1
    assert sorted(files(folder)) == STARTS


HOLD = """
import sys, time
from pathlib import Path
from gguftool.storage.execute.part import create_part
create_part(Path(sys.argv[1]), 100)
Path("held").touch()
end = time.monotonic() + 60
while Path("held").exists() and time.monotonic() < end:
    time.sleep(0.05)
"""


def test_the_second_of_two_processes_on_one_output_is_refused(windows: WindowsPython, tmp_path: Path) -> None:
    folder = set_up(tmp_path / "x")
    holder = threading.Thread(target=lambda: windows.run("-c", HOLD, "out.gguf", cwd=folder))
    holder.start()
    end = time.monotonic() + 60
    while not (folder / "held").exists() and time.monotonic() < end:
        time.sleep(0.05)
    try:
        done = windows.gguftool("merge", "m.gguf", "-o", "out.gguf", cwd=folder)
    finally:
        (folder / "held").unlink()
        holder.join()
    assert done.returncode == 2
    assert "another gguftool is writing this file" in text(done.stderr)
    assert not (folder / "out.gguf").exists()
    done = windows.gguftool("merge", "m.gguf", "-o", "out.gguf", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.gguf").read_bytes() == MODEL
    assert sorted(files(folder)) == sorted([*STARTS, "out.gguf"])


@pytest.mark.parametrize("case", ["merge, checkpoints", "split --force", "swap --in-place", "edit --in-place, set"])
def test_killed_at_some_calls_the_next_run_makes_it_right(case: str, windows: WindowsPython, tmp_path: Path) -> None:
    def run(*numbers: int) -> str:
        done = windows.run("-m", "tests.windows.killed", case, "run", *numbers, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return text(done.stdout)

    count = int(run())
    numbers = sorted({*range(0, count, max(1, count // 4)), count - 2})
    assert run(*numbers).count("made right") == len(numbers)


def passes(windows: WindowsPython, folder: Path, *names: str, timeout: float) -> None:
    settings = ("--rootdir", on_drive(REPO), "-c", on_drive(REPO / "pyproject.toml"))
    tests = [on_drive(REPO / name) for name in names]
    options = ("-q", "-p", "no:cacheprovider", "-W", "default", *settings)
    done = windows.run("-m", "pytest", *options, *tests, cwd=folder, timeout=timeout)
    assert done.returncode == 0, text(done.stdout)[-4000:]
    assert "[100%]" in text(done.stdout)


def test_tests_that_need_nothing_of_posix_pass_there(windows: WindowsPython, tmp_path: Path) -> None:
    passes(windows, tmp_path, *TRIED_THERE, timeout=900)


@pytest.mark.soak
def test_every_call_of_every_writer_is_failed_there(windows: WindowsPython, tmp_path: Path) -> None:
    passes(windows, tmp_path, FAULTS, timeout=4 * 3600)
