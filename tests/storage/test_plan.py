"""Plans are pure data: they refuse what cannot be written, and equal plans have equal fingerprints."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import PlanError
from gguftool.storage.plan import Copy, OutputFile, coalesce
from gguftool.storage.sources.source import Extent
from tests.support.memory_source import MemorySource, copy_plan

SOURCE = MemorySource(label="in.gguf", data=bytes(range(100)))


def copy(at: int, start: int, length: int, source: MemorySource = SOURCE) -> Copy:
    return Copy(extent=Extent(source=source, offset=start, length=length), offset=at)


@pytest.mark.parametrize(
    ("copies", "size"),
    [
        ((copy(3, 0, 5),), 100),
        ((copy(4, 0, 5), copy(8, 0, 5)), 100),
        ((copy(20, 0, 5), copy(10, 0, 5)), 100),
        ((copy(4, 0, 5),), 8),
        ((), 3),
    ],
    ids=["into the head", "overlap", "order", "past the end", "head past the end"],
)
def test_an_output_that_contradicts_itself_is_refused(copies: tuple[Copy, ...], size: int) -> None:
    with pytest.raises(PlanError, match=r"overlap|after the file's end") as error:
        OutputFile(path=Path("out.gguf"), head=b"head", copies=copies, size=size)
    assert error.value.source == "out.gguf"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_coalescing_changes_calls_but_not_bytes(pieces: list[tuple[int, int, int]]) -> None:
    copies, at, start = [], 0, 0
    for gap, skip, length in pieces:
        copies.append(copy(at + gap, start + skip, length))
        at, start = at + gap + length, start + skip + length

    def painted(parts: tuple[Copy, ...]) -> bytes:
        out = bytearray(at)
        for part in parts:
            out[part.offset : part.offset + part.extent.length] = part.extent.read()
        return bytes(out)

    joined = coalesce(copies)
    assert painted(joined) == painted(tuple(copies))
    assert all(part.extent.length for part in joined)
    pairs = itertools.pairwise(joined)
    assert not any(a.extent.end == z.extent.offset and a.offset + a.extent.length == z.offset for a, z in pairs)


def test_neighbours_of_different_sources_are_not_joined() -> None:
    other = MemorySource(label="other.gguf", data=SOURCE.data)
    assert len(coalesce([copy(0, 0, 5), copy(5, 5, 5, other)])) == 2
    assert len(coalesce([copy(0, 0, 5), copy(5, 5, 5)])) == 1


def test_the_fingerprint_covers_everything_that_makes_the_bytes() -> None:
    plan = copy_plan(SOURCE, Path("a.gguf"), Path("b.gguf"))
    (first, second) = plan.outputs
    others = [
        copy_plan(MemorySource(label="in.gguf", data=bytes(100)), Path("a.gguf"), Path("b.gguf")),
        copy_plan(SOURCE, Path("a.gguf"), Path("c.gguf")),
        copy_plan(SOURCE, Path("a.gguf")),
        replace(plan, outputs=(replace(first, head=b"other head......"), second)),
        replace(plan, outputs=(replace(first, size=first.size + 1), second)),
        replace(plan, outputs=(replace(first, copies=first.copies[:1]), second)),
        replace(plan, outputs=(second, first)),
    ]
    assert plan.fingerprint == copy_plan(SOURCE, Path("a.gguf"), Path("b.gguf")).fingerprint
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_the_preview_counts() -> None:
    preview = copy_plan(SOURCE, Path("a.gguf"), Path("b.gguf")).preview()
    assert preview.outputs == (("a.gguf", 148), ("b.gguf", 148))
    assert [(use.name, use.nbytes) for use in preview.uses] == [("in.gguf", 200)]
    assert (preview.bytes_written, preview.bytes_copied) == (296, 200)
