"""One GET, in one of two ways, with the same kind of answer.

Requests to the Hub's own host go through huggingface_hub's session, so that the user's settings for it apply. Requests
to every other host (a CDN that the Hub redirects to, any web server) go through a pool of urllib3: the session's HTTP
library parses each 64 KiB in Python and reaches 0.8 of curl's speed on loopback, the pool 1.5 (docs/decisions.md).
Neither follows redirects, retries, or decodes: `http` does that, strictly. The head of an answer has a timeout; the
reader of its body times the rest.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlsplit

from gguftool.errors import SourceError
from gguftool.storage.sources.timeouts import call_with_timeout
from gguftool.storage.sources.transport_errors import TransportError, translate_errors

PIECE = 256 << 10  # bytes of one read from a socket
_CONNECTIONS = 64  # kept open; as many as threads may copy
_DISCARDED = 16 << 10  # bytes of a body that is read only to keep the connection
_PROXY_NAMES = tuple(
    name for kind in ("http", "https", "all", "no") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())
)
_SLOWEST = 1 << 10  # bytes/s below which a chunked body is cut off: its framing hides a trickle from the reader

_INTERIM = (102, 103)  # statuses; http.client takes such a first answer for the final one
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

INSTALL = "install it with: pip install huggingface_hub"


class Answer(Protocol):
    """Status and headers of an answer, and its undecoded body as it arrives."""

    status: int
    headers: Mapping[str, str]

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives; raise `TransportError` if the connection fails."""

    def close(self) -> None:
        """Close the connection, even if data is left on it."""

    def release(self) -> None:
        """Give the connection back: the body was read to its announced end."""


Getter = Callable[[str, dict[str, str], float], Answer]  # (URL, headers, seconds without a byte) -> answer


def ask(getter: Getter, url: str, headers: dict[str, str], idle_timeout: float) -> Answer:
    """GET `url`; raise `TransportError` if no complete head arrives within `idle_timeout` seconds."""
    return call_with_timeout(lambda: getter(url, headers, idle_timeout), idle_timeout, lambda answer: answer.close())


def discard(answer: Answer) -> None:
    """Drop an answer without using its body; read a short body, so that the connection can be kept."""
    length = answer.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit() and int(length) <= _DISCARDED):
        answer.close()
        return
    try:
        for _ in answer.pieces():
            pass
        answer.release()
    except TransportError:
        answer.close()


# --- the pool of urllib3 ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _PoolAnswer:
    status: int
    headers: Mapping[str, str]
    response: Any

    def pieces(self) -> Iterator[bytes]:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        timer = _cut_off(self.response, self.headers) if chunked else None
        try:
            while piece := translate_errors(lambda: self.response.read1(PIECE, decode_content=False)):
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
            translate_errors(self.response.read)  # nothing is left; http.client learns that the answer is over
        except TransportError:
            return self.close()
        self.response.release_conn()
        return None


def _cut_off(response: Any, headers: Mapping[str, str]) -> threading.Timer:
    """Start a timer that closes a chunked body's connection when its range is long overdue."""
    found = headers.get("Content-Range", "").partition("/")[0].rpartition("-")
    length = int(found[2]) if found[2].isdigit() and len(found[2]) < 19 else _DISCARDED
    timer = threading.Timer(30 + length / _SLOWEST, response.shutdown)
    timer.daemon = True
    timer.start()
    return timer


def get_by_pool(url: str, headers: dict[str, str], idle_timeout: float) -> Answer:
    """GET through the pool of urllib3, with the environment's proxies."""
    urllib3 = _urllib3()
    parts = urlsplit(url)
    manager = _manager(_proxy(parts.scheme, parts.netloc, tuple(map(os.environ.get, _PROXY_NAMES))))
    response = translate_errors(
        lambda: manager.request(
            "GET",
            url,
            headers=headers,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=idle_timeout, read=idle_timeout),
        )
    )
    if response.status in _INTERIM:
        response.close()
        return get_by_session(url, headers, idle_timeout)
    return _PoolAnswer(status=response.status, headers=response.headers, response=response)


class _StrictResponse(http.client.HTTPResponse):
    """An answer of http.client that refuses a malformed head: otherwise the text after a bad line becomes the body."""

    def begin(self) -> None:
        super().begin()
        malformed = self.msg.defects or any(_CONTROL.search(value) for value in self.msg.values())
        if malformed and self.status not in _INTERIM:
            raise TransportError("the answer's head is not valid HTTP")


@lru_cache(maxsize=8)
def _manager(proxy: str | None) -> Any:
    """The pools for a proxy, or for no proxy; their connections check heads."""
    urllib3 = _urllib3()
    options: dict[str, Any] = {"maxsize": _CONNECTIONS, "ssl_context": _tls()}
    try:
        manager = urllib3.PoolManager(**options) if proxy is None else _proxy_manager(urllib3, proxy, options)
    except ValueError:  # without its words: they hold the proxy's password
        raise SourceError("the proxy that the environment sets is not a URL; expected http://host:port") from None
    pools = {"http": urllib3.HTTPConnectionPool, "https": urllib3.HTTPSConnectionPool}
    manager.pool_classes_by_scheme = {scheme: _strict_pool(pool) for scheme, pool in pools.items()}
    return manager


def _strict_pool(pool: Any) -> Any:
    """A class of pools like `pool`, with connections that answer with `_StrictResponse`."""
    connection = type("StrictConnection", (pool.ConnectionCls,), {"response_class": _StrictResponse})
    return type("StrictPool", (pool,), {"ConnectionCls": connection})


def _proxy_manager(urllib3: Any, proxy: str, options: dict[str, Any]) -> Any:
    login = urllib3.util.parse_url(proxy).auth
    if login:
        options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
    if proxy.startswith("socks"):
        raise SourceError("socks proxies are not supported for data; use an http proxy")
    return urllib3.ProxyManager(proxy, **options)


def _urllib3() -> Any:
    try:
        import urllib3
    except ImportError:
        raise SourceError(f"files on servers need the extra 'hub'; {INSTALL}") from None
    return urllib3


@lru_cache(maxsize=64)
def _proxy(scheme: str, netloc: str, _settings: tuple[str | None, ...]) -> str | None:
    """The proxy that the environment sets for a host, or None; cached, as this takes as long as a small request."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    if not found or proxy_bypass(netloc.rpartition("@")[2]):
        return None
    return found if "://" in found else f"http://{found}"


def _tls() -> ssl.SSLContext:
    """Trust the system's certificates and those of certifi, or the file that the environment names."""
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
        while (piece := translate_errors(lambda: next(self.body, None))) is not None:
            yield piece

    def close(self) -> None:
        self.response.close()

    def release(self) -> None:
        with contextlib.suppress(TransportError):
            translate_errors(
                lambda: next(self.body, None)
            )  # nothing is left; tells the session that the answer is over
        self.response.close()


def get_by_session(url: str, headers: dict[str, str], idle_timeout: float) -> Answer:
    """GET through the session that huggingface_hub shares."""
    from huggingface_hub import get_session

    def send() -> Any:
        session = get_session()
        request = session.build_request("GET", url, headers=headers, timeout=idle_timeout)
        return session.send(request, stream=True, follow_redirects=False)

    response = translate_errors(send)
    return _SessionAnswer(
        status=response.status_code, headers=response.headers, response=response, body=response.iter_raw()
    )
