"""One GET over the wire, by one of two ways, with the same answer.

The Hub's own host is asked through huggingface_hub's session, so that whatever a user has set up for it holds. Every
other host (a CDN that the Hub redirects to, any web server) is asked through a pool of urllib3: the session's HTTP
library parses each 64 KiB in Python and reaches 0.8 of curl on loopback, the pool 1.5 (docs/decisions.md). Neither
follows redirects, retries, or decodes: that is done, strictly, above.

The head of an answer has a deadline (see `deadline`).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import queue
import re
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from gguftool.errors import SourceError, printable

PIECE = 256 << 10  # bytes of one read from a socket
_CONNECTIONS = 64  # kept open; as many as threads may copy
_DISCARDED = 16 << 10  # bytes of a body that is read only to keep the connection
_PROXY_NAMES = tuple(
    name for kind in ("http", "https", "all", "no") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())
)
_SLOWEST = 1 << 10  # bytes/s below which a chunked body is cut off; its framing hides a trickle from the reader

_INTERIM = (102, 103)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

INSTALL = "install it with: pip install 'gguftool[hub]'"


class Answer(Protocol):
    """Status and headers of an answer, its body as it comes, undecoded."""

    status: int
    headers: Mapping[str, str]

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes; raise `BrokenError` where the connection fails."""

    def close(self) -> None:
        """Close the connection, whatever is left on it."""

    def release(self) -> None:
        """Give the connection back: the body was read to its announced end."""


Getter = Callable[[str, dict[str, str], float], Answer]  # (URL, headers, seconds of silence) -> answer


def ask(getter: Getter, url: str, headers: dict[str, str], silence: float) -> Answer:
    """GET `url`; raise `BrokenError` where no complete head came within `silence` seconds."""
    return in_time(lambda: getter(url, headers, silence), silence, lambda answer: answer.close())


def discard(answer: Answer) -> None:
    """Be done with an answer whose body does not matter; a short one is read so that the connection can be kept."""
    length = answer.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit() and int(length) <= _DISCARDED):
        answer.close()
        return
    try:
        for _ in answer.pieces():
            pass
        answer.release()
    except BrokenError:
        answer.close()


# --- urllib3 ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _PoolAnswer:
    status: int
    headers: Mapping[str, str]
    response: Any

    def pieces(self) -> Iterator[bytes]:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        timer = _cut_off(self.response, self.headers) if chunked else None
        try:
            while piece := guarded(lambda: self.response.read1(PIECE, decode_content=False)):
                yield piece
        finally:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        self.response.close()
        self.response.release_conn()

    def release(self) -> None:
        if "Content-Length" not in self.headers or "Transfer-Encoding" in self.headers:
            return self.close()
        try:
            guarded(self.response.read)  # nothing is left; tells http.client that the answer is over
        except BrokenError:
            return self.close()
        self.response.release_conn()
        return None


def _cut_off(response: Any, headers: Mapping[str, str]) -> threading.Timer:
    """Start a timer that shuts a chunked body's connection when its asked range should long have come."""
    found = headers.get("Content-Range", "").partition("/")[0].rpartition("-")
    length = int(found[2]) if found[2].isdigit() and len(found[2]) < 19 else _DISCARDED
    timer = threading.Timer(30 + length / _SLOWEST, response.shutdown)
    timer.daemon = True
    timer.start()
    return timer


def get_by_pool(url: str, headers: dict[str, str], silence: float) -> Answer:
    """GET through the pool of urllib3, by the proxies of the environment."""
    urllib3 = _urllib3()
    parts = urlsplit(url)
    manager = _manager(_proxy(parts.scheme, parts.netloc, tuple(map(os.environ.get, _PROXY_NAMES))))
    response = guarded(
        lambda: manager.request(
            "GET",
            url,
            headers=headers,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=silence, read=silence),
        )
    )
    if response.status in _INTERIM:  # http.client takes an interim answer for the answer
        response.close()
        return get_by_session(url, headers, silence)
    _refuse_defects(response)
    return _PoolAnswer(status=response.status, headers=response.headers, response=response)


def _refuse_defects(response: Any) -> None:
    """Raise where a head was not read to its end: http.client takes what follows a bad line for the body."""
    message = getattr(getattr(response, "_original_response", None), "msg", None)
    values = response.headers.values()
    if getattr(message, "defects", None) or any(_CONTROL.search(value) for value in values):
        response.close()
        raise BrokenError("the answer's head is no valid HTTP")


@lru_cache(maxsize=8)
def _manager(proxy: str | None) -> Any:
    urllib3 = _urllib3()
    options: dict[str, Any] = {"maxsize": _CONNECTIONS, "ssl_context": _tls()}
    if proxy is None:
        return urllib3.PoolManager(**options)
    try:
        return _proxy_manager(urllib3, proxy, options)
    except ValueError:  # without its words: they hold the proxy's password
        raise SourceError("the proxy that the environment sets is no URL; expected http://host:port") from None


