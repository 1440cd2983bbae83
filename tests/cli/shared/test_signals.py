"""Signals: before the outputs get their names they end the run, from then on they do not deny what is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gguftool.storage.sources.sidecars import helper_path
from tests.support import builders as b
from tests.support.command import environment, one_error_line
from tests.support.writer_cases import listing

if os.name != "posix":
    pytest.skip("signals of POSIX systems are sent here", allow_module_level=True)

import fcntl
import pty
import termios

MODEL = b.gguf(b.llama_kvs(b.KV("general.quantization_version", b.U32, 2)), b.llama_tensors())

# The command line, with a signal at the moment in which a call that gives the outputs their names has been made.
_AT = """
import os, signal
number, call, suffix = {number}, {call!r}, {suffix!r}
real = getattr(os, call)
def called(*args, **options):
    done = real(*args, **options)
    if str(args[0]).endswith(suffix):
        os.kill(os.getpid(), number)
    return done
setattr(os, call, called)
from gguftool.cli.main import main
main()
"""


def run_with_signal(number: int, call: str, suffix: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    code = _AT.format(number=int(number), call=call, suffix=suffix)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("call", "suffix", "line"),
    [
        ("link", ".part", ["merge", "m.gguf", "-o", "x.gguf"]),
        ("replace", ".part", ["merge", "m.gguf", "-o", "old.gguf", "--force"]),
        ("link", ".gguf", ["merge", "m.gguf", "-o", "old.gguf", "--force"]),
        ("unlink", ".part", ["merge", "m.gguf", "-o", "x.gguf"]),
        ("unlink", ".set", ["split", "m.gguf", "s", "--max-tensors", "4"]),
        ("unlink", ".undo", ["edit", "m.gguf", "--set", "general.name=str:Tony", "--in-place"]),
    ],
)
def test_a_signal_while_outputs_get_their_names_comes_too_late(
    number: int, call: str, suffix: str, line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(MODEL)
    (tmp_path / "old.gguf").write_bytes(b"old")
    before = listing(tmp_path)
    done = run_with_signal(number, call, suffix, *line)
    assert done.returncode == 0, done.stderr
    said = done.stderr.decode().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"note: {signal.Signals(number).name} came when everything was written")
    hurried = listing(tmp_path)
    assert hurried != before
    for name in hurried.keys() - before.keys():
        (tmp_path / name).unlink()
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-m", "gguftool", *line], env=environment(), check=False, timeout=60)
    assert done.returncode == 0
    assert listing(tmp_path) == hurried, "as without a signal"


def test_a_signal_just_before_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MODEL)
    part = helper_path(tmp_path / "x.gguf", "part")
    code = _AT.format(number=int(signal.SIGTERM), call="fsync", suffix="")
    command = [sys.executable, "-c", code, "merge", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "x.gguf")]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=60)
    assert done.returncode == 143
    note, error = done.stderr.splitlines(keepends=True)
    assert note.startswith(b"note: nothing to resume: ")
    assert "nothing was left under a final name" in one_error_line(error)
    assert not part.exists()
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_second_signal_ends_it_at_once() -> None:
    code = (
        "import os, signal\nfrom gguftool.cli.shared import signals\nsignals.install()\nsignals.publishing()\n"
        "for _ in range(2):\n    os.kill(os.getpid(), signal.SIGINT)\nprint('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == b""
    assert b"a second one ends the run at once" in done.stderr


_SLOW = """
import os, time
def slow(*args):
    print("copying", flush=True)
    time.sleep(60)
os.preadv = slow
from gguftool.cli.main import main
main()
"""


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MODEL)
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-c", _SLOW, "merge", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "x.gguf")]
    with subprocess.Popen(
        command,
        env=environment(),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=own_terminal,  # noqa: PLW1509 - this process has one thread here
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"copying\n"
        os.write(ours, b"\x03")
        _, said = run.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert run.returncode == 130
    note, error = said.splitlines(keepends=True)
    assert note.startswith(b"note: nothing to resume: ")
    assert "SIGINT" in one_error_line(error)
    assert os.listdir(tmp_path) == ["m.gguf"]
