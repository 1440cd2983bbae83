"""A web server that misbehaves, one way for each mode, and counts what it did.

`/<mode>/<run>/<name>` serves the file `name` in that mode. A mode keeps its state (such as the number of requests) per
path, so another `run` starts fresh.

`MODES` is the table: what the server does, and the result for a client that reads the head of a model (`dump`) and for
one that copies a tensor far behind it (`copy`). The result is EXACT (the bytes are right), or a pattern for the one
line of the refusal.
"""
# ruff: noqa: E501 - a row of the table is a line

from __future__ import annotations

import gzip
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from tests.support.scripted_server import Answer, Exchange, HangUp, WireServer, head_of

MIB = 1 << 20
DATA = MIB  # ranges that begin here or behind it are data: the heads of the tests' models are smaller
PIECE = 300_000  # what a server sends before it hangs up early: less than requested, but not nothing
SECRET = "5ec2e7-51gn47u2e"  # the signature in every signed URL
SIGNATURE = f"X-Amz-Signature={SECRET}"
EXACT: None = None


def is_data(ex: Exchange) -> bool:
    return ex.start >= DATA


# Parts of answers.


def honest(ex: Exchange) -> None:
    if ex.is_range and ex.start >= ex.total:
        ex.reply(416, b"", {"Content-Range": f"bytes */{ex.total}"})
    else:
        ex.reply()


