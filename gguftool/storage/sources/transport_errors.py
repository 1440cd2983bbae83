"""Errors of connections, in words without URLs, and whether trying again helps.

HTTP libraries raise dozens of kinds of errors, and their messages may hold whole URLs with logins and signatures. Every
call into one goes through `translate_errors`.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from gguftool.errors import SourceError, printable

_PERMANENT = (ConnectionRefusedError, FileNotFoundError, socket.gaierror, ssl.SSLError, ValueError)
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})

T = TypeVar("T")


class TransportError(Exception):
    """The connection failed before or during an answer; `str` says how, without a URL."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.cause = cause

    @property
    def is_permanent(self) -> bool:
        """Whether no server was reached, for a reason that seldom goes away by itself: long retries would hide it."""
        return any(
            isinstance(link, _PERMANENT) or (isinstance(link, OSError) and link.errno in _NO_ROUTE)
            for link in _chain(self.cause)
        )


def translate_errors(call: Callable[[], T]) -> T:
    """Call into an HTTP library; raise its errors as a `TransportError`."""
    try:
        return call()
    except (SourceError, TransportError):
        raise
    except Exception as error:
        raise TransportError(_words(error), error) from None


def _words(error: BaseException) -> str:
    chain = list(_chain(error))
    proxy = "the proxy that the environment sets: " if any("Proxy" in type(link).__name__ for link in chain) else ""
    return proxy + _reason(error, chain)


def _reason(error: BaseException, chain: Sequence[BaseException]) -> str:
    for link in chain:
        if isinstance(link, ssl.SSLError):
            reason = getattr(link, "verify_message", "") or link.reason or "handshake failed"
            return f"TLS: {printable(str(reason), 120)}"
        if isinstance(link, socket.gaierror):
            return "the host's name is not known"
    if any("Timeout" in type(link).__name__ for link in chain):
        return "nothing arrived for too long"
    for link in chain:
        if isinstance(link, OSError) and isinstance(link.errno, int):
            return os.strerror(link.errno)
    if any(isinstance(link, http.client.IncompleteRead) for link in chain):
        return "the connection closed early"
    if any("Protocol" in type(link).__name__ or isinstance(link, http.client.HTTPException) for link in chain):
        return "the connection closed early, or the answer is not HTTP"
    return f"the connection failed ({type(error).__name__})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its causes and wrapped errors, and its arguments: libraries hide the cause in any of these."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        link = left.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            left += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
