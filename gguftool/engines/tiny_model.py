"""A model that every engine loads, and one that every engine refuses: they show whether an engine works at all.

The smallest llama with a SentencePiece vocabulary: one layer, 32 columns, a token for each byte. Its weights are zeros,
so it is a skeleton itself.
"""

from __future__ import annotations

from gguftool.engines.skeleton import SkeletonFile
from gguftool.format.header import Header, TensorInfo, serialize
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv

_WIDTH = 32
_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a")
_UNKNOWN, _CONTROL, _BYTE, _NORMAL = 2, 3, 6, 1  # llama.cpp's token types
_TYPES = (_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * 3)
_F32 = 0  # its number
_NO_ARCHITECTURE = "gguftool-none"  # an engine that loads this one does not look at files


def good_model() -> SkeletonFile:
    """Make the model that loads."""
    return _file("llama")


def bad_model() -> SkeletonFile:
    """Make the same model with an architecture that does not exist."""
    return _file(_NO_ARCHITECTURE)


def _file(architecture: str) -> SkeletonFile:
    tensors, size = _tensors()
    header = Header(version=3, byte_order=ByteOrder.LITTLE, kvs=tuple(_kvs(architecture)), tensors=tensors)
    head = serialize(header)
    return SkeletonFile(head=head, size=len(head) + size)


def _tensors() -> tuple[tuple[TensorInfo, ...], int]:
    """The tensors, and their total bytes."""
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd.weight": (_WIDTH, len(_TOKENS)), "output_norm.weight": (_WIDTH,)}
    shapes |= {f"blk.0.{norm}.weight": (_WIDTH,) for norm in ("attn_norm", "ffn_norm")}
    shapes |= {f"blk.0.{weight}.weight": (_WIDTH, _WIDTH) for weight in square}
    found: list[TensorInfo] = []
    offset = 0
    for name, dims in shapes.items():
        found.append(TensorInfo(name=name, dims=dims, type=_F32, offset=offset))
        offset += found[-1].elements * 4
    return tuple(found), offset


def _kvs(architecture: str) -> list[KV]:
    text, count, number, array = ValueType.STRING, ValueType.UINT32, ValueType.FLOAT32, ValueType.ARRAY
    sizes = {
        "block_count": 1,
        "context_length": 256,
        "embedding_length": _WIDTH,
        "feed_forward_length": _WIDTH,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "rope.dimension_count": _WIDTH,
        "vocab_size": len(_TOKENS),
    }
    return [
        make_kv("general.architecture", text, architecture),
        *(make_kv(f"{architecture}.{key}", count, value) for key, value in sizes.items()),
        make_kv(f"{architecture}.attention.layer_norm_rms_epsilon", number, 1e-5),
        make_kv("tokenizer.ggml.model", text, "llama"),
        make_kv("tokenizer.ggml.tokens", array, _TOKENS, element=text),
        make_kv("tokenizer.ggml.scores", array, [0.0] * len(_TOKENS), element=number),
        make_kv("tokenizer.ggml.token_type", array, _TYPES, element=ValueType.INT32),
        make_kv("tokenizer.ggml.bos_token_id", count, 1),
        make_kv("tokenizer.ggml.eos_token_id", count, 2),
        make_kv("tokenizer.ggml.unknown_token_id", count, 0),
    ]