def _proxy_manager(urllib3: Any, proxy: str, options: dict[str, Any]) -> Any:
    login = urllib3.util.parse_url(proxy).auth
    if login:
        options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
    if proxy.startswith("socks"):
        raise SourceError("proxies of kind socks are not supported for data; use an http proxy")
    return urllib3.ProxyManager(proxy, **options)


def _urllib3() -> Any:
    try:
        import urllib3
    except ImportError:
        raise SourceError(f"files on servers need the extra 'hub'; {INSTALL}") from None
    return urllib3


@lru_cache(maxsize=64)
def _proxy(scheme: str, netloc: str, _settings: tuple[str | None, ...]) -> str | None:
    """Return the proxy that the environment sets for a host; finding out takes as long as a small request."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    if not found or proxy_bypass(netloc.rpartition("@")[2]):
        return None
    return found if "://" in found else f"http://{found}"


def _tls() -> ssl.SSLContext:
    """Trust what the system trusts, the certificates that Python packages share, or what the environment names."""
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    try:
        context = ssl.create_default_context(cafile=named if named and os.path.isfile(named) else None)
    except OSError:  # ssl.SSLError is one
        raise SourceError("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names a file that holds no certificates") from None
    if not named and not os.environ.get("SSL_CERT_FILE"):
        try:
            import certifi
        except ImportError:
            return context
        context.load_verify_locations(cafile=certifi.where())
    return context


# --- the Hub's session -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _SessionAnswer:
    status: int
    headers: Mapping[str, str]
    response: Any
    body: Iterator[bytes]

    def pieces(self) -> Iterator[bytes]:
        while (piece := guarded(lambda: next(self.body, None))) is not None:
            yield piece

    def close(self) -> None:
        self.response.close()

    def release(self) -> None:
        with contextlib.suppress(BrokenError):
            guarded(lambda: next(self.body, None))  # nothing is left; tells the session that the answer is over
        self.response.close()


def get_by_session(url: str, headers: dict[str, str], silence: float) -> Answer:
    """GET through the session that huggingface_hub shares."""
    from huggingface_hub import get_session

    def send() -> Any:
        session = get_session()
        request = session.build_request("GET", url, headers=headers, timeout=silence)
        return session.send(request, stream=True, follow_redirects=False)

    response = guarded(send)
    return _SessionAnswer(
        status=response.status_code, headers=response.headers, response=response, body=response.iter_raw()
    )


# --- broken --------------------------------------------------------------------------------------------------------


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


# --- deadline ------------------------------------------------------------------------------------------------------


T = TypeVar("T")


def in_time(call: Callable[[], T], seconds: float, late: Callable[[T], None] = lambda result: None) -> T:
    """Return what `call` returns; raise `BrokenError` after `seconds` and give `late` what it returns then.

    `call` goes on in a thread that nobody waits for, also when the program ends.
    """
    task = _Task(call, late)
    _Helper.give(task)
    try:
        done, result = task.outcome.get(timeout=seconds)
    except BaseException as error:  # nothing came in time, or the user interrupts
        task.leave()
        if isinstance(error, queue.Empty):
            raise BrokenError(f"no answer within {seconds:.3g} s") from None
        raise
    if not done:
        raise result
    return cast("T", result)


class _Task:
    """A call that another thread makes, and that whoever asked for it may leave."""

    def __init__(self, call: Callable[[], Any], late: Callable[[Any], None]) -> None:
        self.outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._call = call
        self._late = late
        self._lock = threading.Lock()
        self._left = False

    def run(self) -> None:
        result: tuple[bool, Any]
        try:
            result = True, self._call()
        except BaseException as error:
            result = False, error
        with self._lock:
            if not self._left:
                self.outcome.put(result)
                return
        if result[0]:
            self._late(result[1])

    def leave(self) -> None:
        """Wait no longer: what comes, or has just come, is for `late`."""
        with self._lock:
            self._left = True
        if not self.outcome.empty() and (found := self.outcome.get())[0]:
            self._late(found[1])


class _Helper:
    """A thread that makes one call after the other: starting one for each of a thousand small requests costs more."""

    _idle: ClassVar[deque[_Helper]] = deque()

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="asking", daemon=True).start()

    @classmethod
    def give(cls, task: _Task) -> None:
        """Let an idle helper, or a new one, run `task`."""
        try:
            helper = cls._idle.pop()
        except IndexError:
            try:
                helper = cls()
            except RuntimeError:  # no more threads to be had
                task.run()
                return
        helper._tasks.put(task)

    def _work(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # of closing what came too late
                self._tasks.get().run()
            self._idle.append(self)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Helper._idle.clear)  # threads stay in the parent
