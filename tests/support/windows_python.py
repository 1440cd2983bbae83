"""A Windows Python under wine, made once in a cache outside the tree.

`python -m tests.support.windows_python` takes about a minute. It needs wine and mingw's C compiler:
``apt-get install wine wine64 gcc-mingw-w64-x86-64``. `GGUFTOOL_WINDOWS_PYTHON` names another folder for the cache.

The interpreter's library and extension modules are those that panda3d's wheel for Windows carries, the standard
library is this Python's, and `python.exe` is a few lines of C. wine is not Windows: renames, locks and sharing of open
files behave as Microsoft documents them, owners and virus scanners do not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import REPO

# Tests that need nothing of POSIX; the workflow runs them on Windows itself, too.
FAULTS = "tests/faults/test_every_call.py::test_whatever_call_fails_the_output_is_right_or_the_old_one"
TRIED_THERE = (
    "tests/storage/system/test_names.py",
    "tests/storage/system/test_locks.py",
    f"{FAULTS}[merge]",  # of all writers with `-m soak`
)
MAKE = "python -m tests.support.windows_python"
_COMPILER = "x86_64-w64-mingw32-gcc"
_STARTS = 3
_SERVER_SECONDS = 60
_OF_WINE = re.compile(rb"^wine: .*\n?", re.MULTILINE)
_MADE_AS = 2  # counts the ways in which this module has made it
_TAG = f"{sys.version_info[0]}{sys.version_info[1]}"
# typer 0.29 brings a library that wine 8 cannot load, as numpy does: what needs numpy is not tried here.
_PACKAGES = ("typer<0.29", "tqdm", "safetensors", "pytest", "hypothesis", "colorama")
# wine may end without a word before it starts a program, while its server is ending. The launcher makes a file first,
# which tells such a start from a program that ended.
_STARTED = "GGUFTOOL_STARTED"
_LAUNCHER = """
#include <windows.h>
typedef int (*entry)(int, wchar_t **);
int wmain(int count, wchar_t **words) {
    wchar_t *started = _wgetenv(L"GGUFTOOL_STARTED");
    if (started) CloseHandle(CreateFileW(started, GENERIC_WRITE, 7, NULL, CREATE_ALWAYS, 0, NULL));
    HMODULE library = LoadLibraryW(L"python%s.dll");
    return library ? ((entry)GetProcAddress(library, "Py_Main"))(count, words) : 111;
}
"""


def folder() -> Path:
    """The folder of the interpreter, there or not."""
    cache = os.environ.get("GGUFTOOL_WINDOWS_PYTHON")
    if cache is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = str(Path(home) / "gguftool-windows-python")
    return Path(cache) / f"python{_TAG}-{_MADE_AS}"


class WineError(Exception):
    """wine itself failed: nothing is known of the program that it ran."""


class WindowsPython:
    """Runs the interpreter; paths of this system are drive Z."""

    def __init__(self, home: Path) -> None:
        self._home = home
        _keep_server(home)

    def run(self, *words: object, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[bytes]:
        """Run ``python.exe WORDS`` in `cwd`, with this checkout's package; a start that fails in wine is repeated.

        Raises `WineError` if the program ended badly and wine tells of a fault. wine's lines are not in `stderr`: its
        services write them there, too.
        """
        with tempfile.TemporaryDirectory() as scratch:
            started = Path(scratch, "started")
            for _ in range(_STARTS):
                done = self._once(words, cwd, timeout, started)
                if started.exists():
                    break
        if done.returncode and (faults := _OF_WINE.findall(done.stderr)):
            raise WineError(b"".join(faults).decode(errors="replace"))
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, _OF_WINE.sub(b"", done.stderr))

    def _once(
        self, words: tuple[object, ...], cwd: Path, timeout: float, started: Path
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["wine", str(self._home / "python.exe"), *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=cwd,
            env=_environment(self._home) | {"PYTHONPATH": on_drive(REPO), _STARTED: on_drive(started)},
            timeout=timeout,
            check=False,
        )

    def gguftool(self, *words: object, cwd: Path) -> subprocess.CompletedProcess[bytes]:
        """Run the command line."""
        return self.run("-m", "gguftool", *words, cwd=cwd)


def on_drive(path: Path) -> str:
    """The name of `path` under wine."""
    return "Z:" + str(path).replace("/", "\\")


def windows_python() -> WindowsPython:
    """Find the interpreter; skip the test with the command that makes it if it is missing."""
    if not (folder() / "python.exe").is_file() or shutil.which("wine") is None:
        pytest.skip(f"no Windows Python here; run: apt-get install wine wine64 gcc-mingw-w64-x86-64 && {MAKE}")
    return WindowsPython(folder())


def _keep_server(home: Path) -> None:
    """Keep wine's server and services for a minute after each program: with fewer starts there are fewer faults."""
    none = subprocess.DEVNULL  # the services would hold a pipe open
    for words in (["wineserver", f"-p{_SERVER_SECONDS}"], ["wine", "cmd", "/c", "exit"]):
        subprocess.run(words, stdin=none, stdout=none, stderr=none, env=_environment(home), check=False, timeout=60)


def make() -> None:
    """Make what is missing; the folder appears only when the interpreter has run."""
    target = folder()
    if (target / "python.exe").is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _add_interpreter(made, Path(scratch))
        _add_library(made)
        subprocess.run(["wineboot", "-i"], env=_environment(made), check=True, capture_output=True)
        done = WindowsPython(made).run("-c", "import ctypes, ssl, typer", cwd=made)
        if done.returncode:
            raise RuntimeError(f"the interpreter does not run: {done.stderr.decode(errors='replace')}")
        subprocess.run(["wineserver", "-k"], env=_environment(made), check=False)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _add_interpreter(made: Path, scratch: Path) -> None:
    _pip("download", "-d", str(scratch), "--no-deps", "panda3d")
    (made / "DLLs").mkdir()
    with zipfile.ZipFile(next(scratch.glob("panda3d-*.whl"))) as wheel:
        for name in wheel.namelist():
            part = Path(name)
            if "deploy_libs" not in part.parts or part.suffix not in (".pyd", ".dll"):
                continue
            beside = part.name.lower().startswith(("python", "vcruntime"))
            place = made if beside else made / "DLLs"
            (place / part.name).write_bytes(wheel.read(name))
    source = made / "python.c"
    source.write_text(_LAUNCHER % _TAG)
    subprocess.run([_COMPILER, "-municode", "-O1", "-o", str(made / "python.exe"), str(source)], check=True)


def _add_library(made: Path) -> None:
    ignored = shutil.ignore_patterns("site-packages", "dist-packages", "test", "lib-dynload", "__pycache__")
    shutil.copytree(sysconfig.get_path("stdlib"), made / "Lib", ignore=ignored)
    _pip("install", "--no-compile", "--target", str(made / "Lib" / "site-packages"), *_PACKAGES)


def _pip(what: str, *words: str) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    windows = ("--only-binary", ":all:", "--platform", "win_amd64", "--python-version", version)
    subprocess.run([sys.executable, "-m", "pip", what, "-q", *windows, *words], check=True, stdout=sys.stderr)


def _environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "WINEPREFIX": str(home / "prefix"),
        "WINEDEBUG": "-all",
        "DISPLAY": "",
        "PYTHONHOME": on_drive(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


if __name__ == "__main__":
    make()
    print(folder())
