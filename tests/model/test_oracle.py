"""gguf-py reads the same values and the same tensors from every file that it can read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from gguftool.format.ggml import TYPES
from gguftool.format.kv import ValueType
from gguftool.model.opening import open_model
from tests.support.paths import FIXTURES

# What PyPI gguf cannot read, and why; everything else has to be compared.
UNREADABLE = {
    "unknown-type.gguf": "a type nobody knows",
    "v1.gguf": "version 1",
    "duplicate-keys.gguf": "a key twice",
    "odd-names.gguf": "names that are not UTF-8",
    "zoo-ml.gguf": "Q2_0, which is newer than it",
}


def files() -> list[Path]:
    return sorted(FIXTURES.rglob("*.gguf"))


def compared(path: Path) -> bool:
    """Whether gguf-py can read it: it knows no type of ik_llama.cpp."""
    infos = open_model(path, this_file_only=True).files[0].header.tensors
    return path.name not in UNREADABLE and not any(
        "llama.cpp" not in TYPES[i.type].engines for i in infos if i.type in TYPES
    )


def oracle_value(field: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return field.contents()


@pytest.mark.parametrize("path", [path for path in files() if compared(path)], ids=lambda path: path.name)
def test_gguf_py_reads_the_same(path: Path) -> None:
    from gguf import GGUFReader

    theirs, ours = GGUFReader(path), open_model(path, this_file_only=True)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert [kv.key for kv in ours.kvs] == list(fields)
    for kv in ours.kvs:
        field = fields[kv.key]
        kinds = [kind.value for kind in field.types]
        assert kinds[0] == kv.type
        if kv.type is ValueType.ARRAY and kv.count:
            assert kinds[1] == kv.element_type
        if kv.element_type is ValueType.ARRAY or (kv.type is ValueType.ARRAY and not kv.count):
            continue  # gguf-py flattens arrays of arrays and has no value for empty ones
        # Both decode float32 to the same double; text is UTF-8 here.
        assert kv.value() == oracle_value(field), kv.key
    assert [
        (t.name, tuple(map(int, t.shape)), int(t.tensor_type), int(t.data_offset), int(t.n_bytes))
        for t in theirs.tensors
    ] == [(t.info.name, t.info.dims, t.info.type, t.padded_extent.offset, t.nbytes) for t in ours.tensors.values()]
    for reader, tensor in zip(theirs.tensors, ours.tensors.values(), strict=True):
        assert reader.data.tobytes() == tensor.extent.read()


@pytest.mark.parametrize("path", [path for path in files() if not compared(path)], ids=lambda path: path.name)
def test_what_gguf_py_cannot_read_is_still_unreadable_to_it_and_readable_here(path: Path) -> None:
    """Were it readable one day, it would have to be compared."""
    from gguf import GGUFReader

    assert open_model(path, this_file_only=True).tensors
    with pytest.raises((ValueError, KeyError, IndexError)):
        [oracle_value(field) for field in GGUFReader(path).fields.values()]


def test_the_reference_models_are_among_what_is_compared() -> None:
    assert sum(compared(path) for path in files() if "engines" in path.parts) > 15
