"""A guard that limits a process to loopback."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any


class LeftLoopback(BaseException):
    """Raised on a connection to another machine; not an `Exception`, so that no code retries or swallows it."""


def refuse_other_hosts() -> None:
    """Limit this process to loopback, by name and by address."""
    connect, connect_ex, resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked(self: socket.socket, address: Any) -> None:
        _refuse(self.family, address)
        connect(self, address)

    def checked_ex(self: socket.socket, address: Any) -> int:
        _refuse(self.family, address)
        return connect_ex(self, address)

    def resolved(host: Any, *args: Any, **options: Any) -> Any:
        if not (host is None or _is_number(host) or host in {"localhost", b"localhost"}):
            _report(f"name {host!r}")
            raise socket.gaierror(socket.EAI_NONAME, f"tests know no host but localhost, not {host!r}")
        return resolve(host, *args, **options)

    socket.socket.connect, socket.socket.connect_ex = checked, checked_ex  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = resolved


def _refuse(family: int, address: Any) -> None:
    if family in {socket.AF_INET, socket.AF_INET6} and not ipaddress.ip_address(address[0].split("%")[0]).is_loopback:
        _report(f"address {address!r}")
        raise LeftLoopback(f"{address} is not loopback")


def _report(what: str) -> None:
    """Leave a file for the test to find: the caller may swallow the error."""
    report = os.environ.get("GGUFTOOL_TEST_LEFT")
    if report:
        Path(report).write_text(what)


def _is_number(host: Any) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host)
    return bool(text) and (set(text) <= set("0123456789.") or ":" in text)
