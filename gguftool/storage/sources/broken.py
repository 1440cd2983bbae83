"""What went wrong on a connection, in words of our own: those of an HTTP library may hold whole URLs."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gguftool.errors import SourceError, printable

_HOPELESS = (ConnectionRefusedError, FileNotFoundError, socket.gaierror, ssl.SSLError, ValueError)
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})


class BrokenError(Exception):
    """The connection failed before or in an answer; `str` says how, without a URL."""

    def __init__(self, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.cause = cause

    @property
    def is_hopeless(self) -> bool:
        """Whether nobody was reached, for a reason that seldom passes by itself: asking for long only hides it."""
        return any(
            isinstance(link, _HOPELESS) or (isinstance(link, OSError) and link.errno in _NO_ROUTE)
            for link in _chain(self.cause)
        )


def guarded(call: Callable[[], Any]) -> Any:
    """Call into an HTTP library; whatever it raises becomes a `BrokenError`: its messages may hold whole URLs."""
    try:
        return call()
    except SourceError:
        raise
    except Exception as error:
        raise BrokenError(_words(error), error) from None


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
        return "nothing came for too long"
    for link in chain:
        if isinstance(link, OSError) and isinstance(link.errno, int):
            return os.strerror(link.errno)
    if any(isinstance(link, http.client.IncompleteRead) for link in chain):
        return "the connection closed early"
    if any("Protocol" in type(link).__name__ or isinstance(link, http.client.HTTPException) for link in chain):
        return "the connection closed early, or what came is no HTTP"
    return f"the connection failed ({type(error).__name__})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        link = left.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            left += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
