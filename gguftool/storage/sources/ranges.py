"""Check an answer to a ranged GET before a byte of it is used.

A correct answer has status 206 and a Content-Range that starts where the request starts and ends no later, in a file of
the known size. The validators (ETag, Last-Modified) must be those pinned at opening. Everything else is an error, so
that no wrong byte is ever used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gguftool.errors import SourceError, printable
from gguftool.record import record, replace
from gguftool.storage.sources.source import AbsentError, ChangedError
from gguftool.storage.sources.transport import Answer
from gguftool.storage.sources.transport_errors import TransportError

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", re.IGNORECASE)
_NO_BYTES_OF = re.compile(r"bytes \*/([0-9]{1,18})", re.IGNORECASE)
_SHOWN = 64  # bytes of an unwelcome body
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
EXPIRED = frozenset({401, 403, 404, 410})  # answers of a signed URL that has expired

_ADVICE = {
    "GatedRepo": "the model is gated: accept its terms on its page, then: hf auth login",
    "RepoNotFound": "the name is wrong, or the repository is private and needs a token: hf auth login",
    "RevisionNotFound": "the repository has no such revision; slashes in one are written as %2F",
    "EntryNotFound": "the repository has no such file at this revision",
    401: "a token is needed, or the one sent was refused: hf auth login, or HF_TOKEN",
    403: "access is denied: the link has expired, or the model is gated and needs a token",
    404: "no such file",
    407: "the proxy asks for a login",
    410: "the file is gone",
    416: "the server says that the file has no such bytes",
    429: "the server asks for fewer requests",
    451: "the file is withheld for legal reasons",
}


_INSTEAD = (
    (b"version https://git-lfs", "a git-LFS pointer: git lfs pull, or fetch it by its /resolve/ link"),
    (b"<!doctype html", "a web page (HTML): use the /resolve/ link, and a token where the model is gated"),
    (b"<html", "a web page (HTML): use the /resolve/ link, and a token where the model is gated"),
    (b"<?xml", "an XML message"),
    (b'{"', "a JSON message, or safetensors"),
)


@record
class ByteRange:
    """The part of a file that an answer carries: bytes `start` to `stop` (exclusive) of `total`."""

    start: int
    stop: int
    total: int


@record
class Validators:
    """Headers that change when a file changes."""

    etag: str = ""
    modified: str = ""

    @property
    def is_strong(self) -> bool:
        """Whether equal ETags mean equal bytes."""
        return self.etag.startswith('"')

    @property
    def text(self) -> str:
        """One string that differs if the file may differ; empty if the server sends no validator."""
        return self.etag or self.modified

    def contradicts(self, other: Validators) -> str | None:
        """The difference, or None if there is none; an ETag takes precedence over a date."""
        if self.etag and other.etag:
            mine, theirs = (tag.removeprefix("W/") for tag in (self.etag, other.etag))
            return None if mine == theirs else f"its ETag was {_quoted(self.etag)} and is now {_quoted(other.etag)}"
        if self.modified != other.modified:
            return f"its date was {_quoted(self.modified)} and is now {_quoted(other.modified)}"
        if self.etag and not other.etag and not self.modified:
            return "its ETag is gone"
        return None


def validators_of(headers: Mapping[str, str]) -> Validators:
    """The validators in `headers`."""
    etag = headers.get("ETag", "").strip()
    if not re.fullmatch(r'(W/)?"[!-~\x80-\xff]*"', etag):
        etag = ""
    return Validators(etag=etag[:256], modified=headers.get("Last-Modified", "").strip()[:64])


def checked_range(answer: Answer, start: int, stop: int, total: int | None) -> ByteRange:
    """The bytes that `answer` carries of the requested `start` to `stop`, in a file of `total` bytes if that is known.

    Raises `SourceError` (without a source) if the answer is not what was requested, `ChangedError` if the size
    differs. Only for statuses 200 and 206.
    """
    headers = answer.headers
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise SourceError(f"the server sends data with an unrequested Content-Encoding {_quoted(encoding)}")
    length = _length(headers)
    if answer.status == 200:
        return _whole(start, stop, total, length)
    kind = headers.get("Content-Type", "")
    if kind.lower().lstrip().startswith("multipart/"):
        raise SourceError("the server answers one range with a multipart body")
    text = headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise SourceError(f"the server answers 206 with the Content-Range {_quoted(text)}")
    part = ByteRange(start=int(match[1]), stop=int(match[2]) + 1, total=int(match[3]))
    _check(part, text, start, stop, total)
    if length is None or length == part.stop - part.start:
        return part
    if length > part.stop - part.start:
        raise SourceError(f"the server announces {length:,} bytes, more than the Content-Range {_quoted(text)}")
    return replace(part, stop=start + length)  # fewer than announced: the rest is requested again


def _check(part: ByteRange, text: str, start: int, stop: int, total: int | None) -> None:
    """Raise if a 206 does not carry what was requested."""
    if part.start != start or not start < part.stop <= min(stop, part.total):
        raise SourceError(f"bytes {start}-{stop - 1} were requested, but the Content-Range is {_quoted(text)}")
    if total is not None and part.total != total:
        raise ChangedError(
            f"changed since it was opened: its size was {total:,} and is now {part.total:,}; start again"
        )


def _whole(start: int, stop: int, total: int | None, length: int | None) -> ByteRange:
    """Accept a 200 only if the requested range is the whole file anyway."""
    if length is not None and total is not None and length != total:
        raise ChangedError(f"changed since it was opened: its size was {total:,} and is now {length:,}; start again")
    if length is None or start or length > stop:
        size = "" if length is None else f" of {length:,} bytes"
        raise SourceError(f"the server has no ranges: it answers with the whole file{size}; download it first")
    return ByteRange(start=0, stop=length, total=length)


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "").strip()
    if not text or "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None
    if not re.fullmatch(r"[0-9]{1,30}", text):
        raise SourceError(f"the server announces a Content-Length of {_quoted(text)}")
    return int(text)


def size_in_refusal(answer: Answer) -> int | None:
    """The file's size as an answer of status 416 states it, or None."""
    match = _NO_BYTES_OF.fullmatch(answer.headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None


def refusal(answer: Answer, host: str) -> SourceError:
    """Describe an error answer in one line: status, type, host, first bytes, and what to do. Closes the answer."""
    code = answer.headers.get("X-Error-Code", "")
    advice = _ADVICE.get(code) or _ADVICE.get(answer.status)
    first = readable(first_bytes(answer))
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    text = f"HTTP status {answer.status}{f', {printable(kind, 60)}' if kind else ''}, from {host}"
    text += f", beginning '{first}'" if first else ""
    text += f": {advice}" if advice else ""
    absent = answer.status in (404, 410) and code in ("", "EntryNotFound")
    return (AbsentError if absent else SourceError)(text)


def first_bytes(answer: Answer) -> bytes:
    """Read the first bytes of a body, and close the connection."""
    first = b""
    try:
        for piece in answer.pieces():
            first += piece
            if len(first) >= _SHOWN:
                break
    except TransportError:
        pass
    answer.close()
    return first[:_SHOWN].strip()


def readable(first: bytes) -> str:
    """The beginning of a text, fit for a terminal; empty if it is not text."""
    if any(byte < 32 and byte not in b"\t\r\n\x1b\a" for byte in first):
        return ""
    text = first.decode("utf-8", "ignore").strip()
    return printable(" ".join(text.split()))


def known_kind(first: bytes) -> str:
    """The kind of a body that servers send instead of a model, by its first bytes; empty if it is unknown."""
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    return next((kind for start, kind in _INSTEAD if text.startswith(start)), "")


def _quoted(text: str) -> str:
    return f"'{printable(text, 80)}'"


@record
class Linked:
    """The headers of a redirect of the Hub that describe its target."""

    etag: str = ""
    size: str = ""
    commit: str = ""
    xet: str = ""


def linked_by(headers: Mapping[str, str], before: Linked) -> Linked:
    """Read what `headers` of a redirect add to `before`; the first value of each counts."""
    return Linked(
        etag=before.etag or headers.get("X-Linked-ETag", "").strip()[:256],
        size=before.size or headers.get("X-Linked-Size", "").strip(),
        commit=before.commit or headers.get("X-Repo-Commit", "").strip()[:64],
        xet=before.xet or headers.get("X-Xet-Hash", "").strip()[:64],
    )
