"""A model of 452 GB as sparse shards: 1,100 tensors in 64 files, of 264 KiB on disk."""

from __future__ import annotations

from pathlib import Path

from gguftool.engines.skeleton import write_sparse
from gguftool.engines.tiny_model import good_model
from gguftool.format.header import Header, TensorInfo, parse, round_up, serialize
from gguftool.format.kv import KV, ValueType, make_kv

_WIDTH, _FFN, _LAYERS, _HEADS, _SHARDS = 8192, 131_072, 122, 64, 64
_F32, _Q8_0 = 0, 8
_SIZES = {
    "embedding_length": _WIDTH,
    "feed_forward_length": _FFN,
    "block_count": _LAYERS,
    "attention.head_count": _HEADS,
    "attention.head_count_kv": _HEADS,
    "rope.dimension_count": _WIDTH // _HEADS,
}


def write_huge_model(folder: Path) -> Path:
    """Write the shards into `folder`; return the path of the first."""
    tiny = parse(good_model().head, good_model().size)
    wide = {f"llama.{key}": value for key, value in _SIZES.items()}
    kvs = tuple(make_kv(kv.key, kv.type, wide[kv.key]) if kv.key in wide else kv for kv in tiny.kvs)
    shapes = list(_shapes(tiny).items())
    each = -(-len(shapes) // _SHARDS)
    for number in range(_SHARDS):
        infos, size = _infos(dict(shapes[number * each : (number + 1) * each]))
        split = _split_keys(number, len(shapes))
        head = serialize(Header(version=3, kvs=(*(kvs if number == 0 else kvs[:1]), *split), tensors=infos))
        write_sparse(folder / f"huge-{number + 1:05d}-of-{_SHARDS:05d}.gguf", head, len(head) + size)
    return folder / f"huge-00001-of-{_SHARDS:05d}.gguf"


def _shapes(tiny: Header) -> dict[str, tuple[int, ...]]:
    vocabulary = next(info.dims[1] for info in tiny.tensors if info.name == "token_embd.weight")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (_WIDTH, vocabulary), "output_norm.weight": (_WIDTH,)}
    for layer in range(_LAYERS):
        rest = {"attn_norm": (_WIDTH,), "ffn_norm": (_WIDTH,), "ffn_down": (_FFN, _WIDTH)}
        rest |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (_WIDTH, _WIDTH))
        rest |= dict.fromkeys(("ffn_gate", "ffn_up"), (_WIDTH, _FFN))
        shapes |= {f"blk.{layer}.{role}.weight": dims for role, dims in rest.items()}
    return shapes


def _infos(shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[TensorInfo, ...], int]:
    infos: list[TensorInfo] = []
    offset = 0
    for name, dims in shapes.items():
        info = TensorInfo(name=name, dims=dims, type=_F32 if len(dims) == 1 else _Q8_0, offset=offset)
        infos.append(info)
        offset = round_up(offset + (info.elements * 4 if len(dims) == 1 else info.elements // 32 * 34), 32)
    return tuple(infos), offset


def _split_keys(number: int, tensors: int) -> tuple[KV, ...]:
    return (
        make_kv("split.no", ValueType.UINT16, number),
        make_kv("split.count", ValueType.UINT16, _SHARDS),
        make_kv("split.tensors.count", ValueType.INT32, tensors),
    )
