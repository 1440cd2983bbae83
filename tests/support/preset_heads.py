"""Models of many architectures in small, for which llama-quantize chooses types: F16 rows with nothing in them."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support import builders as b
from tests.support.engine_tools import tool

_LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) .*?type = +(\w+), size = .*?(?:MiB \((\w+)\))?$", re.MULTILINE)


def model(
    architecture: str,
    layers: int,
    *,
    heads: int = 8,
    shared: int = 8,
    experts: int = 0,
    width: int = 256,
    rows: int = 2,
    parts: Sequence[str] = (),
    output: bool = True,
    more: Sequence[b.KV] = (),
) -> bytes:
    """A model with `parts` in each layer; `shared`: heads of K and V; `output`: with an output of its own."""
    kvs = model_kvs(architecture, layers, heads=heads, shared=shared, experts=experts, width=width)
    names = [f"blk.{layer}.{part}.weight" for layer in range(layers) for part in parts]
    tensors = [_tensor("token_embd.weight", width, rows, 0)]
    tensors += [_tensor("output.weight", width, rows, 0)] if output else []
    # In the file as text sorts them, not as layers count: the engine sorts by layers.
    tensors += [_tensor(name, width, rows, experts if "_exps" in name else 0) for name in sorted(names)]
    return b.gguf([*kvs, *more], tensors)


def model_kvs(
    architecture: str, layers: int, *, heads: int = 8, shared: int = 8, experts: int = 0, width: int = 256
) -> list[b.KV]:
    """The metadata without which llama-quantize does not begin."""
    numbers = {
        "block_count": layers,
        "context_length": 64,
        "embedding_length": width,
        "feed_forward_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": shared,
    }
    if experts:
        numbers |= {"expert_count": experts, "expert_used_count": 2}
    kvs = [b.KV("general.architecture", b.STR, architecture)]
    kvs += [b.KV(f"{architecture}.{key}", b.U32, number) for key, number in numbers.items()]
    epsilons = ("layer_norm_rms_epsilon", "layer_norm_epsilon")
    return kvs + [b.KV(f"{architecture}.attention.{key}", b.F32, 1e-5) for key in epsilons]


def _tensor(name: str, width: int, rows: int, experts: int) -> b.Tensor:
    if name.endswith("norm.weight"):
        return b.Tensor(name, (width,), 0, bytes(4 * width))
    dims = (width, rows, experts) if experts else (width, rows)
    return b.Tensor(name, dims, 1, bytes(2 * width * rows * max(experts, 1)))


DENSE = (
    *("attn_q", "attn_k", "attn_v", "attn_output", "attn_norm"),
    *("ffn_gate", "ffn_up", "ffn_down"),
)
FALCON = ("attn_qkv", "attn_output", "attn_norm", "ffn_up", "ffn_down")
MOE = (
    *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
)
QKV_MOE = ("attn_qkv", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
MLA = (
    *("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
)
SHARED_MOE = (*MOE, "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
GPT2 = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def heads() -> dict[str, bytes]:
    """Models by name, one for each thing that a mix looks at."""
    return {
        "llama": model("llama", 32, parts=DENSE),
        "llama-gqa": model("llama", 17, heads=32, shared=8, parts=DENSE),
        "llama-70b": model("llama", 80, heads=64, shared=8, parts=DENSE),
        "llama-65b": model("llama", 80, parts=DENSE),
        "qwen2-72b": model("qwen2", 80, heads=8, shared=8, parts=DENSE),
        "tied": model("llama", 9, heads=6, shared=3, parts=DENSE, output=False),
        "falcon": model("falcon", 33, parts=FALCON),
        "gpt2": model("gpt2", 12, parts=GPT2),
        "mixtral": model("llama", 32, heads=32, shared=8, experts=8, parts=MOE),
        "four-experts": model("llama", 16, experts=4, parts=MOE),
        "qwen2moe": model("qwen2moe", 24, heads=16, shared=4, experts=6, parts=SHARED_MOE),
        "rows-of-96": model("llama", 8, heads=3, shared=1, width=96, parts=DENSE),
        "rows-of-72": model("llama", 8, heads=3, shared=3, width=72, parts=DENSE, output=False),
    }


def ik_heads() -> dict[str, bytes]:
    """The same for what ik_llama.cpp looks at: rows that divide by all that it packs together, Llama 3, MLA."""
    tokens = [b.KV("llama.vocab_size", b.U32, 128_256)]
    return {
        "llama": model("llama", 32, rows=16, parts=DENSE),
        "llama-2-rows": model("llama", 12, parts=DENSE),
        "llama-gqa": model("llama", 17, heads=32, shared=8, rows=16, parts=DENSE),
        "llama-3-8b": model("llama", 32, heads=32, shared=8, rows=16, parts=DENSE, more=tokens),
        "llama-3-70b": model("llama", 80, heads=64, shared=8, rows=16, parts=DENSE, more=tokens),
        "tied": model("llama", 9, heads=6, shared=3, rows=16, parts=DENSE, output=False),
        "falcon": model("falcon", 33, rows=16, parts=FALCON),
        "gpt2": model("gpt2", 12, rows=16, parts=GPT2),
        "mixtral": model("llama", 32, heads=32, shared=8, experts=8, rows=16, parts=MOE),
        "two-experts": model("llama", 16, experts=2, rows=16, parts=MOE),
        "qwen2moe": model("qwen2moe", 24, heads=16, shared=4, experts=6, rows=16, parts=SHARED_MOE),
        "qkv-experts": model("dbrx", 10, experts=8, rows=16, parts=QKV_MOE),
        "deepseek2": model("deepseek2", 11, experts=12, rows=16, parts=MLA),
        "rows-of-96": model("llama", 8, heads=3, shared=1, width=96, rows=16, parts=DENSE),
    }


def real_types(path: Path, preset: str, *options: object) -> dict[str, str]:
    """The types that the real llama-quantize would write, without writing them."""
    words = [str(tool("llama-quantize")), "--dry-run", *map(str, options), str(path), preset, "1"]
    done = subprocess.run(words, capture_output=True, timeout=60, check=False)
    text = (done.stdout + b"\n" + done.stderr).decode()
    assert done.returncode == 0, text[-2000:]
    found = {name: (new or old).lower() for name, old, new in _LINE.findall(text)}
    assert found, text[-2000:]
    return found


def legacy_imatrix(entries: dict[str, list[float]]) -> bytes:
    """A legacy importance matrix of one chunk."""
    parts = [struct.pack("<i", len(entries))]
    for name, values in entries.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", 1, len(values))]
        parts.append(struct.pack(f"<{len(values)}f", *values))
    return b"".join(parts)
