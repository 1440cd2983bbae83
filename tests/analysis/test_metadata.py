from __future__ import annotations

from pathlib import Path

from gguftool.analysis.metadata import ARRAY_LIMIT, metadata_rows
from gguftool.model.opening import open_model
from tests.support import builders as b


def model(path: Path, *kvs: b.KV, **options: str) -> Path:
    path.write_bytes(b.gguf(kvs, (b.tensor("w", "F32", (4,)),), **options))
    return path


def rows_of(*paths: Path) -> dict[str, tuple[tuple[object, ...], bool]]:
    rows = metadata_rows([open_model(path) for path in paths])
    return {row.key: (tuple(entry and entry.value for entry in row.entries), row.differs) for row in rows}


def test_keys_stand_side_by_side_and_whole_values_are_compared(tmp_path: Path) -> None:
    long = list(range(ARRAY_LIMIT + 2))
    one = model(tmp_path / "one.gguf", b.KV("a", b.U32, 1), b.KV("list", b.ARR, b.Array(b.U32, long)))
    two = model(
        tmp_path / "two.gguf", b.KV("list", b.ARR, b.Array(b.U32, [*long[:-1], 99])), b.KV("a", b.U32, 1),
        b.KV("more", b.STR, "x"),
    )  # fmt: skip
    cut = long[:ARRAY_LIMIT]
    assert rows_of(one, two) == {"a": ((1, 1), False), "list": ((cut, cut), True), "more": ((None, "x"), True)}


def test_equal_numbers_of_other_types_differ(tmp_path: Path) -> None:
    one, two = model(tmp_path / "1.gguf", b.KV("a", b.U32, 1)), model(tmp_path / "2.gguf", b.KV("a", b.U64, 1))
    assert rows_of(one, two) == {"a": ((1, 1), True)}


def test_byte_orders_are_no_difference(tmp_path: Path) -> None:
    kvs = (b.KV("a", b.U32, 1), b.KV("b", b.STR, "text"))
    one, two = model(tmp_path / "1.gguf", *kvs), model(tmp_path / "2.gguf", *kvs, order=">")
    assert {key: differs for key, (_, differs) in rows_of(one, two).items()} == {"a": False, "b": False}


def test_of_a_key_that_stands_twice_the_first_counts(tmp_path: Path) -> None:
    one = model(tmp_path / "one.gguf", b.KV("a", b.U32, 1), b.KV("a", b.U32, 2))
    assert rows_of(one) == {"a": ((1,), False)}
