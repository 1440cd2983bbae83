"""A web server with answers scripted byte by byte; requests are parsed and counted.

It writes to a bare socket, so a test can send anything: half a head, two lengths, TLS on a plain port. It listens on
two ports, which stand for two hosts: another port is another origin.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

Answer = Callable[["Exchange"], None]
Headers = Mapping[str, "str | None"]
T = TypeVar("T")


class HangUp(Exception):
    """End the connection without sending more."""


@dataclass(frozen=True)
class Request:
    """A parsed request; `port` tells the two hosts apart."""

    port: int
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass
class Exchange:
    """A request being answered. `start` and `stop` are the requested range, cut to the file."""

    server: WireServer
    socket: socket.socket
    request: Request
    data: bytes = b""
    count: int = 0  # earlier requests for this path
    is_range: bool = False
    start: int = 0
    stop: int = 0
    closes: bool = False
    memory: dict[str, int] = field(default_factory=dict)

    def serve(self, data: bytes) -> Exchange:
        """Use `data` as the requested file."""
        self.data, self.stop = data, len(data)
        asked = self.request.header("Range") or ""
        unit, _, bounds = asked.partition("=")
        first, _, last = bounds.partition("-")
        if unit == "bytes" and first.isdigit() and "," not in last:
            self.is_range, self.start = True, int(first)
            self.stop = min(len(self.data), int(last) + 1) if last.isdigit() else len(self.data)
        return self

    @property
    def total(self) -> int:
        return len(self.data)

    @property
    def body(self) -> bytes:
        return self.data[self.start : self.stop]

    def send(self, *parts: bytes) -> None:
        """Send, and count the bytes that the kernel took."""
        for part in parts:
            view = memoryview(part)
            while view:
                sent = self.socket.send(view[: 1 << 16])
                self.server.count_sent(self.request.path, sent)
                view = view[sent:]

    def headers(self) -> dict[str, str | None]:
        """The headers of a correct answer."""
        whole: dict[str, str | None] = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": '"v1"',
            "Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT",
            "Content-Length": str(max(0, self.stop - self.start)),
        }
        if self.is_range:
            whole["Content-Range"] = f"bytes {self.start}-{self.stop - 1}/{self.total}"
        return whole

    def reply(
        self,
        status: int | str | None = None,
        body: bytes | None = None,
        headers: Headers | None = None,
        more: Iterable[tuple[str, str]] = (),
        closes: bool = False,
    ) -> None:
        """Send a head and a body; the defaults are those of an honest server."""
        status = status or (206 if self.is_range else 200)
        all_headers = self.headers()
        if body is not None:
            all_headers["Content-Length"] = str(len(body))
        all_headers |= dict(headers or {})
        self.closes = self.closes or closes
        self.send(head_of(status, [(key, value) for key, value in all_headers.items() if value is not None], more))
        if self.request.method != "HEAD":
            self.send(self.body if body is None else body)

    def wait(self, seconds: float = 60) -> None:
        """Send nothing until the client gives up, the server stops, or the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.server.stopping.is_set():
            readable, _, _ = select.select([self.socket], [], [], 0.05)
            if readable and not _peek(self.socket):
                raise HangUp
            if readable:
                time.sleep(0.05)

    def reset(self) -> None:
        """End with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise HangUp

    def until_closed(self, piece: bytes, pause: float = 0.0) -> None:
        """Send `piece` repeatedly until the client hangs up."""
        while not self.server.stopping.is_set():
            self.send(piece)
            if pause:
                self.wait(pause)


def _peek(connection: socket.socket) -> bytes:
    return connection.recv(1, socket.MSG_PEEK) if not isinstance(connection, ssl.SSLSocket) else b"?"


def head_of(status: int | str, headers: Iterable[tuple[str, str]], more: Iterable[tuple[str, str]] = ()) -> bytes:
    line = status if isinstance(status, str) else f"HTTP/1.1 {status} {_REASONS.get(status, 'So')}"
    lines = [line, *(f"{key}: {value}" for key, value in (*headers, *more))]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


_REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 404: "Not Found", 416: "Range Not Satisfiable"}


class WireServer:
    """A server on two ports of loopback. Its counters start with the server, or at `forget()`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()  # path -> bytes
        self.errors: list[BaseException] = []
        self.stopping = threading.Event()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(2)]
        for listener in self._listeners:
            listener.settimeout(0.05)
            self._start(self._accept, listener)

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    @property
    def other_port(self) -> int:
        return int(self._listeners[1].getsockname()[1])

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def other(self) -> str:
        return f"http://127.0.0.1:{self.other_port}"

    def answer(self, exchange: Exchange) -> None:
        """Answer one request; subclasses define the server here."""
        raise NotImplementedError

    def forget(self) -> None:
        """Count from here."""
        with self._lock:
            self.requests, self.sent = [], Counter()

    def authorizations(self) -> dict[int, set[str]]:
        """Port -> the values of `Authorization` and `Cookie` that it received."""
        told: dict[int, set[str]] = {self.port: set(), self.other_port: set()}
        for request in list(self.requests):
            told[request.port].update(filter(None, (request.header("Authorization"), request.header("Cookie"))))
        return told

    def count_sent(self, path: str, length: int) -> None:
        with self._lock:
            self.sent[path] += length

    def close(self) -> None:
        self.stopping.set()
        for thread in list(self._threads):
            thread.join(10)
        for listener in self._listeners:
            listener.close()

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(60)
            self._start(self._serve, connection, int(listener.getsockname()[1]))

    def _serve(self, connection: socket.socket, port: int) -> None:
        memory: dict[str, int] = {}
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not self.stopping.is_set():
                    request = read_request(connection, port, self.stopping)
                    if request is None or self._answer(connection, request, memory):
                        return
        except (ConnectionError, TimeoutError, HangUp, ssl.SSLError):
            pass
        except BaseException as problem:
            self.errors.append(problem)

    def _answer(self, connection: socket.socket, request: Request, memory: dict[str, int]) -> bool:
        """Answer; return whether the connection ends."""
        with self._lock:
            self.requests.append(request)
            count = self._counts[request.path]
            self._counts[request.path] += 1
        exchange = Exchange(self, connection, request, count=count, memory=memory)
        self.answer(exchange)
        if exchange.closes:
            _finish(connection, self.stopping)
        return exchange.closes


