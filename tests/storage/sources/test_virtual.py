"""Sources without a file of their own: what is put together, what is read, and what a plan sees of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import SourceError
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.sources.virtual import BytesSource, JoinedSource, cut, joined, parts_of
from tests.support.memory_source import MemorySource

ONE, OTHER = (
    MemorySource(label="one.gguf", data=bytes(range(100))),
    MemorySource(label="other.gguf", data=bytes(range(100, 200))),
)


def extent(start: int, length: int, source: Source = ONE) -> Extent:
    return Extent(source=source, offset=start, length=length)


@st.composite
def extents(draw: st.DrawFn) -> list[Extent]:
    found = []
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, 100))
        length = draw(st.integers(0, 100 - start))
        found.append(extent(start, length, draw(st.sampled_from([ONE, OTHER]))))
    return found


@given(extents(), extents(), st.data())
def test_joined_extents_are_the_bytes_one_after_the_other(
    first: list[Extent], second: list[Extent], data: st.DataObject
) -> None:
    wanted = b"".join(each.read() for each in (*first, *second))
    whole = joined([joined(first), joined(second)])
    assert (whole.length, whole.read()) == (len(wanted), wanted)
    assert b"".join(bytes(piece) for piece in whole.source.stream(whole.offset, whole.length)) == wanted
    start = data.draw(st.integers(0, len(wanted)))
    length = data.draw(st.integers(0, len(wanted) - start))
    parts = parts_of(cut(whole, start, length))
    assert b"".join(part.read() for part in parts) == wanted[start : start + length]
    assert not any(isinstance(part.source, JoinedSource) for part in parts)


@given(extents())
def test_parts_are_few(made: list[Extent]) -> None:
    """Neighbours are one part, and no part is empty but for nothing at all."""
    parts = parts_of(joined(made))
    assert len(parts) <= max(1, sum(bool(each.length) for each in made))
    assert len(parts) == 1 or all(part.length for part in parts)
    assert not any(a.source == z.source and a.end == z.offset for a, z in pairwise(parts))


def test_one_extent_stays_what_it_is() -> None:
    assert joined([extent(3, 4)]) == extent(3, 4)
    assert joined([extent(3, 4), extent(7, 5)]) == extent(3, 9)
    assert joined([extent(3, 0), extent(50, 5)]) == extent(50, 5)
    assert joined([extent(3, 0)]) == extent(3, 0)


def test_identities_tell_sources_places_and_order_apart() -> None:
    made = [
        [extent(0, 10), extent(20, 10)],
        [extent(20, 10), extent(0, 10)],
        [extent(0, 10), extent(20, 11)],
        [extent(0, 10), extent(20, 10, OTHER)],
        [extent(0, 10, OTHER), extent(20, 10)],
    ]
    assert len({joined(each).source.identity for each in made}) == len(made)
    assert joined(made[0]).source.identity == joined(list(made[0])).source.identity


def test_names_say_where_the_pieces_are() -> None:
    assert joined([extent(0, 10), extent(20, 10)]).source.name == "one.gguf"
    assert joined([extent(0, 10), extent(20, 10, OTHER)]).source.name == "one.gguf and 1 more"


def test_a_piece_that_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(100))
    file = open_source(str(path))
    both = joined([extent(0, 10), extent(5, 10, file)]).source
    both.check_unchanged()
    path.write_bytes(bytes(101))
    with pytest.raises(SourceError, match=r"a\.bin"):
        both.check_unchanged()


def test_equal_bytes_under_one_label_are_one_source() -> None:
    assert BytesSource(label="d2t", data=b"12").identity == BytesSource(label="d2t", data=b"12").identity
    different = {(label, data): BytesSource(label=label, data=data).identity for label in "ab" for data in (b"1", b"2")}
    assert len(set(different.values())) == 4
