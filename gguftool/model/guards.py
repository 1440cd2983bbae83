"""Find models that load but compute something else, which no engine reports, from the planned tensors and metadata."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.kv import KV
from gguftool.model.model import Model, Tensor
from gguftool.model.remap.head_values import HeadValues
from gguftool.record import record

OUTPUT: Final = "output.weight"
TOKEN_EMBD: Final = "token_embd.weight"
_CHUNK: Final = 1 << 20  # bytes to compare at a time


@record
class Guards:
    """`refusals`: the output would load but compute something else, or stop the engine later; `warnings` may matter."""

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def semantic_guards(model: Model, kvs: Sequence[KV], names: Collection[str], engines: Sequence[str]) -> Guards:
    """Check a plan: `model` is the first input, `kvs` and `names` are the metadata and tensors of the output."""
    refusals = [*_untied(model, kvs, names, engines), *_promised(kvs, names)]
    return Guards(refusals=tuple(refusals))


def is_tied(model: Model) -> bool:
    """Whether `output.weight` has the bytes of `token_embd.weight`, which engines use if the former is absent.

    Reads both, in parts, up to the first difference; raises `SourceError` if that fails.
    """
    output, embedding = model.tensors.get(OUTPUT), model.tensors.get(TOKEN_EMBD)
    return output is not None and embedding is not None and _same_data(output, embedding)


def _same_data(one: Tensor, other: Tensor) -> bool:
    if (one.info.type, one.info.dims, one.nbytes) != (other.info.type, other.info.dims, other.nbytes):
        return False
    a, b = one.extent, other.extent
    for start in range(0, one.nbytes, _CHUNK):
        size = min(_CHUNK, one.nbytes - start)
        if a.source.read_at(a.offset + start, size) != b.source.read_at(b.offset + start, size):
            return False
    return True


def _untied(model: Model, kvs: Sequence[KV], names: Collection[str], engines: Sequence[str]) -> list[str]:
    """`output.weight` is gone: engines use the embedding instead if the architecture allows it, or do not load."""
    if OUTPUT in names or OUTPUT not in model.tensors or TOKEN_EMBD not in names or is_tied(model):
        return []
    needs = [engine for engine in engines if not _output_is_optional(HeadValues(kvs).architecture, engine)]
    then = f"{' and '.join(needs)} would not load the file" if needs else f"engines would use {TOKEN_EMBD} instead"
    return [f"{OUTPUT} is dropped, but it differs from {TOKEN_EMBD}: {then}; keep it"]


def _output_is_optional(architecture: str, engine: str) -> bool:
    """Whether `engine` falls back to the embedding; true if unknown."""
    facts = head_facts(engine)
    known = facts.architectures.get(architecture) if facts is not None else None
    rows = [tensor for tensor in known.tensors if tensor.name == OUTPUT] if known is not None else []
    return not rows or any("NOT_REQUIRED" in tensor.flags for tensor in rows)


def _promised(kvs: Sequence[KV], names: Collection[str]) -> list[str]:
    """MTP layers that the metadata counts but the file lacks, or the other way round."""
    values = HeadValues(kvs)
    key = f"{values.architecture}.nextn_predict_layers"
    has_trunk = any(name.startswith("blk.0.") for name in names)
    there = {name.split(".")[1] for name in names if name.startswith("blk.") and ".nextn." in name}
    promised = {str(layer) for layer in range(values.trunk, min(values.layers, values.trunk + 512))}
    if promised and has_trunk and not there & promised:
        last = f"blk.{values.layers - 1}"
        return [
            f"{key} counts {len(promised)} MTP layers but there are none: {last} would be skipped as one; set it to 0"
        ]
    if there - promised:
        layer = min(there - promised, key=len)
        return [f"blk.{layer}.nextn.* are tensors of an MTP layer, but {key} does not count it"]
    return []