def _finish(connection: socket.socket, stopping: threading.Event) -> None:
    """Shut down sending, and let the client read the rest: closing with unread bytes would reset."""
    connection.shutdown(socket.SHUT_WR)
    end = time.monotonic() + 2
    while time.monotonic() < end and not stopping.is_set():
        if select.select([connection], [], [], 0.05)[0] and not connection.recv(65536):
            return


def read_request(connection: socket.socket, port: int, stopping: threading.Event) -> Request | None:
    """Read one request, or None if the client is gone or the server stops."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = _receive(connection, stopping)
        if not piece or len(received) > 1 << 20:
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    method, target, *_ = [*line.split(" "), "", ""]
    path, _, query = target.partition("?")
    headers = tuple((key.strip(), value.strip()) for key, _, value in (item.partition(":") for item in lines))
    request = Request(port, method, path, query, headers)
    while len(body) < int(request.header("Content-Length") or 0):
        body += _receive(connection, stopping) or bytes(1 << 20)
    return replace(request, body=body)


def _receive(connection: socket.socket, stopping: threading.Event) -> bytes:
    """The next bytes, or none if the client is gone or the server stops."""
    while not stopping.is_set():
        pending = isinstance(connection, ssl.SSLSocket) and connection.pending()
        if pending or select.select([connection], [], [], 0.05)[0]:
            return connection.recv(65536)
    return b""
