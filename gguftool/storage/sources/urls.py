"""URLs: which parts may be shown, which URLs belong together, and which redirects are allowed."""

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
# Parameters of signed URLs (S3, CloudFront, Google, Azure): they differ with every signing.
_SIGNING = re.compile(
    r"x-(amz|goog|xet|id)-.*|signature|sig|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|se|sp|sv|sr|st|spr"
    r"|ske?|skoid|sktid|skt|sks|skv|token|access_token|download",
    re.IGNORECASE,
)
_SECRET = 6  # characters; a shorter value is not a secret, and scrubbing it would garble the text


@lru_cache(maxsize=256)
def parts_of(url: str) -> SplitResult:
    """Split an http or https URL; raise `SourceError` if it cannot be requested."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
        if valid:
            (parts.hostname or "").encode("idna")
    except (ValueError, UnicodeError):
        valid = False
    if not valid or any(ord(char) <= 32 or ord(char) == 127 for char in url):
        way_out = "; a space is written as %20" if " " in url else ""
        raise SourceError(f"is not a valid URL{way_out}", source=shown(url))
    return parts


def shown(url: str) -> str:
    """`url` without user, password, query and fragment: fit for messages, journals and identities."""
    scheme, separator, rest = url.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port, for which a login is valid."""
    parts = parts_of(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS[parts.scheme]


def host_of(url: str) -> str:
    """Host and port, for messages."""
    return printable(parts_of(url).netloc.rpartition("@")[2], 260)


def without_login(url: str) -> tuple[str, str | None]:
    """`url` without user and password, and these as ``user:password``, or None if it has no login."""
    parts = parts_of(url)
    login, at, host = parts.netloc.rpartition("@")
    bare = urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
    return bare, unquote(login) if at else None


def secrets_of(url: str) -> tuple[str, ...]:
    """The parts of `url` that must not be shown anywhere: the values in its login and its query."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    values = [login, unquote(login), *re.split(r":", unquote(login))]
    values += [part for pair in parts.query.split("&") for part in (pair.partition("=")[2],)]
    values += [value for _, value in parse_qsl(parts.query)]
    return tuple(sorted({value for value in values if len(value) >= _SECRET}, key=len, reverse=True))


def scrub(text: str, secrets: Iterable[str]) -> str:
    """`text` with every secret replaced."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def query_digest(url: str) -> str:
    """A short digest of the parameters that choose the file, without those that sign; empty if there are none."""
    pairs = [(key, value) for key, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
    chosen = sorted(pair for pair in pairs if not _SIGNING.fullmatch(pair[0]))
    return hashlib.sha256(urlencode(chosen).encode()).hexdigest()[:16] if chosen else ""


def follow(url: str, location: str, start: str) -> str:
    """The target of a redirect from `url`, which began at `start`; raise `SourceError` if it must not be followed."""
    try:
        target = urljoin(url, location.strip())
        scheme = urlsplit(target).scheme
    except ValueError:
        raise SourceError("redirects to something that is not a URL", source=shown(url)) from None
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
    """How the host belongs to this machine: by a loopback or unspecified address, or a link-local one.

    Such a server may redirect to its own kind, but not from loopback to link-local addresses, where clouds keep the
    machine's credentials.
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
    except (OSError, UnicodeError):  # unknown here; a proxy may know it, else connecting fails
        return []
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]
