"""Heads of malicious files."""

from __future__ import annotations

import struct

from tests.support import builders as b

_NESTED = struct.pack("<IQ", b.ARR, 1) * 10_000 + struct.pack("<IQ", b.U8, 0)


def _raw_kv(key: str, kind: int, raw: bytes) -> bytes:
    """A head of one entry with the value `raw`, whatever its type, and room behind it."""
    return b.head(n_kvs=1) + b.string(key) + struct.pack("<I", kind) + raw + bytes(64)


def _dims(*dims: int, n_dims: int | None = None) -> bytes:
    info = b.string("t") + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    return b.head(n_tensors=1) + info + struct.pack(f"<{len(dims)}QIQ", *dims, 0, 0) + bytes(64)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "magic"),
    "wrong magic": (b"GGML" + bytes(100), "magic"),
    "version 0": (b.head(version=0) + bytes(100), "version"),
    "version 4": (b.head(version=4) + bytes(100), "version"),
    "2^63 tensors": (b.head(n_tensors=1 << 63) + bytes(100), "number of tensors"),
    "2^63 entries": (b.head(n_kvs=1 << 63) + bytes(100), "number of metadata KV"),
    "more tensors than bytes": (b.head(n_tensors=1 << 19) + bytes(100), "counts"),
    "a key of 2^60 bytes": (b.head(n_kvs=1) + struct.pack("<Q", 1 << 60) + bytes(100), "metadata KV 0"),
    "a string of 2^60 bytes": (_raw_kv("k", b.STR, struct.pack("<Q", 1 << 60)), "metadata KV 0, 'k'"),
    "a string of 2^64-1 bytes": (_raw_kv("k", b.STR, struct.pack("<Q", 2**64 - 1)), "metadata KV 0, 'k'"),
    "an array of 2^62 strings": (_raw_kv("k", b.ARR, struct.pack("<IQ", b.STR, 1 << 62)), "metadata KV 0, 'k'"),
    "an array of 2^62 numbers": (_raw_kv("k", b.ARR, struct.pack("<IQ", b.F64, 1 << 62)), "metadata KV 0, 'k'"),
    "an array of a huge string": (_raw_kv("k", b.ARR, struct.pack("<IQQ", b.STR, 1, 2**64 - 1)), "metadata KV 0, 'k'"),
    "nesting of 10,000": (_raw_kv("k", b.ARR, _NESTED), "metadata KV 0, 'k'"),
    "value type 13": (_raw_kv("k", 13, bytes(8)), "metadata KV 0, 'k'"),
    "element type 99": (_raw_kv("k", b.ARR, struct.pack("<IQ", 99, 1)), "metadata KV 0, 'k'"),
    "2^32-1 dimensions": (_dims(n_dims=2**32 - 1), "tensor info 0, 't'"),
    "33 dimensions": (_dims(*[1] * 33), "tensor info 0, 't'"),
    "dims whose product overflows": (_dims(1 << 32, 1 << 32), "tensor info 0, 't'"),
    "a negative dimension beside a zero": (_dims(1 << 63, 0), "tensor info 0, 't'"),
    "duplicate tensor names": (b.gguf((), [b.tensor("x", "F32", (8,))] * 2), "tensor info 1"),
    "alignment 0": (b.gguf((b.KV("general.alignment", b.U32, 0),), alignment=32), "metadata KV"),
    "alignment 3": (b.gguf((b.KV("general.alignment", b.U32, 3),), alignment=32), "metadata KV"),
    "alignment -32": (b.gguf((b.KV("general.alignment", b.I32, -32),), alignment=32), "metadata KV"),
    "alignment as text": (b.gguf((b.KV("general.alignment", b.STR, "32"),), alignment=32), "metadata KV"),
}
