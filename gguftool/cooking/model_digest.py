"""A digest that shows whether a measurement belongs to this model, without reading all of it.

It covers the hyperparameters, the name, type and dims of every tensor, and a piece of its data at a place that depends
on its name. So a fine-tune with the same vocabulary and shapes has another digest, and a remote model of a thousand
tensors takes a thousand small requests. The split into shards does not matter, and neither does other metadata.
"""

from __future__ import annotations

import hashlib

from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import ValueType
from gguftool.model.model import Model, Tensor
from gguftool.storage.sources.locate import for_each

_PIECE = 16 << 10  # bytes of each tensor


def model_digest(model: Model) -> str:
    """The digest of `model`, in hex; raises `SourceError` if it cannot be read."""
    tensors = [model.tensors[name] for name in sorted(model.tensors)]
    remote = any(source.is_remote for source in model.sources)
    pieces = for_each(tensors, _piece, remote=remote)
    digest = hashlib.sha256()
    for part in (*_hyperparameters(model), *pieces):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _hyperparameters(model: Model) -> list[bytes]:
    kv = model.get(ARCHITECTURE_KEY)
    prefix = f"{kv.value()}." if kv is not None and kv.type is ValueType.STRING else "\0"
    return sorted(
        kv.key.encode("utf-8", "surrogateescape") + b"\0" + kv.raw for kv in model.kvs if kv.key.startswith(prefix)
    )


def _piece(tensor: Tensor) -> bytes:
    name = tensor.name.encode("utf-8", "surrogateescape")
    length = min(tensor.nbytes, _PIECE)
    drawn = int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
    offset = drawn % (tensor.nbytes - length + 1)
    data = tensor.extent.source.read_at(tensor.extent.offset + offset, length) if length else b""
    return b"\0".join((name, repr((tensor.info.type, tensor.info.dims)).encode(), data))
