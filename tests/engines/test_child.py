"""Children: their limits, their environment, and that none of them is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gguftool.engines.child import Ending, Limits, Stop, run_child
from gguftool.errors import ExecuteError
from tests.support.command import environment

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="engines are asked on Linux; run it there")

GENEROUS = Limits(seconds=60, anonymous=4 << 30)


def run(
    folder: Path, *words: str, limits: Limits = GENEROUS, marker: str = "no-such-file", **options: object
) -> Ending:
    return run_child(words, folder, limits, marker=marker, **options)  # type: ignore[arg-type]


def shell(folder: Path, text: str, **options: object) -> Ending:
    return run(folder, "/bin/sh", "-c", text, **options)  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_an_end_of_its_own(tmp_path: Path) -> None:
    ending = shell(tmp_path, "echo out; echo err >&2; exit 3")
    assert (ending.stop, ending.status, ending.mapped) == (Stop.ITSELF, 3, False)
    assert [line for line in ending.log.lines() if line] == ["out", "err"]
    assert shell(tmp_path, "kill -SEGV $$").status == -11


def test_it_stays_on_the_cores_that_it_may_use(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    program = (
        "import os, time\n"
        "end = time.monotonic() + 30\n"
        "while len(os.sched_getaffinity(0)) > 1 and time.monotonic() < end: time.sleep(0.02)\n"
        "print(os.sched_getaffinity(0))"
    )
    limits = Limits(seconds=60, anonymous=4 << 30, cores=(core,))
    ending = run(tmp_path, sys.executable, "-S", "-c", program, limits=limits)
    assert ending.log.last_line() == f"{{{core}}}"


def test_what_cannot_be_run_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ExecuteError, match="cannot be run"):
        run(tmp_path, str(tmp_path / "missing"))


def test_it_gets_no_input_no_core_no_debugger_and_no_options_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_MODEL", "other.gguf")
    monkeypatch.setenv("HF_TOKEN", "secret")
    ending = shell(tmp_path, "cat; sleep 1; ulimit -c; echo $GGML_NO_BACKTRACE; pwd; env")
    lines = ending.log.lines()
    assert lines[:3] == ["0", "1", str(tmp_path)]
    assert not any(line.startswith(("LLAMA_ARG_", "HF_TOKEN")) for line in lines)


def test_a_hang_ends_with_everything_that_it_started(tmp_path: Path) -> None:
    body = f"sleep 500 & echo $! > {tmp_path}/pid; setsid sleep 500 & echo $! > {tmp_path}/other; sleep 500"
    ending = shell(tmp_path, body, limits=Limits(seconds=2, anonymous=4 << 30))
    assert ending.stop is Stop.TIME
    time.sleep(0.5)
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert not is_running(int((tmp_path / "other").read_text()))


def test_a_signal_while_it_starts_does_not_leave_it_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **options))
        os.kill(os.getpid(), signal.SIGINT)  # Python's handler runs as soon as it is let
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            shell(tmp_path, "sleep 500")
    finally:
        signal.signal(signal.SIGINT, before)
    (process,) = started
    assert process.returncode == -signal.SIGKILL
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()  # and signals come through again


def test_anonymous_memory_is_limited_and_reserved_memory_is_not(tmp_path: Path) -> None:
    limits = Limits(seconds=60, anonymous=150 << 20)
    greedy = "import time; a = b'x' * (300 << 20); time.sleep(60)"
    assert run(tmp_path, sys.executable, "-c", greedy, limits=limits).stop is Stop.MEMORY
    modest = "import mmap; a = mmap.mmap(-1, 4 << 30)"
    ending = run(tmp_path, sys.executable, "-c", modest, limits=limits)
    assert (ending.stop, ending.status) == (Stop.ITSELF, 0)


def test_it_is_stopped_when_it_maps_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(bytes(5000))
    body = "import mmap, time; f = open('model.gguf', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); time.sleep(60)"
    options = {"marker": f"{tmp_path.name}/model", "stop_mapped": True}
    ending = run(tmp_path, sys.executable, "-c", body, **options)
    assert (ending.stop, ending.mapped) == (Stop.MAPPED, True)
    ending = shell(tmp_path, f'{sys.executable} -c "{body}"; exit 1', **options)  # a wrapper script around it
    assert ending.stop is Stop.MAPPED


def test_a_gigabyte_of_log_is_read_and_not_kept(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({300 << 20}, resource.RLIM_INFINITY))\n"
        "from pathlib import Path\n"
        "from gguftool.engines.child import Limits, run_child\n"
        "words = ['/bin/sh', '-c', 'head -c 1000000000 /dev/zero; echo; echo error: at the end; exit 1']\n"
        "ending = run_child(words, Path('.'), Limits(seconds=60, anonymous=4 << 30), marker='none')\n"
        "print(ending.log.nbytes, ending.log.errors())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split(maxsplit=1) == ["1000000019", "('error: at the end',)\n"], done.stderr[-500:]
    assert os.listdir(tmp_path) == []
