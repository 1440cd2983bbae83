"""URLs: what of them may be shown, which belong together, and where a redirect may lead."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

from gguftool.errors import SourceError, printable

_PORTS = {"http": 80, "https": 443}
# Parameters of signed URLs (S3, CloudFront, Google, Azure): they differ from one signing to the next.
_SIGNING = re.compile(
    r"x-(amz|goog|xet|id)-.*|signature|sig|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|se|sp|sv|sr|st|spr"
    r"|ske?|skoid|sktid|skt|sks|skv|token|access_token|download",
    re.IGNORECASE,
)
_SECRET = 6  # characters; a shorter value is no secret, and scrubbing it would garble the text


@lru_cache(maxsize=256)
def parts_of(url: str) -> SplitResult:
    """Split an http or https URL; raise `SourceError` where it is none that can be asked for."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
        if valid:
            (parts.hostname or "").encode("idna")
    except (ValueError, UnicodeError):
        valid = False
    if not valid or any(ord(char) <= 32 or ord(char) == 127 for char in url):
        way_out = "; a space is written as %20" if " " in url else ""
        raise SourceError(f"is no valid URL{way_out}", source=shown(url))
    return parts


def shown(url: str) -> str:
    """Return `url` without user, password, query and fragment: fit for messages, journals and identities."""
    scheme, separator, rest = url.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def origin(url: str) -> tuple[str, str, int]:
    """Return (scheme, host, port)."""
    parts = parts_of(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS[parts.scheme]


def host_of(url: str) -> str:
    """Return host and port as a message names them."""
    return printable(parts_of(url).netloc.rpartition("@")[2], 260)


def without_login(url: str) -> tuple[str, str | None]:
    """Return `url` without user and password, and these as ``user:password``, None where there are none."""
    parts = parts_of(url)
    login, at, host = parts.netloc.rpartition("@")
    bare = urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
    return bare, unquote(login) if at else None


def secrets_of(url: str) -> tuple[str, ...]:
    """Return what of `url` must not be shown wherever it turns up: the login's and the query's values."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    values = [login, unquote(login), *re.split(r":", unquote(login))]
    values += [part for pair in parts.query.split("&") for part in (pair.partition("=")[2],)]
    values += [value for _, value in parse_qsl(parts.query)]
    return tuple(sorted({value for value in values if len(value) >= _SECRET}, key=len, reverse=True))


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with every secret in it replaced."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def query_digest(url: str) -> str:
    """Return a short digest of what in the query chooses the file; empty where nothing does."""
    pairs = [(key, value) for key, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
    chosen = sorted(pair for pair in pairs if not _SIGNING.fullmatch(pair[0]))
    return hashlib.sha256(urlencode(chosen).encode()).hexdigest()[:16] if chosen else ""


def follow(url: str, location: str, start: str) -> str:
    """Return where a redirect from `url` leads; raise `SourceError` where it may not lead there."""
    try:
        target = urljoin(url, location.strip())
        scheme = urlsplit(target).scheme
    except ValueError:
        raise SourceError("redirects to what is no URL", source=shown(url)) from None
    if scheme not in _PORTS:
        raise SourceError(f"redirects to {printable(scheme, 20)}://, which is not followed", source=shown(url))
    target, _ = without_login(target)
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise SourceError(f"redirects from https to http at {host_of(target)}; refused", source=shown(url))
    inward = _inward(target) - _inward(start)
    if inward:
        what = f"{' and '.join(sorted(inward))} address ({host_of(target)})"
        raise SourceError(f"redirects to a {what}; refused", source=shown(url))
    return target


def _inward(url: str) -> frozenset[str]:
    """Return in which ways the host is this machine's own: as loopback or unspecified address, or on its link.

    A server that was itself named so may redirect to its like, but not from this machine to its link, where clouds keep
    the machine's credentials.
    """
    _, host, port = origin(url)
    if host == "localhost" or host.endswith(".localhost"):
        return frozenset({"loopback"})
    found = _addresses(host, port)
    kinds = {"loopback" for address in found if address.is_loopback or address.is_unspecified}
    return frozenset(kinds | {"link-local" for address in found if address.is_link_local})


def _addresses(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # unknown here; a proxy may know it, else connecting says so
        return []
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]
