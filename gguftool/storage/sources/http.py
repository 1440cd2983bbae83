"""A file behind HTTP, read by one GET for each range.

Opening is the first ranged GET. Its answer gives the size, the validators and, through the Hub, the commit and the
file's own hash; its body is the head, which the caller reads next. So nothing is requested twice and no HEAD is sent.
The target of redirects is reused for the next ranges, and resolved again once if it is refused, because signed URLs
expire.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping

from gguftool.errors import SourceError, printable
from gguftool.record import record, replace
from gguftool.storage.sources import head_cache, transport, urls
from gguftool.storage.sources.ranges import (
    EXPIRED,
    RETRIED,
    ByteRange,
    Linked,
    Validators,
    checked_range,
    first_bytes,
    known_kind,
    linked_by,
    readable,
    refusal,
    size_in_refusal,
    validators_of,
)
from gguftool.storage.sources.retry import FEW_ATTEMPTS, RetryBudget
from gguftool.storage.sources.source import ChangedError, RemoteSource
from gguftool.storage.sources.transport_errors import TransportError

CONNECTIONS = 8
_RETAINED = 4 << 10  # bytes of the head that stay in memory, for a second look at the beginning
_HOPS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGENT = "gguftool"


@record
class Origin:
    """The first request for a file: `url` without login, the `headers` only for that host, and how to GET there.

    `fixed` rewrites `url` once the commit is known, so that later answers are of the same commit. `secrets` are
    scrubbed from messages.
    """

    name: str
    url: str
    headers: Mapping[str, str]
    secrets: tuple[str, ...] = ()
    getter: transport.Getter = transport.get_by_pool
    fixed: Callable[[str], str] | None = None


@record
class _Reply:
    answer: transport.Answer
    url: str
    linked: Linked | None  # None if the redirects' known target was asked, not the first URL


def web_origin(url: str, name: str | None = None) -> Origin:
    """The origin of a plain http or https URL; a login in it becomes a header for its host."""
    bare, login = urls.without_login(url)
    headers = {"User-Agent": _AGENT}
    if login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode("ascii")
    return Origin(name=name or urls.shown(url), url=bare, headers=headers, secrets=urls.secrets_of(url))


class HttpSource(RemoteSource):
    """A file behind HTTP, pinned to the version that it had at opening. Use `open_http`."""

    def __init__(self, origin: Origin, first_read: int) -> None:
        self._name = origin.name
        self._size = 0
        self._first_read = first_read
        self.commit: str = ""
        self._answer = ""
        self._origin = origin
        self._lock = threading.Lock()
        self._resolved: str | None = None
        self._linked = Linked()
        self._pinned: dict[tuple[str, str, int], Validators] = {}  # by the host that gave them
        self._head = b""
        self._from_cache = False
        self._opened = False
        self._open()
        self._opened = True

    @property
    def name(self) -> str:
        """The URL without secrets, or the ``hf://`` name."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self._size

    @property
    def first_read(self) -> int:
        """Bytes of the head that opening fetched, or found in the cache."""
        return self._first_read

    @property
    def identity(self) -> str:
        """Place, size and version: the Hub's hash or the ETag, else the date."""
        linked = self._linked.etag
        validators = next(iter(self._pinned.values()), Validators())
        version = linked or ":".join(part for part in (self.commit, validators.text) if part)
        if not version:
            version = hashlib.sha256(self._head).hexdigest()[:16]
        place = urls.shown(self._origin.fixed("*") if self._origin.fixed else self._origin.url)
        return ":".join(("http", place, urls.query_digest(self._origin.url), version, str(self.size)))

    @property
    def answer(self) -> str:
        """How the server answered at opening, and the kind of the body if it is known not to be a model."""
        kind = known_kind(self._head[:64])
        return f"{self._answer}; this is {kind}" if kind else self._answer

    @property
    def parallelism(self) -> int:
        """Connections."""
        return CONNECTIONS

    @property
    def sha256(self) -> str | None:
        """The sha256 of the whole file as the Hub recorded it, or None."""
        etag = self._linked.etag.strip('"')
        return etag if len(etag) == 64 and not set(etag) - set("0123456789abcdef") else None

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        head = self._head
        if offset + length <= len(head) and length:
            if length > _RETAINED:
                self._head = head[:_RETAINED]  # it was read to be parsed; the parser has it now
            return head[offset : offset + length]
        return b"".join(self.stream(offset, length))

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from `offset` by one GET; if the connection fails, resume after the last byte."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise SourceError(
                f"{length:,} bytes requested, which reach past the end of {self.size:,} bytes",
                source=self.name,
                offset=offset,
            )
        return self._stream(offset, offset + length)

    def check_unchanged(self) -> None:
        """Request one byte, unless the answers so far prove that the file is the same.

        Every answer was compared with the pinned validators; a strong ETag leaves nothing open.
        """
        if self.size and not self._linked.etag and not all(pin.is_strong for pin in self._pinned.values()):
            for _ in self._stream(0, 1):
                pass

    # --- one range ---

    def _open(self) -> None:
        """Request the head, or one byte if it is cached; pin the size and version in the answer."""
        kept = head_cache.load(self.name)
        if kept is not None:
            self._head = b"".join(self._stream(0, 1))
            if self._has_version and kept.identity == self.identity:
                self._head, self._first_read, self._from_cache = kept.head, len(kept.head), True
                return
        self._head = b"".join(self._stream(0, self.first_read))

    @property
    def _has_version(self) -> bool:
        """Whether the server sends anything by which a changed file shows."""
        return bool(self._linked.etag or any(pin.text for pin in self._pinned.values()))

    def keep_head(self, head: bytes) -> None:
        """Cache the head for later, if the user wants that."""
        if self._has_version and not self._from_cache:
            head_cache.store(self.name, self.identity, head)

    def _stream(self, start: int, stop: int) -> Iterator[bytes]:
        budget = RetryBudget()
        refused = False
        while start < stop:
            reply = self._ask(budget, start, stop)
            answer, status = reply.answer, reply.answer.status
            if status in (200, 206):
                part = self._accept(reply, start, stop)
                stop = min(stop, part.total)
                for piece in self._body(reply, budget, part):
                    start += len(piece)
                    yield piece
                if start < part.stop:
                    budget.wait(self._problem(f"the connection broke {stop - start:,} bytes early", start))
            elif status == 416 and size_in_refusal(answer) == 0 and not self._opened:
                answer.close()
                self._pin(reply, ByteRange(start=0, stop=0, total=0))
                return
            else:
                self._refused(reply, budget, start, again=refused)
                refused = True

    def _ask(self, budget: RetryBudget, start: int, stop: int) -> _Reply:
        while True:
            try:
                return self._follow({"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}, budget)
            except TransportError as error:
                problem = self._problem(str(error), start if self._opened else None)
                if error.is_permanent and not self._opened:
                    budget.wait(problem, attempts=FEW_ATTEMPTS)
                else:  # a server that sent something before may be back in a moment
                    budget.wait(problem)

    def _body(self, reply: _Reply, budget: RetryBudget, part: ByteRange) -> Iterator[bytes]:
        """Yield at most the bytes of `part`; return early if the connection fails."""
        answer, left, done = reply.answer, part.stop - part.start, False
        try:
            for piece in answer.pieces():
                taken = piece[:left] if len(piece) > left else piece
                left -= len(taken)
                budget.advance(len(taken))
                yield taken
                if len(piece) > len(taken):
                    raise self._problem("the server sends more bytes than its Content-Range says", part.stop)
                if not left and "Content-Length" in answer.headers:
                    break
                if budget.left <= 0:
                    slow = f"is too slow: next to no bytes came within {budget.seconds:.0f} s"
                    raise self._problem(f"{urls.host_of(reply.url)} {slow}", part.stop - left)
            done = not left
        except TransportError as error:
            if "Transfer-Encoding" in answer.headers:
                # Wrong framing looks the same as a lost connection.
                raise self._problem(f"a body in chunks breaks off ({error})", part.stop - left) from None
        finally:  # also if the consumer stops
            if done:
                answer.release()
            else:
                answer.close()

    def _refused(self, reply: _Reply, budget: RetryBudget, start: int, *, again: bool) -> None:
        """Wait if a retry may help, else raise the error of the answer."""
        status = reply.answer.status
        after = reply.answer.headers.get("Retry-After")
        total = size_in_refusal(reply.answer) if status == 416 else None
        problem = self._named(refusal(reply.answer, urls.host_of(reply.url)), start)
        if total is not None and self._opened and total != self.size:
            raise self._changed(f"its size was {self.size:,} and is now {total:,}")
        if status in RETRIED or (status == 416 and not again):
            budget.wait(problem, after)
            return
        raise problem

    def _accept(self, reply: _Reply, start: int, stop: int) -> ByteRange:
        """Check that an answer is of the opened file and the requested range; pin the first one."""
        answer = reply.answer
        try:
            self._compare(reply)
            part = checked_range(answer, start, stop, self.size if self._opened or self._pinned else None)
            self._pin(reply, part)
        except SourceError as error:
            first = b"" if isinstance(error, ChangedError) else first_bytes(answer)
            answer.close()
            if readable(first):
                error.message += f"; it begins '{readable(first)}'"
            raise self._named(error, start) from None
        return part

    def _compare(self, reply: _Reply) -> None:
        """Raise if validators differ from those pinned, or the Hub leads to another version."""
        linked = reply.linked
        if linked is not None and self._pinned:
            for name in ("etag", "size", "commit"):
                old, new = getattr(self._linked, name), getattr(linked, name)
                if old and new != old:
                    raise self._changed(f"its {name} was {printable(old, 80)} and is now {printable(new, 80)}")
        pinned = self._pinned.get(urls.origin(reply.url))
        found = validators_of(reply.answer.headers)
        if pinned is None and self._pinned and not self._linked.etag:
            # Another host, and no hash of the Hub that holds on both: the validators must still be equal.
            pinned = next(iter(self._pinned.values()))
        what = pinned.contradicts(found) if pinned else None
        if what:
            raise self._changed(what)

    def _pin(self, reply: _Reply, part: ByteRange) -> None:
        with self._lock:
            if not self._pinned:
                self._size = part.total
                self._linked = reply.linked or Linked()
                self.commit = self._linked.commit
                self._describe(reply)
                self._check_linked_size()
                if self._origin.fixed and self.commit:
                    self._origin = replace(self._origin, url=self._origin.fixed(self.commit))
            self._pinned.setdefault(urls.origin(reply.url), validators_of(reply.answer.headers))

    def _describe(self, reply: _Reply) -> None:
        headers = reply.answer.headers
        kind = printable(headers.get("Content-Type", "").partition(";")[0].strip() or "no type", 60)
        text = f"status {reply.answer.status}, {kind}, {self.size:,} bytes, from {urls.host_of(reply.url)}"
        for label, value in (("LFS", self._linked.etag), ("Xet", self._linked.xet), ("commit", self._linked.commit)):
            text += f", {label} {printable(value, 80)}" if value else ""
        self._answer = text

    def _check_linked_size(self) -> None:
        if self._linked.size.isdigit() and int(self._linked.size[:18]) != self.size:
            raise SourceError(
                f"the Hub says that the file has {int(self._linked.size[:18]):,} bytes, "
                f"but the host of its data says {self.size:,}"
            )

    # --- one address after another ---

    def _follow(self, headers: dict[str, str], budget: RetryBudget) -> _Reply:
        kept = self._resolved
        if kept is not None:
            answer = self._get(kept, headers, budget)
            if answer.status not in EXPIRED and answer.status not in _REDIRECTS:
                return _Reply(answer=answer, url=kept, linked=None)
            transport.discard(answer)
            with self._lock:
                if self._resolved == kept:
                    self._resolved = None
        return self._from_start(headers, budget)

    def _from_start(self, headers: dict[str, str], budget: RetryBudget) -> _Reply:
        url = start = self._origin.url
        linked = Linked()
        for _ in range(_HOPS + 1):
            answer = self._get(url, headers, budget)
            if urls.origin(url) == urls.origin(start):
                linked = linked_by(answer.headers, linked)
            location = answer.headers.get("Location", "")
            if answer.status not in _REDIRECTS or not location:
                if url != start and answer.status in (200, 206):
                    self._resolved = url
                return _Reply(answer=answer, url=url, linked=linked)
            transport.discard(answer)
            try:
                url = urls.follow(url, location, start)
            except SourceError as error:
                raise self._named(error, None) from None
        raise self._problem(f"more than {_HOPS} redirects, the last to {urls.host_of(url)}", None)

    def _get(self, url: str, headers: dict[str, str], budget: RetryBudget) -> transport.Answer:
        at_home = urls.origin(url) == urls.origin(self._origin.url)
        sent = {"User-Agent": _AGENT, **(self._origin.headers if at_home else {}), **headers}
        pinned = self._pinned.get(urls.origin(url))
        if pinned is not None and pinned.is_strong:
            sent["If-Range"] = pinned.etag
        getter = self._origin.getter if at_home else transport.get_by_pool
        try:
            return transport.ask(getter, url, sent, budget.idle_timeout)
        except TransportError as error:
            raise TransportError(f"{urls.host_of(url)}: {error}", error.cause) from None

    # --- errors ---

    def _problem(self, text: str, offset: int | None) -> SourceError:
        return SourceError(text, source=self.name, offset=offset)

    def _changed(self, what: str) -> ChangedError:
        return ChangedError(f"changed since it was opened ({what}); start again", source=self.name)

    def _named(self, error: SourceError, offset: int | None) -> SourceError:
        error.source = self.name
        error.offset = error.offset if offset is None or not self._opened else offset
        error.message = urls.scrub(error.message, self._origin.secrets)
        return error


def open_http(origin: Origin, first_read: int) -> HttpSource:
    """Open a file by its first ranged GET; raise `SourceError` if it does not exist, or the server breaks the rules.

    The first reads get the head that came with that answer.
    """
    return HttpSource(origin, first_read)
