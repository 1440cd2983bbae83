"""Two users without privileges, for tests of what one can do to the other's files."""

from __future__ import annotations

import json  # noqa: F401 - loaded here, as the child may not read the interpreter's files
import os
import pwd  # noqa: F401
import shlex  # noqa: F401
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest

VICTIM, ATTACKER = 65533, 65534

needs_two_users = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="two users take root and setpriv: apt-get install util-linux; sudo python -m pytest",
)


@lru_cache(maxsize=1)
def running_as(user: int) -> tuple[str, ...]:
    """The start of a command line that runs the rest as `user`, without any privilege.

    If the user may not read the interpreter (in /root, say), the child may read all files, but write none of them.
    """
    drop = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    plain = (*drop, "--inh-caps=-all", "--ambient-caps=-all")
    if (
        subprocess.run([*plain, sys.executable, "-c", "import pytest"], capture_output=True, check=False).returncode
        == 0
    ):
        return plain
    return (*drop, "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")


@contextmanager
def shared_folder(mode: int) -> Iterator[Path]:
    """A folder with `mode`, which any user can reach: pytest's own temporary folders are closed to others."""
    with tempfile.TemporaryDirectory(prefix="gguftool-users-") as made:
        os.chmod(made, 0o755)
        folder = Path(made) / "shared"
        folder.mkdir()
        folder.chmod(mode)
        yield folder


def as_user(user: int, act: Callable[[], object]) -> str:
    """Run `act` in a child process as `user`; return the error's text, empty if there was none."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads about, from Python 3.12 on
        child = os.fork()
    if not child:
        text = ""
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            act()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, text.encode())
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text
