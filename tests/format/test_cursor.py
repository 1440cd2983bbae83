"""The cursor: bounds of what it reads, and its estimate of where a head ends."""

from __future__ import annotations

import pytest

from gguftool.errors import FormatError, LimitError
from gguftool.format.cursor import MAX_HEAD, Cursor, NeedMoreData
from gguftool.format.kv import ByteOrder

BIG = 1 << 40


def cursor(size: int = 0, total: int = BIG, pos: int = 0) -> Cursor:
    found = Cursor(bytes(range(size)), total)
    found.pos = pos
    return found


@pytest.mark.parametrize(
    ("infos", "elements", "rest", "likely"),
    [
        (0, 0, 0, 1000),
        (3, 0, 0, 1000 + 3 * 72),
        (0, 0, 50, 1050 + 10),
        (3, 0, 50, 1266 + 10),
        (0, 999, 50, 1050 + 10),  # too short for a vocabulary
        (0, 1000, 50, 1050 + 1050 * 2 // 5),  # at most two fifths of the whole
        (0, 1000, 90_000, 91_000 + 18_000 + 8_000),
    ],
)
def test_a_heads_end_is_estimated_from_what_is_left(infos: int, elements: int, rest: int, likely: int) -> None:
    found = cursor()
    assert (found.infos_left, found.elements, found.array_rest) == (0, 0, 0)
    found.infos_left, found.elements, found.array_rest = infos, elements, rest
    assert found.extrapolate(1000) == likely


def test_no_estimate_lies_behind_the_file_or_the_limit() -> None:
    found = cursor(total=1010)
    found.infos_left = 3
    assert found.extrapolate(1000) == 1010
    found = cursor()
    assert found.extrapolate(MAX_HEAD + 1) == MAX_HEAD


@pytest.mark.parametrize(("needed", "likely"), [(5, 0), (5, 9), (5, 5)])
def test_a_likely_end_is_at_least_what_is_needed(needed: int, likely: int) -> None:
    signal = NeedMoreData(needed, likely)
    assert (signal.needed, signal.likely, signal.args) == (needed, max(needed, likely), (needed,))


def test_the_files_end_is_a_bound_and_the_buffers_end_a_question() -> None:
    found = cursor(8, total=10, pos=4)
    found.claim(6, "key")
    with pytest.raises(FormatError, match="7 bytes expected here, but the file ends at 10: truncated") as caught:
        found.claim(7, "key")
    assert (caught.value.where, caught.value.offset) == ("key", 4)
    assert not isinstance(caught.value, LimitError)
    found.need(4, "key")
    with pytest.raises(NeedMoreData) as more:
        found.need(5, "key")
    assert more.value.needed == 9


def test_the_limit_of_heads_is_a_bound_of_its_own() -> None:
    found = cursor(pos=MAX_HEAD - 3)
    found.claim(3, "key")
    with pytest.raises(LimitError, match="4 bytes expected here, but heads are limited to 268,435,456") as caught:
        found.claim(4, "key")
    assert (caught.value.where, caught.value.offset) == ("key", MAX_HEAD - 3)
    # A file of exactly that length is not too short.
    found.total = MAX_HEAD + 1
    assert isinstance(found.too_short(4, "key"), LimitError)
    assert not isinstance(found.too_short(5, "key"), LimitError)


def test_numbers_and_bytes_are_read_behind_each_other() -> None:
    found = cursor(40, total=40)
    assert found.take(3, "key") == bytes([0, 1, 2])
    assert found.number("I", "key") == 0x06050403
    found.set_order(ByteOrder.BIG)
    assert found.number("I", "key") == 0x0708090A
    assert found.length("key") == 0x0B0C0D0E0F101112
    found.width = 4
    assert found.length("key") == 0x13141516
    assert found.pos == 23
    assert found.take(17, "key")[-1] == 39
    with pytest.raises(FormatError, match="1 bytes expected here, but the file ends at 40"):
        found.take(1, "key")
    with pytest.raises(FormatError, match="4 bytes expected here"):
        found.number("I", "key")
    assert found.pos == 40


def test_a_buffer_longer_than_the_file_is_read_to_the_files_end() -> None:
    found = cursor(8, total=4)
    assert found.ready == 4
    with pytest.raises(FormatError, match="the file ends at 4"):
        found.take(5, "key")


def test_a_count_at_the_limit_is_read_and_one_above_is_placed_at_its_start() -> None:
    assert Cursor(b"\0\5" + bytes(7), 9).number("I", "n") == 0x0500
    found = Cursor(bytes(2) + b"\5" + bytes(7), 10)
    found.pos = 2
    assert found.count("number of keys", 5) == 5
    found.pos = 2
    with pytest.raises(LimitError, match="the number of keys is 5; gguftool reads at most 4") as caught:
        found.count("number of keys", 4)
    assert (caught.value.where, caught.value.offset) == ("number of keys", 2)


def test_a_text_keeps_what_is_not_utf8() -> None:
    data = b"\3" + bytes(7) + b"a\xff\xc3"
    assert Cursor(data, len(data)).text("key").encode("utf-8", "surrogateescape") == b"a\xff\xc3"
