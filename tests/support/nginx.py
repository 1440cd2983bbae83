"""A real web server for the tests: Debian's nginx serves a folder on loopback and logs requests.

Every request is in its access log with its `Range`, status and bytes, so that tests count what an operation costs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_CONFIG = """
daemon off;
master_process off;
{user}
pid {home}/pid;
error_log {home}/error.log notice;
events {{ worker_connections 256; }}
http {{
    log_format counted escape=json '{{"method":"$request_method","path":"$uri","query":"$args","status":$status,'
        '"range":"$http_range","sent":$bytes_sent,"body":$body_bytes_sent,"accept_encoding":"$http_accept_encoding",'
        '"authorization":"$http_authorization","if_range":"$http_if_range","connection":$connection}}';
    access_log {home}/access.log counted;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    default_type application/octet-stream;
    sendfile on;
    gzip on;
    gzip_min_length 1;
    gzip_types *;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        # The same files at a rate that a test can interrupt.
        location /slow/ {{ alias {folder}/; limit_rate {slow}; }}
        location /no-etag/ {{ alias {folder}/; etag off; }}
        location /no-ranges/ {{ alias {folder}/; max_ranges 0; }}
    }}
}}
"""


@dataclass(frozen=True)
class Logged:
    """One request from the access log; `sent` counts the response's head and body, `body` only the body."""

    method: str
    path: str
    query: str
    status: int
    range: str
    sent: int
    body: int
    accept_encoding: str
    authorization: str
    if_range: str
    connection: int


class Nginx:
    """A running nginx: `url(name)` of a file, `log()` of the requests since `forget()`."""

    def __init__(self, folder: Path, home: Path, slow: str = "2m", port: int | None = None) -> None:
        self.folder, self.home, self.port = folder, home, port or free_port()
        self._skipped = self._markers = 0
        config = _CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "", home=home, port=self.port, folder=folder, slow=slow
        )
        (home / "nginx.conf").write_text(config)
        command = [_program(), "-e", str(home / "error.log"), "-p", str(home), "-c", str(home / "nginx.conf")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._wait()

    def url(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def log(self) -> list[Logged]:
        """The requests so far. A marker request goes first: all earlier requests are logged before it."""
        self._markers += 1
        marker = f"/.marker-{self._markers}"
        with pytest.raises(urllib.error.HTTPError):
            _open(self.url(marker[1:]))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            lines = [Logged(**json.loads(line)) for line in (self.home / "access.log").read_text().splitlines()]
            if any(line.path == marker for line in lines):
                return [line for line in lines if not line.path.startswith("/.marker")][self._skipped :]
            time.sleep(0.01)
        raise TimeoutError("nginx does not log")

    def forget(self) -> None:
        """Count from here."""
        self._skipped += len(self.log())

    @property
    def sent(self) -> int:
        """The body bytes of data answers since `forget()`."""
        return sum(line.body for line in self.log() if line.status in {200, 206})

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self._process.kill()
        self._process.wait()
        raise RuntimeError(f"nginx does not start: {(self.home / 'error.log').read_text()}")


def _open(url: str) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return bytes(answer.read())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.skip("no nginx: apt-get install nginx-light, or put nginx on the PATH")
    return found


@pytest.fixture
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Nginx]]:
    """`nginx(folder)` starts a server for the folder; all stop with the test."""
    running: list[Nginx] = []

    def start(folder: Path, **options: Any) -> Nginx:
        running.append(Nginx(folder, tmp_path_factory.mktemp("nginx"), **options))
        return running[-1]

    yield start
    for server in running:
        server.close()
