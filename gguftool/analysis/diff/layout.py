"""The layout of two models side by side: version, byte order, alignment, order, offsets; it does not affect meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gguftool.model.model import Model
from gguftool.record import record


@record
class LayoutChange:
    """One property; if it is one of many (each tensor's offset), `count` of them differ and `where` is the first."""

    what: str
    where: str
    old: Any
    new: Any
    count: int


_OF_MODEL: tuple[tuple[str, Callable[[Model], Any]], ...] = (
    ("GGUF version", lambda model: model.version),
    ("byte order", lambda model: model.byte_order.name.lower()),
    ("alignment", lambda model: model.alignment),
    ("files", lambda model: len(model.files)),
    ("data offset of the first file", lambda model: model.files[0].header.data_offset),
)


def diff_layout(a: Model, b: Model, wanted: Callable[[str], bool]) -> tuple[LayoutChange, ...]:
    """Compare the layout of the `wanted` keys and tensors that both models have; paths do not count."""
    whole = (_first(what, [("", read(a), read(b))]) for what, read in _OF_MODEL)
    return tuple(change for change in (*whole, *_of_entries(a, b, wanted)) if change is not None)


def _of_entries(a: Model, b: Model, wanted: Callable[[str], bool]) -> Iterator[LayoutChange | None]:
    keys = [_common((kv.key for kv in one.kvs), {kv.key for kv in two.kvs}, wanted) for one, two in ((a, b), (b, a))]
    names = [_common(one.tensors, set(two.tensors), wanted) for one, two in ((a, b), (b, a))]
    yield _first("order of metadata keys", _positions(*keys))
    yield _first("order of tensors", _positions(*names))
    pairs = [(name, a.tensors[name], b.tensors[name]) for name in names[0]]
    yield _first(
        "spelling of dims", ((n, x.info.dims, y.info.dims) for n, x, y in pairs if x.info.shape == y.info.shape)
    )
    in_a, in_b = ({file.source.identity: number for number, file in enumerate(m.files, start=1)} for m in (a, b))
    yield _first(
        "file number",
        (
            (n, in_a[here], in_b[there])
            for n, here, there in (
                (n, x.padded_extent.source.identity, y.padded_extent.source.identity) for n, x, y in pairs
            )
            if here in in_a and there in in_b  # views of several extents are in no single file
        ),
    )
    yield _first("offset in the data", ((n, x.info.offset, y.info.offset) for n, x, y in pairs))


def _common(names: Iterable[str], others: set[str], wanted: Callable[[str], bool]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name in others and wanted(name)]


def _positions(old: list[str], new: list[str]) -> Iterator[tuple[str, str, str]]:
    for index, (left, right) in enumerate(zip(old, new, strict=True), start=1):
        yield f"#{index}", left, right


def _first(what: str, pairs: Iterable[tuple[str, Any, Any]]) -> LayoutChange | None:
    differing = [(where, old, new) for where, old, new in pairs if old != new]
    if not differing:
        return None
    where, old, new = differing[0]
    return LayoutChange(what=what, where=where, old=old, new=new, count=len(differing))
