"""What of the remote sources needs no server: addresses, waiting, validators, estimates."""

from __future__ import annotations

import time
from contextlib import suppress
from email.utils import formatdate

import pytest

from gguftool.errors import SourceError, without_secrets
from gguftool.format.cursor import NeedMoreData
from gguftool.format.header import parse
from gguftool.storage.sources import urls
from gguftool.storage.sources.ranges import ByteRange, Validators, checked_range
from gguftool.storage.sources.retry import RetryBudget
from gguftool.storage.sources.source import ChangedError
from tests.support import builders as b


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@host/a.gguf?sig=1#x", "https://host/a.gguf"),
        ("see https://host/a?X-Amz-Signature=abc and 'http://me@h/b?c'.", "see https://host/a and 'http://h/b'."),
        ("sftp://me:word@host/a.gguf", "sftp://host/a.gguf"),
        ("/a/local?file#1@2.gguf", "/a/local?file#1@2.gguf"),
        ("hf://org/repo@main/a.gguf", "hf://org/repo@main/a.gguf"),
    ],
)
def test_no_login_and_no_query_is_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "url",
    ["http://", "https:///a", "http://[::bad/", "http://host:99999/", "http://a b/", "http://h/\x01", "http://h:0/"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(SourceError, match="not a valid URL"):
        urls.parts_of(url)


@pytest.mark.parametrize(
    ("start", "target", "said"),
    [
        ("https://93.184.216.34/a", "http://93.184.216.35/a", "https to http"),
        ("https://93.184.216.34/a", "https://127.0.0.1/a", "loopback"),
        ("https://93.184.216.34/a", "https://localhost/a", "loopback"),
        ("https://93.184.216.34/a", "https://[::1]/a", "loopback"),
        ("https://93.184.216.34/a", "https://0.0.0.0/a", "loopback"),
        ("http://127.0.0.1/a", "http://169.254.169.254/latest", "link-local"),
        ("http://127.0.0.1/a", "http://[::ffff:169.254.169.254]/", "link-local"),
        ("http://127.0.0.1/a", "gopher://127.0.0.1/", "gopher"),
    ],
)
def test_redirects_that_are_not_followed(start: str, target: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        urls.follow(start, target, start)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b?x=1#part", "https://93.184.216.34/b?x=1"),
        ("//93.184.216.35/b", "https://93.184.216.35/b"),
        ("https://me:word@93.184.216.35/b", "https://93.184.216.35/b"),
    ],
)
def test_redirects_that_are_followed(location: str, url: str) -> None:
    start = "https://93.184.216.34/a/c"
    assert urls.follow(start, location, start) == url


def test_the_query_counts_but_for_its_signature() -> None:
    plain = urls.query_digest("https://h/a?file=1")
    assert plain == urls.query_digest("https://h/a?X-Amz-Date=1&file=1&sig=zzz&Expires=3")
    assert plain != urls.query_digest("https://h/a?file=2")
    assert urls.query_digest("https://h/a?download=true") == urls.query_digest("https://h/a") == ""


class _Answer:
    def __init__(self, status: int, **headers: str) -> None:
        self.status = status
        self.headers = {key.replace("_", "-"): value for key, value in headers.items()}


def _part(answer: _Answer, start: int, stop: int, total: int | None) -> ByteRange:
    return checked_range(answer, start, stop, total)  # type: ignore[arg-type]


def test_what_an_answer_carries() -> None:
    right = _Answer(206, Content_Range="bytes 10-19/100", Content_Length="10")
    assert _part(right, 10, 20, 100) == ByteRange(start=10, stop=20, total=100)
    assert _part(right, 10, 30, 100).stop == 20  # fewer than asked for
    shorter = _Answer(206, Content_Range="bytes 10-19/100", Content_Length="4")
    assert _part(shorter, 10, 20, None).stop == 14
    whole = _Answer(200, Content_Length="100")
    assert _part(whole, 0, 1000, None) == ByteRange(start=0, stop=100, total=100)
    for wrong in ((whole, 0, 99, None), (whole, 1, 1000, None), (right, 11, 20, 100), (right, 10, 19, 100)):
        with pytest.raises(SourceError):
            _part(*wrong)
    with pytest.raises(ChangedError, match="its size was 99 and is now 100"):
        _part(right, 10, 20, 99)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (Validators(etag='"a"'), Validators(etag='"a"'), True),
        (Validators(etag='"a"'), Validators(etag='W/"a"'), True),
        (Validators(etag='"a"', modified="x"), Validators(etag='"a"', modified="y"), True),
        (Validators(etag='"a"'), Validators(etag='"b"'), False),
        (Validators(etag='"a"'), Validators(), False),
        (Validators(etag='"a"', modified="x"), Validators(modified="x"), True),
        (Validators(modified="x"), Validators(modified="y"), False),
        (Validators(), Validators(), True),
    ],
)
def test_validators(old: Validators, new: Validators, same: bool) -> None:
    assert (old.contradicts(new) is None) is same


def _waits(monkeypatch: pytest.MonkeyPatch, seconds: float, *after: str | None) -> list[float]:
    """What is waited between attempts, none of which gets a byte, until it gives up."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    budget = RetryBudget(seconds=seconds)
    with suppress(SourceError):
        for said in after:
            budget.wait(SourceError("no"), said)
    return waited


def test_waiting_follows_the_server_within_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _waits(monkeypatch, 10, "2") == [pytest.approx(2, abs=0.11)]
    assert _waits(monkeypatch, 10, formatdate(time.time() + 3, usegmt=True)) == [pytest.approx(2.5, abs=0.7)]
    for at_once in ("Sun, 06 Nov 1994 08:49:37 GMT", "0"):
        assert _waits(monkeypatch, 10, at_once) == [pytest.approx(0, abs=0.11)]
    for never in ("3600", "9" * 400, formatdate(time.time() + 4000, usegmt=True)):
        assert _waits(monkeypatch, 10, never) == []
    for nonsense in ("soon", "-5", "", None):
        assert 0 < _waits(monkeypatch, 10, nonsense)[0] <= 0.25
    growing = _waits(monkeypatch, 60, *[None] * 20)
    assert len(growing) == 7
    assert growing[-1] > growing[0] * 4


def test_bytes_are_progress_and_a_trickle_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = RetryBudget(seconds=10)
    for _ in range(100):
        now[0] += 5
        budget.advance(64 << 10)
    assert budget.left == 10
    for _ in range(100):
        now[0] += 0.2
        budget.advance(10)
    assert budget.left < 0


@pytest.mark.parametrize("cut", [100, 2000, 5000, 9000])
def test_an_estimate_is_never_below_what_is_needed_nor_beyond_the_file(cut: int) -> None:
    data = b.gguf(b.llama_kvs(vocabulary=2000), b.llama_tensors(2))
    with pytest.raises(NeedMoreData) as signal:
        parse(data[:cut], len(data))
    assert cut < signal.value.needed <= signal.value.likely <= len(data)