def error(status: int | str, body: bytes = b"no\n", **headers: str) -> Answer:
    """An error with a body; header names are written with underscores."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    plain = {"Content-Type": "text/plain", "ETag": None, "Content-Range": None, "Last-Modified": None}
    return lambda ex: ex.reply(status, body, {**plain, **named})


def bent(body: Callable[[Exchange], bytes] | None = None, status: int | None = None, **headers: object) -> Answer:
    """An honest answer except for these headers (text, None to omit, or a function) and this body."""

    def answer(ex: Exchange) -> None:
        named = {key.replace("_", "-"): value(ex) if callable(value) else value for key, value in headers.items()}
        ex.reply(status, None if body is None else body(ex), named)  # type: ignore[arg-type]

    return answer


def first(times: int, fault: Answer, then: Answer = honest) -> Answer:
    """The first `times` requests of a path go wrong."""
    return lambda ex: fault(ex) if ex.count < times else then(ex)


def in_turn(*faults: Answer) -> Answer:
    """Goes wrong once in each of these ways, then right."""
    return lambda ex: (faults[ex.count] if ex.count < len(faults) else honest)(ex)


def later_by_date(ex: Exchange) -> None:
    error(429, Retry_After=formatdate(time.time() + 2, usegmt=True))(ex)


def data(fault: Answer, head: Answer = honest) -> Answer:
    """Only ranges of data go wrong."""
    return lambda ex: fault(ex) if is_data(ex) else head(ex)


def ranges(text: Callable[[Exchange], str | None]) -> Answer:
    return bent(Content_Range=text)


def raw(*parts: bytes) -> Answer:
    """These bytes, then the end."""

    def answer(ex: Exchange) -> None:
        ex.send(*parts)
        ex.closes = True

    return answer


def steps(*parts: bytes | Answer) -> Answer:
    """Do each in turn: send bytes, run answers."""

    def answer(ex: Exchange) -> None:
        for part in parts:
            if isinstance(part, bytes):
                ex.send(part)
            else:
                part(ex)

    return answer


def flood(piece: bytes, pause: float = 0) -> Answer:
    """Send the same bytes without end."""
    return lambda ex: ex.until_closed(piece, pause)


def pause(seconds: float) -> Answer:
    return lambda ex: time.sleep(seconds)


def cut(ex: Exchange, length: int = PIECE) -> None:
    """A whole head, but only the beginning of the body."""
    ex.closes = True
    ex.send(head_of(206, [(key, value) for key, value in ex.headers().items() if value is not None]))
    ex.send(ex.body[:length])
    if length < len(ex.body):
        raise HangUp


def stalled(length: int) -> Answer:
    def answer(ex: Exchange) -> None:
        ex.send(head_of(206, [(key, str(value)) for key, value in ex.headers().items()]), ex.body[:length])
        ex.wait()
        raise HangUp

    return answer


def silent(ex: Exchange) -> None:
    ex.wait()
    raise HangUp


def closed(ex: Exchange) -> None:
    raise HangUp


def reset(ex: Exchange) -> None:
    ex.reset()


def reset_in_body(ex: Exchange) -> None:
    ex.send(head_of(206, [(key, str(value)) for key, value in ex.headers().items()]), ex.body[:PIECE])
    time.sleep(0.05)
    ex.reset()


def without_length(ex: Exchange, body: bytes, **headers: str | None) -> None:
    ex.reply(None, body, {"Content-Length": None, **headers}, closes=True)


def endless(status: int | None = None, **headers: str | None) -> Answer:
    """Without an end; the body begins right where it is a range."""

    def answer(ex: Exchange) -> None:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        ex.reply(status, ex.body, {"Content-Length": None, **named}, closes=True)
        ex.until_closed(b"\xaa" * 65536)

    return answer


def trickle(piece: int, pause: float) -> Answer:
    def answer(ex: Exchange) -> None:
        ex.send(head_of(206, [(key, str(value)) for key, value in ex.headers().items()]))
        for at in range(0, len(ex.body), piece):
            ex.send(ex.body[at : at + piece])
            ex.wait(pause)

    return answer


def chunked(ex: Exchange, end: bytes = b"0\r\n\r\n", bad: bytes = b"", **headers: str | None) -> None:
    ex.reply(None, b"", {"Content-Length": None, "Transfer-Encoding": "chunked", **headers})
    for at in range(0, len(ex.body), 100_000):
        piece = ex.body[at : at + 100_000]
        ex.send(f"{len(piece):x}\r\n".encode(), piece, b"\r\n", bad)
    ex.send(end)
    ex.closes = ex.closes or not end


def redirect(target: str | Callable[[Exchange], str | None], status: int = 302, pause: float = 0) -> Answer:
    """To `target`, in which {mode-less path}, {host} and {other} are filled in."""

    def answer(ex: Exchange) -> None:
        time.sleep(pause)
        where = target(ex) if callable(target) else target
        if where is not None:
            where = where.replace("{here}", ex.server.origin).replace("{other}", ex.server.other)
            where = where.replace("{rest}", ex.request.path.lstrip("/").partition("/")[2])
        ex.reply(status, b"moved", {"Location": where, "ETag": None, "Content-Range": None})

    return answer


SIGNED = "{other}/honest/{rest}?" + SIGNATURE + "&Expires=1"


def linked(**headers: str) -> Answer:
    """Like the Hub to its CDN: the redirect carries the identity of the file."""

    def answer(ex: Exchange) -> None:
        rest = ex.request.path.lstrip("/").partition("/")[2]
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        told = {"X-Linked-Size": str(ex.total), "X-Linked-ETag": '"' + "ab" * 32 + '"', "X-Repo-Commit": "c" * 40}
        where = f"{ex.server.other}/bare/{rest}?{SIGNATURE}"
        nothing = {"ETag": None, "Content-Range": None, "Last-Modified": None}
        ex.reply(302, b"Found", {**nothing, **told, **named, "Location": where})

    return answer


def hops(more: int) -> Answer:
    """`more` redirects, then the file; the query counts those left."""

    def answer(ex: Exchange) -> None:
        left = int(ex.request.query.partition("left=")[2] or more)
        redirect("{here}" + ex.request.path + f"?left={left - 1}")(ex) if left else honest(ex)

    return answer


def expiring(forever: bool = False, changes: bool = False) -> Answer:
    """A signed URL that expires before the data is read; a new request to the first host gives a good one."""

    def answer(ex: Exchange) -> None:
        good = int(is_data(ex) and not forever)
        name = "changed" if changes and good else "signed"
        redirect("{other}/" + name + "/{rest}?" + SIGNATURE + f"&good={good}")(ex)

    return answer


def signed(ex: Exchange) -> None:
    if is_data(ex) and "good=0" in ex.request.query:
        error(403, b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message>")(ex)
    else:
        honest(ex)


def multipart(parts: int) -> Answer:
    def answer(ex: Exchange) -> None:
        one = f"\r\n--XX\r\nContent-Type: x/y\r\nContent-Range: {ex.headers()['Content-Range']}\r\n\r\n".encode()
        body = (one + ex.body) * parts + b"\r\n--XX--\r\n"
        ex.reply(206, body, {"Content-Type": "multipart/byteranges; boundary=XX", "Content-Range": None})

    return answer


def document(content: bytes, kind: str, status: int = 200) -> Answer:
    """Another file, with status 200 and its correct length."""
    return lambda ex: ex.reply(status, content, {"Content-Type": kind, "Content-Range": None})


def ranged_document(content: bytes, kind: str) -> Answer:
    """Another file, with correct ranges for it."""

    def answer(ex: Exchange) -> None:
        part = content[ex.start : ex.stop]
        if not part:
            error(416, b"", Content_Range=f"bytes */{len(content)}")(ex)
            return
        place = f"bytes {ex.start}-{ex.start + len(part) - 1}/{len(content)}"
        ex.reply(206, part, {"Content-Type": kind, "Content-Range": place})

    return answer


def packed(encoding: str, pack: Callable[[bytes], bytes], status: int | None = None) -> Answer:
    return lambda ex: ex.reply(status, pack(ex.body), {"Content-Encoding": encoding})


def _bomb(_: bytes) -> bytes:
    return gzip.compress(bytes(64 * MIB), 9)


def poisoned(ex: Exchange) -> None:
    """A right answer with another one behind it, which a careless client takes for the answer to its next request."""
    honest(ex)
    if ex.request.method != "HEAD":
        ex.send(head_of(206, [("Content-Length", "700000"), ("Content-Range", "bytes 1048576-1748575/9999999")]))
        ex.send(b"\xbb" * 700_000)


def continues(times: int | None) -> Answer:
    def answer(ex: Exchange) -> None:
        done = 0
        while done != times and not ex.server.stopping.is_set():
            ex.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            done += 1
            if done > 100:
                ex.wait(0.001)
        honest(ex)

    return answer


def after(prefix: bytes) -> Answer:
    def answer(ex: Exchange) -> None:
        ex.send(prefix)
        honest(ex)

    return answer


def hurried(ex: Exchange) -> None:
    """An honest answer, then the connection closes unannounced."""
    honest(ex)
    ex.closes = True


def half_kept(ex: Exchange) -> None:
    """Every second request of a connection gets no answer but its end."""
    if ex.memory.get("answered"):
        raise HangUp
    honest(ex)
    ex.memory["answered"] = 1


def split_words(ex: Exchange) -> None:
    """Head and body in tiny pieces: slow, but complete."""
    for byte in head_of(206, [(key, str(value)) for key, value in ex.headers().items()]):
        ex.send(bytes([byte]))
    for at in range(0, len(ex.body), 8191):
        ex.send(ex.body[at : at + 8191])


def headless(ex: Exchange) -> None:
    if ex.request.method == "HEAD":
        error(405)(ex)
    else:
        honest(ex)


def lying_head(ex: Exchange) -> None:
    if ex.request.method == "HEAD":
        ex.reply(200, b"", {"Content-Length": "77", "ETag": '"head"'})
    else:
        honest(ex)


def _far(ex: Exchange, shift: int) -> str:
    return f"bytes {ex.start + shift}-{ex.stop - 1 + shift}/{ex.total + abs(shift)}"


def _shifted(ex: Exchange) -> None:
    """Begins 16 bytes later than asked, and says so."""
    start = min(ex.start + 16, ex.stop - 1)
    ex.reply(206, ex.data[start : ex.stop], {"Content-Range": f"bytes {start}-{ex.stop - 1}/{ex.total}"})


def _from_zero(ex: Exchange) -> None:
    """Knows only ranges from the beginning."""
    length = ex.stop - ex.start
    ex.reply(206, ex.data[:length], {"Content-Range": f"bytes 0-{length - 1}/{ex.total}"})


def _shorter(ex: Exchange) -> None:
    """Less than requested, as a server may."""
    stop = min(ex.stop, ex.start + PIECE)
    ex.reply(206, ex.data[ex.start : stop], {"Content-Range": f"bytes {ex.start}-{stop - 1}/{ex.total}"})


def _longer(ex: Exchange) -> None:
    """More than requested, and says so."""
    stop = min(ex.total, ex.stop + 1000)
    if stop == ex.stop:
        honest(ex)
    else:
        ex.reply(206, ex.data[ex.start : stop], {"Content-Range": f"bytes {ex.start}-{stop - 1}/{ex.total}"})


def _resized(change: int) -> Answer:
    return ranges(lambda ex: f"bytes {ex.start}-{ex.stop - 1}/{ex.total + change}")


def _silently(ex: Exchange) -> None:
    """Other bytes of the same size under the same ETag."""
    ex.reply(body=bytes(byte ^ 0xFF for byte in ex.body))


def _changed_file(ex: Exchange) -> None:
    ex.reply(body=bytes(len(ex.body)), headers={"ETag": '"v2"'})


_HTML = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b"<p>please</p>" * 50 + b"</body></html>\n"
)
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"5a" * 32 + b"\nsize 123456789\n"
_JSON = b'{"error":"Invalid username or password."}'
_ESCAPES = b"\x1b[31mred\x1b[0m \xe2\x80\xae \x07\r\nsecond line\r\n"
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
_HTTP2 = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)


@dataclass(frozen=True)
class Mode:
    """One way to misbehave. `lies` marks those that only a hash can detect."""

    name: str
    what: str
    answer: Answer
    dump: str | None
    copy: str | None
    lies: bool = False


def _both(name: str, what: str, answer: Answer, outcome: str | None) -> Mode:
    return Mode(name, what, answer, outcome, outcome)


def _late(name: str, what: str, fault: Answer, outcome: str | None) -> Mode:
    """Goes wrong for data only: heads are right."""
    return Mode(name, what, data(fault), EXACT, outcome)


MODES: tuple[Mode, ...] = (
    _both("honest", "everything as it should be", honest, EXACT),
    # Status
    _both("416", "416 for every range", error(416, b"", Content_Range="bytes */9999999"), "416"),
    _both("416_first", "416 once, then right", first(1, error(416, b"")), EXACT),
    _late("416_data", "416 for ranges inside the size it said", error(416, b""), "416"),
    _both("429", "429 once with Retry-After", first(1, error(429, Retry_After="1")), EXACT),
    _both("429_date", "429 once with Retry-After as a date", first(1, later_by_date), EXACT),
    _both("429_past", "429 once with Retry-After as a date long ago", first(1, error(429, Retry_After="Sun, 06 Nov 1994 08:49:37 GMT")), EXACT),
    _both("429_garbage", "429 once with a Retry-After that is neither", first(1, error(429, Retry_After="soon\t")), EXACT),
    _both("429_negative", "429 once with a negative Retry-After", first(1, error(429, Retry_After="-5")), EXACT),
    _both("429_day", "429, come back tomorrow", error(429, Retry_After="86400"), "429"),
    _both("429_huge", "429 with more digits than a clock has", error(429, Retry_After="9" * 400), "429"),
    _both("429_forever", "429 always", error(429, Retry_After="1"), "429"),
    _both("503", "503 twice, then right", first(2, error(503)), EXACT),
    _both("503_after", "503 once with Retry-After, then right", first(1, error(503, Retry_After="1")), EXACT),
    _both("503_forever", "503 always", error(503), "503"),
    _both("500", "500 once", first(1, error(500)), EXACT),
    _both("500_forever", "500 always", error(500), "500"),
    _both("502", "502 once, with a page", first(1, error(502, _HTML, Content_Type="text/html")), EXACT),
    _both("504", "504 once", first(1, error(504)), EXACT),
    _both("408", "408 once", first(1, error(408)), EXACT),
    _late("503_data", "503 for data, always", error(503), "503"),
    _both("400", "400", error(400), "400"),
    _both("401", "401 with a challenge", error(401, WWW_Authenticate='Basic realm="x"'), "401"),
    _both("402", "402", error(402), "402"),
    _both("403", "403", error(403), "403"),
    _both("404", "404", error(404), "404"),
    _both("407", "407, as a proxy says it", error(407, Proxy_Authenticate="Basic"), "407"),
    _both("410", "410", error(410), "410"),
    _both("451", "451", error(451), "451"),
    _both("404_escapes", "404 with escape codes and lines in its body and type", error(404, _ESCAPES, Content_Type="text/\x1b[31mred"), "404|header|protocol"),
    _both("204", "204, no content", error(204, b""), "204"),
    _both("205", "205, reset content", error(205, b""), "205"),
    _both("304", "304 that nobody asked for", error(304, b""), "304"),
    _both("201", "201 with the bytes", lambda ex: ex.reply(201), "201"),
    _both("300", "300, many choices", error(300), "300"),
    _both("999", "HTTP/1.1 999", raw(b"HTTP/1.1 999 Request denied\r\nContent-Length: 0\r\n\r\n"), "999"),
    _both("000", "HTTP/1.1 000", raw(b"HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n"), "HTTP"),
    _both("2000", "a status of four digits", raw(b"HTTP/1.1 2060 Much\r\nContent-Length: 0\r\n\r\n"), "HTTP"),
    _both("101", "101, another protocol", error(101, b""), "101"),
    # Bodies
    _both("short", "hangs up in the body, again and again", cut, EXACT),
    _both("short_once", "hangs up in the body once", first(1, cut), EXACT),
    _both("short_nothing", "a head, then hangs up, always", lambda ex: cut(ex, 0), "."),
    _late("short_stuck", "no data ever comes", lambda ex: cut(ex, 0), "."),
    _both("short_clean", "the Content-Range asked for, a shorter Content-Length", bent(lambda ex: ex.body[:PIECE]), EXACT),
    _both("long", "sends more than its Content-Length", steps(lambda ex: ex.reply(closes=True), b"\xaa" * 1000), EXACT),
    _late("long_clean", "a Content-Length that is longer than its range", bent(lambda ex: ex.body + b"\xaa" * 1000), "length|longer|more"),
    _late("long_unsized", "no length, and more than its range", lambda ex: without_length(ex, ex.body + b"\xaa" * 1000), "more|longer|length"),
    _both("endless", "no length, and no end", endless(), "more|longer|length"),
    _both("endless_sized", "a Content-Length of an exbibyte for the range asked for", endless(Content_Length=str(1 << 60)), "length|longer|more"),
    _both("unsized", "no length, and the connection's end is the body's", lambda ex: without_length(ex, ex.body), EXACT),
    _both("http10", "speaks HTTP/1.0", lambda ex: ex.reply("HTTP/1.0 206 Partial Content" if ex.is_range else "HTTP/1.0 200 OK", closes=True), EXACT),
    _both("slow_start", "takes its time before it answers", steps(pause(0.2), honest), EXACT),
    _both("slow_steady", "comes in small pieces, at a fair rate", trickle(65536, 0.005), EXACT),
    _both("slow_pieces", "head byte by byte", split_words, EXACT),
    _both("slow", "a byte now and then", trickle(1, 0.1), "slow"),
    _both("slow_head", "a header line now and then, without end", steps(b"HTTP/1.1 206 Partial Content\r\n", flood(b"X-A: b\r\n", 0.1)), "."),
    _both("stall_before", "accepts, and never answers", silent, "answer|nothing came"),
    _both("stall_once", "does not answer once", first(1, silent), EXACT),
    _both("stall_head", "stops in the head", steps(b"HTTP/1.1 206 Partial Content\r\nContent-Le", silent), "answer|nothing came"),
    _both("stall_body", "stops at the body, always", stalled(0), "nothing came|slow|early"),
    _both("stall_body_once", "stops in the body once", first(1, stalled(PIECE)), EXACT),
    _late("stall_data", "no data comes, and the connection stays", stalled(0), "nothing came|slow|early"),
    _both("reset_before", "resets every connection", reset, "."),
    _both("reset_once", "resets one connection", first(1, reset), EXACT),
    _both("reset_body", "resets in the body once", first(1, reset_in_body), EXACT),
    _late("reset_data", "resets in the body, always with some bytes", reset_in_body, EXACT),
    _both("flaky", "resets every second request", lambda ex: honest(ex) if ex.count % 2 else reset(ex), EXACT),
    _both("flaky_kinds", "fails in a different way each time, then works", in_turn(error(503), reset, cut, error(429, Retry_After="0")), EXACT),
    # Ranges
    _both("no_range", "200 with the whole file", lambda ex: ex.reply(200, ex.data, {"Content-Range": None}), "range"),
    _both("no_range_endless", "200 with 400 GB", endless(200, Content_Range=None, Content_Length="400000000000"), "range"),
    _both("no_range_unsized", "200 without a length or an end", endless(200, Content_Range=None), "range"),
    _late("no_range_data", "200 with the whole file when data is asked for", lambda ex: ex.reply(200, ex.data, {"Content-Range": None}), "range"),
    _both("200_with_range", "200 with the range and a Content-Range", lambda ex: ex.reply(200), "range"),
    _late("cr_wrong_start", "a Content-Range that begins elsewhere", ranges(lambda ex: _far(ex, 1)), "Content-Range"),
    _both("cr_missing", "206 without Content-Range", ranges(lambda ex: None), "Content-Range"),
    _both("cr_garbage", "a Content-Range that is none", ranges(lambda ex: "bytes lots"), "Content-Range"),
    _both("cr_units", "a Content-Range in other units", ranges(lambda ex: f"items {ex.start}-{ex.stop - 1}/{ex.total}"), "Content-Range"),
    _both("cr_backwards", "a Content-Range that ends before it begins", ranges(lambda ex: f"bytes {ex.stop}-{ex.start}/{ex.total}"), "Content-Range"),
    _both("cr_negative", "a negative Content-Range", ranges(lambda ex: f"bytes -1-{ex.stop - 1}/{ex.total}"), "Content-Range"),
    _both("cr_huge", "a Content-Range of 400 digits", ranges(lambda ex: f"bytes {ex.start}-{'9' * 400}/{'9' * 401}"), "Content-Range|bytes"),
    _both("cr_digits", "a Content-Range in the digits of another script", ranges(lambda ex: f"bytes \u0660-{ex.stop - 1}/{ex.total}"), "Content-Range"),
    _both("cr_twice", "two Content-Ranges that contradict each other", lambda ex: ex.reply(more=[("Content-Range", _far(ex, 64))]), "Content-Range"),
    _late("cr_shifted_body", "begins 16 bytes later than asked, and says so", _shifted, "Content-Range"),
    _late("cr_from_zero", "knows only ranges from the beginning", _from_zero, "Content-Range"),
    _both("cr_shorter", "less than was asked for, as a server may", _shorter, EXACT),
    _late("cr_longer", "more than was asked for, and says so", _longer, "Content-Range"),
    _late("cr_wrong_total", "another total for data than for the head", _resized(4096), "size|changed|Content-Range"),
    _both("cr_small_total", "a total in front of the range's end", ranges(lambda ex: f"bytes {ex.start}-{ex.stop - 1}/{ex.stop - 1}"), "Content-Range|size"),
    _both("cr_star_total", "a total of *", ranges(lambda ex: f"bytes {ex.start}-{ex.stop - 1}/*"), "Content-Range|size"),
    _both("cr_mismatch", "a Content-Range of half the body", ranges(lambda ex: f"bytes {ex.start}-{(ex.start + ex.stop) // 2}/{ex.total}"), "Content-Range|length|more|longer"),
    _both("multipart", "multipart/byteranges with one part", multipart(1), "multipart|Content-Range"),
    _late("multipart_data", "multipart/byteranges with two parts, for data", multipart(2), "multipart|Content-Range"),
    # Identity
    _late("etag_change", "another ETag for data than for the head", bent(ETag='"v2"'), "changed|ETag"),
    _both("etag_weak", "a weak ETag", bent(ETag='W/"v1"'), EXACT),
    _late("etag_weak_change", "a weak ETag that changes", data(bent(ETag='W/"v2"'), bent(ETag='W/"v1"')), "changed|ETag"),
    _both("etag_bad", "an ETag without quotes", bent(ETag="v1"), EXACT),
    _both("no_etag", "no ETag", bent(ETag=None), EXACT),
    _both("no_validator", "neither ETag nor Last-Modified", bent(ETag=None, Last_Modified=None), EXACT),
    Mode("modified", "no ETag, and another Last-Modified for data", data(bent(ETag=None, Last_Modified="Mon, 23 Nov 2026 11:00:00 GMT"), bent(ETag=None)), EXACT, "changed|Last-Modified|modified"),
    _late("shrink", "has become shorter when data is asked for", _resized(-1), "size|changed|Content-Range"),
    _late("grow", "has become longer when data is asked for", _resized(1), "size|changed|Content-Range"),
    _late("gone", "404 when data is asked for", error(404), "404"),
    Mode("silent_change", "other bytes of the same size under the same ETag", data(_silently), EXACT, EXACT, lies=True),
    _both("linked_etag", "identity with the redirect, a bare CDN behind it", linked(), EXACT),
    _both("linked_size", "a size with the redirect that is not the file's", linked(X_Linked_Size="77"), "size|Size|changed"),
    # Redirects
    _both("redirect_same", "302 with a path", redirect("/honest/{rest}"), EXACT),
    *(_both(f"redirect_{status}", f"{status} to the other host", redirect(SIGNED, status), EXACT) for status in (301, 303, 307, 308)),
    _both("redirect_other", "302 to a signed URL of the other host", redirect(SIGNED), EXACT),
    _both("redirect_few", "five redirects", hops(5), EXACT),
    _both("redirect_many", "30 redirects, then the file", hops(30), "redirect"),
    _both("redirect_loop", "redirects to itself", redirect("/redirect_loop/{rest}"), "redirect"),
    _both("redirect_slow", "a redirect that takes its time", redirect(SIGNED, pause=0.2), EXACT),
    _both("redirect_file", "a redirect to a local file", redirect("file:///etc/passwd"), "redirect|scheme"),
    _both("redirect_ftp", "a redirect to ftp", redirect("ftp://127.0.0.1/{rest}"), "redirect|scheme"),
    _both("redirect_data", "a redirect to a data: URL", redirect("data:application/octet-stream;base64,R0dVRg=="), "redirect|scheme"),
    _both("redirect_nowhere", "302 without a Location", redirect(lambda ex: None), "302|redirect"),
    _both("redirect_empty", "302 to nothing", redirect(""), "302|redirect"),
    _both("redirect_garbage", "302 to what is no URL", redirect("http://[::bad/"), "302|redirect"),
    _both("redirect_port", "302 to a port that is none", redirect("http://127.0.0.1:99999/"), "302|redirect"),
    _both("redirect_control", "302 to a URL with a control character", redirect("/honest/\x01{rest}"), "302|redirect|header"),
    _both("redirect_link_local", "a redirect to the cloud's metadata", redirect("http://169.254.169.254/latest/"), "redirect|local"),
    _both("redirect_decimal", "the same, its address as one number", redirect("http://2852039166/latest/"), "redirect|local"),
    _both("redirect_mapped", "the same, as IPv6", redirect("http://[::ffff:169.254.169.254]/latest/"), "redirect|local"),
    _both("redirect_nobody", "a redirect to a port where nobody listens", redirect("http://127.0.0.1:1/x"), "."),
    _both("redirect_page", "a redirect to a sign-in page", redirect("/206_html/{rest}"), "HTML|GGUF"),
    _late("redirect_away", "data is suddenly on the other host, and another file", redirect("{other}/changed/{rest}"), "changed|ETag"),
    _both("403_expired", "a signed URL that expires before the data", expiring(), EXACT),
    Mode("403_expired_forever", "a signed URL that never holds for data", expiring(forever=True), EXACT, "403"),
    Mode("403_expired_changed", "when the signed URL is got anew, the file is another", expiring(changes=True), EXACT, "changed|ETag"),
    # Compression
    _both("gzip", "gzip that nobody asked for, in a range", packed("gzip", gzip.compress), "gzip|Content-Encoding"),
    _both("gzip_200", "gzip that nobody asked for, with 200", packed("gzip", gzip.compress, 200), "gzip|Content-Encoding|range"),
    _late("gzip_data", "gzip for data only", packed("gzip", gzip.compress), "gzip|Content-Encoding"),
    _both("gzip_claimed", "says gzip, and is not", bent(Content_Encoding="gzip"), "gzip|Content-Encoding"),
    _both("gzip_bomb", "gzip of 64 MiB of zeros", packed("gzip", _bomb), "gzip|Content-Encoding"),
    _both("deflate", "deflate that nobody asked for", packed("deflate", zlib.compress), "deflate|Content-Encoding"),
    _both("br", "says br", bent(Content_Encoding="br"), "br|Content-Encoding"),
    _both("zstd", "says zstd", bent(Content_Encoding="zstd"), "zstd|Content-Encoding"),
    _both("identity", "says identity", bent(Content_Encoding="identity"), EXACT),
    _both("te_gzip", "Transfer-Encoding: gzip, chunked", lambda ex: chunked(ex, **{"Transfer-Encoding": "gzip, chunked"}), "."),
    # Something else instead
    _both("200_html", "a page with 200", document(_HTML, "text/html"), "HTML|html"),
    _both("200_lfs", "a git-LFS pointer with 200", document(_LFS, "text/plain"), "LFS"),
    _both("200_json", "a JSON error with 200", document(_JSON, "application/json"), "range|JSON|json"),
    _both("206_html", "ranges of a page", ranged_document(_HTML, "text/html"), "HTML|html"),
    _both("206_lfs", "ranges of a git-LFS pointer", ranged_document(_LFS, "text/plain"), "LFS"),
    _both("206_empty", "ranges of an empty file", error(416, b"", Content_Range="bytes */0"), "416|empty"),
    # Heads
    _both("cd_path", "a Content-Disposition with a path", bent(Content_Disposition='attachment; filename="../../evil.gguf"'), EXACT),
    _both("cd_absolute", "a Content-Disposition with an absolute path", bent(Content_Disposition="attachment; filename=/etc/evil.gguf"), EXACT),
    _both("cd_utf8", "a Content-Disposition with an encoded path", bent(Content_Disposition="attachment; filename*=UTF-8''..%2Fevil.gguf"), EXACT),
    _both("header_1mb", "a header line of 1 MiB", lambda ex: ex.reply(more=[("X-Long", "x" * MIB)]), "."),
    _both("header_many", "30,000 header lines", lambda ex: ex.reply(more=[("X-Many", "y")] * 30_000), "."),
    _both("header_endless", "header lines without an end", steps(b"HTTP/1.1 206 Partial Content\r\n", flood(b"X-A: b\r\n" * 4096)), "."),
    _both("two_lengths", "two Content-Lengths", lambda ex: ex.reply(more=[("Content-Length", "5")]), "."),
    _both("length_negative", "a negative Content-Length", bent(Content_Length="-1"), "."),
    _both("length_garbage", "a Content-Length that is no number", bent(Content_Length="many"), "."),
    _both("length_plus", "a Content-Length with a sign", bent(Content_Length=lambda ex: f"+{ex.stop - ex.start}"), "."),
    _both("header_space", "a header name with a space", lambda ex: ex.reply(more=[("X Evil", "1")]), "."),
    _both("header_control", "a header value with a NUL", lambda ex: ex.reply(more=[("X-Evil", "a\0b")]), "."),
    _both("header_colonless", "a header line without a colon", raw(b"HTTP/1.1 206 Partial Content\r\nGGUF\r\n\r\n"), "."),
    _both("header_case", "header names in capitals", lambda ex: ex.reply(more=[], headers={"ETag": None, "ETAG": '"v1"', "Content-Range": None, "CONTENT-RANGE": ex.headers().get("Content-Range")}), EXACT),
    _both("cookie", "a cookie that shall not come back", bent(Set_Cookie="session=" + SECRET), EXACT),
    _both("head_405", "405 for HEAD", headless, EXACT),
    _both("head_lies", "another size and ETag for HEAD", lying_head, EXACT),
    # Protocol
    _both("chunked", "chunks instead of a length", chunked, EXACT),
    _both("chunked_bad", "a chunk whose size is no number", lambda ex: chunked(ex, bad=b"zz\r\n"), "."),
    _both("chunked_huge", "a chunk size of 400 digits", lambda ex: chunked(ex, bad=b"f" * 400 + b"\r\n"), "."),
    _late("chunked_long", "chunks with more than the range", lambda ex: chunked(ex, end=b"3e8\r\n" + b"\xaa" * 1000 + b"\r\n0\r\n\r\n"), "more|longer|length"),
    _both("chunked_extension", "a chunk extension without an end", steps(lambda ex: chunked(ex, end=b"5;x="), flood(b"y" * 65536)), "."),
    _both("chunked_200", "200 in chunks, without an end", steps(lambda ex: ex.reply(200, b"", {"Content-Length": None, "Content-Range": None, "Transfer-Encoding": "chunked"}), flood(b"10000\r\n" + b"\xaa" * 65536 + b"\r\n")), "range"),
    _both("empty_206", "206 with an empty body, always", bent(lambda ex: b""), "."),
    _both("100_few", "five times 100 Continue, then right", continues(5), EXACT),
    _both("100_spam", "100 Continue without end", continues(None), "."),
    _both("103", "early hints, then right", after(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"), EXACT),
    _both("http09", "no head at all", steps(lambda ex: ex.send(ex.body), closed), "."),
    _both("icy", "ICY 200 OK", raw(b"ICY 200 OK\r\n\r\n"), "."),
    _both("garbage", "bytes that mean nothing", raw(bytes(range(128, 256)) * 8), "."),
    _both("closed", "closes without a word", closed, "."),
    _both("tls", "a TLS alert on a plain port", raw(_TLS_ALERT), "."),
    _both("http2", "frames of HTTP/2", raw(_HTTP2), "."),
    _both("keepalive_close", "closes after each answer without saying so", hurried, EXACT),
    _both("keepalive_half", "answers the first request of each connection only", half_kept, EXACT),
    _both("poison", "an answer that nobody asked for behind the right one", poisoned, EXACT),
)  # fmt: skip

# Targets of redirects, not rows of the table.
_TARGETS: dict[str, Answer] = {
    "bare": bent(ETag=None, Last_Modified=None),
    "signed": signed,
    "changed": _changed_file,
}


class RudeServer(WireServer):
    """Serve `files` in every mode."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.answers = {mode.name: mode.answer for mode in MODES} | _TARGETS
        super().__init__()

    def url(self, mode: str, name: str, run: str = "run") -> str:
        """The address of a file in `mode`."""
        return f"{self.origin}/{mode}/{run}/{name}"

    def answer(self, exchange: Exchange) -> None:
        path = exchange.request.path
        answer, content = self.answers.get(path.split("/")[1]), self.files.get(path.rpartition("/")[2])
        if answer is None or content is None:
            error(404, b"Entry not found")(exchange)
        else:
            answer(exchange.serve(content))


def main() -> None:
    """Serve the files named on the command line until interrupted, for trying things by hand."""
    files = {Path(path).name: Path(path).read_bytes() for path in sys.argv[1:]}
    with RudeServer(files) as server:
        print(f"{len(MODES)} modes at {server.origin}/<mode>/<run>/<name>, other host {server.other}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
