"""Speed of reading from a web server, as a ratio to `curl` of the same bytes from the same nginx in one run.

    .venv/bin/python -m benchmarks.remote [FOLDER]

FOLDER holds at most 6 GB, removed at the end; a folder in memory (/dev/shm) keeps the disk out of the figures.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.measure import MIB, PYTHON, Verdict, alternate, run, wall
from benchmarks.models import big_model

ROUNDS = 5
N_TENSORS = 1148
_CONFIG = """
daemon off; master_process off; {user} pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; keepalive_requests 100000;
    client_body_temp_path {home}/1; proxy_temp_path {home}/2; fastcgi_temp_path {home}/3;
    uwsgi_temp_path {home}/4; scgi_temp_path {home}/5;
    server {{ listen 127.0.0.1:{port}; root {home}; }}
}}
"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve `folder` by nginx and yield its address; the settings are Debian's except for the log."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("curl") is None:
        raise SystemExit("nginx and curl are needed: install Debian's packages nginx-light and curl")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_CONFIG.format(home=folder, port=port, user=user))
    server = subprocess.Popen([program, "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"])
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("nginx does not start")


def start_up(url: str) -> float:
    """The seconds that opening the model at `url` takes, interpreter and imports included."""
    times = sorted(wall(lambda: run((PYTHON, "-m", "gguftool", "dump", url, "--no-tensors"))) for _ in range(ROUNDS))
    return times[ROUNDS // 2]


def compare(
    what: str,
    bar: float,
    nbytes: int,
    sides: tuple[Callable[[], object], Callable[[], object]],
    out: Path,
    opening: float,
) -> Verdict:
    """Run gguftool and curl in turn; return the ratio of their throughputs, ours without the time for opening."""

    def timed(action: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            out.unlink(missing_ok=True)
            return wall(action)

        return once

    ours, curl, figures = alternate(timed(sides[0]), timed(sides[1]), ROUNDS)
    speeds = f"{nbytes / (ours - opening) / MIB:,.0f} MiB/s against {nbytes / curl / MIB:,.0f} MiB/s"
    return Verdict(
        what=what,
        value=curl / (ours - opening),
        bar=bar,
        unit="",
        detail=f"{speeds}; {figures}; of ours {opening:.2g} s for start-up and head, which are taken off "
        f"(with them: {curl / ours:.2f})",
        at_least=True,
    )


def large_tensor(folder: Path, address: str, *, sync: bool) -> Verdict:
    """One tensor of 1 GiB: `fetch` of the file against `curl -o`."""
    model, out = folder / "large.gguf", folder / "out"
    if not model.exists():
        big_model(model, n_tensors=1, tensor_bytes=1024 * MIB)
    url = f"{address}/{model.name}"

    def curl() -> None:
        run(("curl", "-sS", "-o", out, url))
        if sync:
            run(("sync", out))

    flags = () if sync else ("--no-sync",)
    fetch = (PYTHON, "-m", "gguftool", "fetch", url, "-o", out, *flags)
    out.unlink(missing_ok=True)
    run(fetch)
    if not filecmp.cmp(model, out, shallow=False):
        raise RuntimeError("what was fetched is another file")
    against = "curl and sync" if sync else "curl"
    sides = (lambda: run(fetch), curl)
    return compare(f"1 GiB tensor, against {against}", 0.8, model.stat().st_size, sides, out, start_up(url))


def many_tensors(folder: Path, address: str) -> Verdict:
    """Every second of 2,296 tensors of 1 MiB, so that none are adjacent, against `curl` of the same ranges."""
    model, out, script = folder / "many.gguf", folder / "out", folder / "ranges"
    big_model(model, n_tensors=2 * N_TENSORS, tensor_bytes=MIB)
    url = f"{address}/{model.name}"
    start = model.stat().st_size - 2 * N_TENSORS * MIB
    script.write_text(
        "next\n".join(
            f'url = "{url}"\nrange = "{first}-{first + MIB - 1}"\n'
            for first in range(start, model.stat().st_size, 2 * MIB)
        )
    )

    def curl() -> None:
        with out.open("wb") as file:
            subprocess.run(["curl", "-sS", "-K", script], stdout=file, check=True)

    options = ("--tensor", r"blk\.\d*[02468]\.", "--no-sync")
    fetch = (PYTHON, "-m", "gguftool", "fetch", url, *options, "-o", out)
    out.unlink(missing_ok=True)
    run(fetch)
    _compare_ends(out, curl, N_TENSORS * MIB)
    name = f"{N_TENSORS:,} tensors of 1 MiB, against curl of the same ranges"
    return compare(name, 0.6, N_TENSORS * MIB, (lambda: run(fetch), curl), out, start_up(url))


def _compare_ends(out: Path, curl: Callable[[], None], nbytes: int) -> None:
    """Raise if the last `nbytes` that we fetched differ from what curl fetches."""
    with out.open("rb") as file:
        file.seek(-nbytes, 2)
        ours = file.read()
    curl()
    if out.read_bytes() != ours:
        raise RuntimeError("curl fetches other bytes")


def main(arguments: Sequence[str]) -> int:
    """Run all; return 1 if a bar is missed."""
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as name:
        folder = Path(name)
        verdicts = []
        with served(folder) as address:
            for measured in (
                lambda: large_tensor(folder, address, sync=False),
                lambda: large_tensor(folder, address, sync=True),
                lambda: many_tensors(folder, address),
            ):
                verdicts.append(measured())
                print(verdicts[-1], flush=True)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
