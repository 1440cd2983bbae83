"""Models with one mistake each in their heads, and what the real llama.cpp says of them.

    python -m tests.support.head_corpus            record the verdicts again, in tests/analysis/lint/verdicts.json
    python -m tests.support.head_corpus NAME PATH  write one of the models

Every model is a small one that llama.cpp loads, changed in one place.  Each is loaded in a process of its own, since
llama.cpp aborts on some.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from tests.support.check_models import LAYOUTS, text
from tests.support.engine_child import run_engine
from tests.support.paths import REPO

VERDICTS = REPO / "tests" / "analysis" / "lint" / "verdicts.json"
TIMEOUT = 20  # seconds for one load; the slowest seen took 2

_CODES = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i")}
_CODES |= {"f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
_LOAD = """
import os, sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 64, 1, False
params.cpuparams.n_threads = 1
try:
    server = xllamacpp.Server(params)
    print("LOADED", flush=True)
except Exception as error:
    print("REFUSED", error, flush=True)
time.sleep(0.1)  # the log has a thread of its own
os._exit(0)
"""


@dataclass(frozen=True)
class Head:
    """Metadata as (kind, value) by key, and tensors as dims by name, all of F32 by default."""

    kvs: dict[str, tuple[str, Any]]
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)

    def with_key(self, key: str, kind: str, value: Any) -> Head:
        return replace(self, kvs={**self.kvs, key: (kind, value)})

    def without_key(self, key: str) -> Head:
        assert key in self.kvs, key
        return replace(self, kvs={name: value for name, value in self.kvs.items() if name != key})

    def with_tensor(self, name: str, *dims: int) -> Head:
        return replace(self, tensors={**self.tensors, name: dims})

    def without_tensor(self, *names: str) -> Head:
        assert set(names) <= set(self.tensors), names
        return replace(self, tensors={name: dims for name, dims in self.tensors.items() if name not in names})

    def renamed(self, old: str, new: str) -> Head:
        assert old in self.tensors, old
        return replace(self, tensors={new if name == old else name: dims for name, dims in self.tensors.items()})

    def bytes(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.kvs))
        head += b"".join(text(key) + _value(kind, value) for key, (kind, value) in self.kvs.items())
        data = b""
        for name, dims in self.tensors.items():
            kind = self.types.get(name, 0)
            head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
            block, block_size, _ = LAYOUTS.get(kind, (1, 4, 0))
            size = prod(dims) * (2 if kind == 1 else 4) if block == 1 else prod(dims) // block * block_size
            data += b"\x11" * size + bytes(-size % 32)
        return head + bytes(-len(head) % 32) + data


def _value(kind: str, value: Any) -> bytes:
    if kind == "str":
        return struct.pack("<I", 8) + text(value)
    if kind.endswith("[]"):
        inner = kind.removesuffix("[]")
        number = 8 if inner == "str" else _CODES[inner][0]
        items = b"".join(text(one) if inner == "str" else struct.pack("<" + _CODES[inner][1], one) for one in value)
        return struct.pack("<IIQ", 9, number, len(value)) + items
    number, code = _CODES[kind]
    return struct.pack("<I" + code, number, value)


# --- models that load ------------------------------------------------------------------------------------------------

VOCABULARY, WIDTH, FF, LAYERS = 272, 64, 96, 2


def _tokenizer() -> dict[str, tuple[str, Any]]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{number}" for number in range(VOCABULARY - len(tokens))]
    kinds = [2, 3, 3, *[6] * 256]
    return {
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.pre": ("str", "default"),
        "tokenizer.ggml.tokens": ("str[]", tokens),
        "tokenizer.ggml.scores": ("f32[]", [-float(number) for number in range(VOCABULARY)]),
        "tokenizer.ggml.token_type": ("i32[]", kinds + [1] * (VOCABULARY - len(kinds))),
        "tokenizer.ggml.bos_token_id": ("u32", 1),
        "tokenizer.ggml.eos_token_id": ("u32", 2),
        "tokenizer.ggml.unknown_token_id": ("u32", 0),
        "tokenizer.ggml.add_bos_token": ("bool", True),
    }


def _keys(arch: str, **more: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    own = {
        "context_length": ("u32", 128),
        "embedding_length": ("u32", WIDTH),
        "block_count": ("u32", LAYERS),
        "feed_forward_length": ("u32", FF),
        "attention.head_count": ("u32", 4),
        "attention.head_count_kv": ("u32", 2),
        "attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "rope.freq_base": ("f32", 10000.0),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return {
        "general.architecture": ("str", arch),
        "general.name": ("str", f"corpus {arch}"),
        **{f"{arch}.{key}": value for key, value in own.items()},
        **_tokenizer(),
        "general.file_type": ("u32", 0),
    }


def _layers(roles: dict[str, tuple[int, ...]], layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    return {f"blk.{layer}.{role}": dims for layer in range(layers) for role, dims in roles.items()}


_ENDS: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (WIDTH, VOCABULARY),
    "output_norm.weight": (WIDTH,),
    "output.weight": (WIDTH, VOCABULARY),
}
_ATTENTION: dict[str, tuple[int, ...]] = {
    "attn_norm.weight": (WIDTH,),
    "attn_q.weight": (WIDTH, WIDTH),
    "attn_k.weight": (WIDTH, WIDTH // 2),
    "attn_v.weight": (WIDTH, WIDTH // 2),
    "attn_output.weight": (WIDTH, WIDTH),
    "ffn_norm.weight": (WIDTH,),
}
_DENSE: dict[str, tuple[int, ...]] = {
    "ffn_gate.weight": (WIDTH, FF),
    "ffn_up.weight": (WIDTH, FF),
    "ffn_down.weight": (FF, WIDTH),
}
_MOE: dict[str, tuple[int, ...]] = {
    "ffn_gate_inp.weight": (WIDTH, 4),
    "ffn_gate_exps.weight": (WIDTH, 32, 4),
    "ffn_up_exps.weight": (WIDTH, 32, 4),
    "ffn_down_exps.weight": (32, WIDTH, 4),
}
_NORMS: dict[str, tuple[int, ...]] = {"attn_q_norm.weight": (16,), "attn_k_norm.weight": (16,)}


def llama() -> Head:
    return Head(_keys("llama"), {**_ENDS, **_layers({**_ATTENTION, **_DENSE})})


def qwen3moe() -> Head:
    experts = {"expert_count": ("u32", 4), "expert_used_count": ("u32", 2), "expert_feed_forward_length": ("u32", 32)}
    return Head(_keys("qwen3moe", **experts), {**_ENDS, **_layers({**_ATTENTION, **_NORMS, **_MOE})})


def gemma3() -> Head:
    lengths = {"attention__key_length": ("u32", 16), "attention__value_length": ("u32", 16)}
    keys = _keys("gemma3", **lengths, attention__sliding_window=("u32", 32))
    roles = {**_ATTENTION, **_DENSE, **_NORMS, "post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    ends = {name: dims for name, dims in _ENDS.items() if name != "output.weight"}
    return Head(keys, {**ends, **_layers(roles)})


def deepseek2() -> Head:
    """MLA with 1 dense layer and 2 of experts, one shared."""
    own: dict[str, tuple[str, Any]] = {
        "block_count": ("u32", 3),
        "attention__head_count_kv": ("u32", 1),
        "attention__q_lora_rank": ("u32", 24),
        "attention__kv_lora_rank": ("u32", 32),
        "attention__key_length": ("u32", 40),
        "attention__value_length": ("u32", 32),
        "attention__key_length_mla": ("u32", 16),
        "attention__value_length_mla": ("u32", 16),
        "rope__dimension_count": ("u32", 8),
        "leading_dense_block_count": ("u32", 1),
        "expert_count": ("u32", 4),
        "expert_used_count": ("u32", 2),
        "expert_feed_forward_length": ("u32", 32),
        "expert_shared_count": ("u32", 1),
        "expert_weights_scale": ("f32", 1.0),
        "expert_gating_func": ("u32", 2),
    }
    attention: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (WIDTH,),
        "attn_q_a_norm.weight": (24,),
        "attn_kv_a_norm.weight": (32,),
        "attn_q_a.weight": (WIDTH, 24),
        "attn_q_b.weight": (24, 64),
        "attn_kv_a_mqa.weight": (WIDTH, 40),
        "attn_k_b.weight": (8, 32, 4),
        "attn_v_b.weight": (32, 16, 4),
        "attn_output.weight": (64, WIDTH),
        "ffn_norm.weight": (WIDTH,),
    }
    shared: dict[str, tuple[int, ...]] = {
        "ffn_gate_shexp.weight": (WIDTH, 32),
        "ffn_up_shexp.weight": (WIDTH, 32),
        "ffn_down_shexp.weight": (32, WIDTH),
        "exp_probs_b.bias": (4,),
    }
    first = {f"blk.0.{role}": dims for role, dims in {**attention, **_DENSE}.items()}
    later = _layers({**attention, **_MOE, **shared}, 3)
    behind = {name: dims for name, dims in later.items() if not name.startswith("blk.0.")}
    return Head(_keys("deepseek2", **own), {**_ENDS, **first, **behind})


def lfm2() -> Head:
    """A hybrid: layer 0 is a short convolution, layer 1 attention."""
    keys = _keys("lfm2", shortconv__l_cache=("u32", 3), attention__head_count_kv=("u32[]", [0, 2]))
    common = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,), **_DENSE}
    convolution: dict[str, tuple[int, ...]] = {
        "shortconv.conv.weight": (3, WIDTH),
        "shortconv.in_proj.weight": (WIDTH, 3 * WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    first = {f"blk.0.{role}": dims for role, dims in {**common, **convolution}.items()}
    second = {f"blk.1.{role}": dims for role, dims in {**_ATTENTION, **_DENSE, **_NORMS}.items()}
    ends = {"token_embd.weight": (WIDTH, VOCABULARY), "token_embd_norm.weight": (WIDTH,)}
    return Head(keys, {**ends, **first, **second})


BASES: dict[str, Callable[[], Head]] = {
    "llama": llama,
    "qwen3moe": qwen3moe,
    "gemma3": gemma3,
    "deepseek2": deepseek2,
    "lfm2": lfm2,
}


# --- mistakes --------------------------------------------------------------------------------------------------------

Change = Callable[[Head, str], Head]


def _own(key: str, kind: str, value: Any) -> Change:
    return lambda head, arch: head.with_key(f"{arch}.{key}", kind, value)


def _no(key: str) -> Change:
    return lambda head, arch: head.without_key(key.replace("ARCH", arch))


def _key(key: str, kind: str, value: Any) -> Change:
    return lambda head, arch: head.with_key(key, kind, value)


def _tensor(name: str, *dims: int) -> Change:
    return lambda head, arch: head.with_tensor(name, *dims)


def _cut(key: str, count: int) -> Change:
    return lambda head, arch: head.with_key(key, head.kvs[key][0], head.kvs[key][1][:count])


def _double(head: Head, arch: str) -> Head:
    tokens = list(head.kvs["tokenizer.ggml.tokens"][1])
    tokens[270] = tokens[271]
    return head.with_key("tokenizer.ggml.tokens", "str[]", tokens)


_TEMPLATE = "tokenizer.chat_template"
EVERYWHERE: dict[str, Change] = {
    "as it is": lambda head, arch: head,
    "no block_count": _no("ARCH.block_count"),
    "block_count one more": lambda head, arch: head.with_key(
        f"{arch}.block_count", "u32", head.kvs[f"{arch}.block_count"][1] + 1
    ),
    "block_count one less": lambda head, arch: head.with_key(
        f"{arch}.block_count", "u32", head.kvs[f"{arch}.block_count"][1] - 1
    ),
    "block_count i32": _own("block_count", "i32", 2),
    "block_count u64": _own("block_count", "u64", 2),
    "no context_length": _no("ARCH.context_length"),
    "no rms epsilon": _no("ARCH.attention.layer_norm_rms_epsilon"),
    "rms epsilon f64": _own("attention.layer_norm_rms_epsilon", "f64", 1e-5),
    "embedding_length doubled": _own("embedding_length", "u32", 2 * WIDTH),
    "feed_forward_length smaller": _own("feed_forward_length", "u32", FF - 32),
    "no head_count": _no("ARCH.attention.head_count"),
    "freq_base u32": _own("rope.freq_base", "u32", 10000),
    "rope scaling bogus": _own("rope.scaling.type", "str", "bogus"),
    "head_count_kv of 7 entries": _own("attention.head_count_kv", "u32[]", [2] * 7),
    "a key that nobody reads": _own("unheard_of", "str", "x"),
    "no tokens": _no("tokenizer.ggml.tokens"),
    "tokens one less": _cut("tokenizer.ggml.tokens", 271),
    "scores one less": _cut("tokenizer.ggml.scores", 271),
    "types one less": _cut("tokenizer.ggml.token_type", 271),
    "a token twice": _double,
    "eos a string": _key("tokenizer.ggml.eos_token_id", "str", "</s>"),
    "eos out of range": _key("tokenizer.ggml.eos_token_id", "u32", 5000),
    "no output_norm": lambda head, arch: head.without_tensor(
        "token_embd_norm.weight" if arch == "lfm2" else "output_norm.weight"
    ),
    "no ffn_norm in layer 1": lambda head, arch: head.without_tensor("blk.1.ffn_norm.weight"),
    "attn_norm longer": _tensor("blk.1.attn_norm.weight", WIDTH + 32),
    "token_embd one row more": _tensor("token_embd.weight", WIDTH, VOCABULARY + 1),
    "a tensor that nobody asks for": _tensor("blk.0.made_up.weight", WIDTH),
    "ffn_norm renamed": lambda head, arch: head.renamed("blk.0.ffn_norm.weight", "blk.0.norm_ffn.weight"),
}

LLAMA: dict[str, Change] = {
    "architecture unknown": _key("general.architecture", "str", "llama99"),
    "architecture another": _key("general.architecture", "str", "qwen3"),
    "no tokenizer model": _no("tokenizer.ggml.model"),
    "tokenizer unknown": _key("tokenizer.ggml.model", "str", "foo"),
    "pre unknown where it is not read": _key("tokenizer.ggml.pre", "str", "foo"),
    "gpt2 without merges": _key("tokenizer.ggml.model", "str", "gpt2"),
    "pre unknown": lambda head, arch: (
        head.with_key("tokenizer.ggml.model", "str", "gpt2")
        .with_key("tokenizer.ggml.merges", "str[]", ["a b"])
        .with_key("tokenizer.ggml.pre", "str", "foo")
    ),
    "token types u32": lambda head, arch: head.with_key("tokenizer.ggml.token_type", "u32[]", [1] * VOCABULARY),
    "scores f64": lambda head, arch: head.with_key("tokenizer.ggml.scores", "f64[]", [0.0] * VOCABULARY),
    "scores i32": lambda head, arch: head.with_key("tokenizer.ggml.scores", "i32[]", [0] * VOCABULARY),
    "add_bos u8": _key("tokenizer.ggml.add_bos_token", "u8", 1),
    "bos i32": _key("tokenizer.ggml.bos_token_id", "i32", 1),
    "no scores": _no("tokenizer.ggml.scores"),
    "no token types": _no("tokenizer.ggml.token_type"),
    "file_type i32": _key("general.file_type", "i32", 0),
    "name a number": _key("general.name", "u32", 1),
    "alignment u64": _key("general.alignment", "u64", 32),
    "split.count u32": _key("split.count", "u32", 1),
    "template in order": _key(_TEMPLATE, "str", "{% for m in messages %}{{ m.content }}{% endfor %}"),
    "template cut": _key(_TEMPLATE, "str", "{% for m in messages %}{{ m.content }"),
    "template with an open loop": _key(_TEMPLATE, "str", "{% for m in messages %}{{ m.content }}"),
    "template with break": _key(_TEMPLATE, "str", "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"),
    "template with generation": _key(
        _TEMPLATE, "str", "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "template with an unknown tag": _key(_TEMPLATE, "str", "{% bogus %}{{ messages[0].content }}"),
    "template empty": _key(_TEMPLATE, "str", ""),
    "block_count 0": _own("block_count", "u32", 0),
    "block_count 1000": _own("block_count", "u32", 1000),
    "head_count 8": _own("attention.head_count", "u32", 8),
    "head_count_kv 4": _own("attention.head_count_kv", "u32", 4),
    "head counts by layer": _own("attention.head_count_kv", "u32[]", [2, 2]),
    "head counts by layer i32": _own("attention.head_count_kv", "i32[]", [2, 2]),
    "head counts by layer u64": _own("attention.head_count_kv", "u64[]", [2, 2]),
    "head counts another by layer": _own("attention.head_count_kv", "u32[]", [2, 4]),
    "rope dimensions 8": _own("rope.dimension_count", "u32", 8),
    "rope dimensions 16": _own("rope.dimension_count", "u32", 16),
    "key_length 32": _own("attention.key_length", "u32", 32),
    "experts promised": _own("expert_count", "u32", 4),
    "experts used without experts": _own("expert_used_count", "u32", 2),
    "no output": lambda head, arch: head.without_tensor("output.weight"),
    "no token_embd": lambda head, arch: head.without_tensor("token_embd.weight"),
    "token_embd turned": _tensor("token_embd.weight", VOCABULARY, WIDTH),
    "output narrower": _tensor("output.weight", WIDTH, VOCABULARY - 1),
    "attn_q bias": lambda head, arch: head.with_tensor("blk.0.attn_q.bias", WIDTH),
    "attn_q_norm": lambda head, arch: head.with_tensor("blk.0.attn_q_norm.weight", 16),
    "attn_q scale": lambda head, arch: head.with_tensor("blk.0.attn_q.scale", 1),
    "scale of no weight": lambda head, arch: head.with_tensor("blk.0.attn_gate.scale", 1),
    "attn_qkv fused": lambda head, arch: head.without_tensor(
        "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"
    ).with_tensor("blk.0.attn_qkv.weight", WIDTH, 2 * WIDTH),
    "attn_qkv beside q": lambda head, arch: head.with_tensor("blk.0.attn_qkv.weight", WIDTH, 2 * WIDTH),
    "rope_freqs": lambda head, arch: head.with_tensor("rope_freqs.weight", 8),
    "rope_freqs too long": lambda head, arch: head.with_tensor("rope_freqs.weight", 9),
    "a layer too many": lambda head, arch: head.with_tensor("blk.2.attn_norm.weight", WIDTH),
    "ffn_up missing in layer 1": lambda head, arch: head.without_tensor("blk.1.ffn_up.weight"),
    "mtp tensor without a promise": lambda head, arch: head.with_tensor("blk.1.nextn.eh_proj.weight", 128, WIDTH),
    "vocab_size smaller": _own("vocab_size", "u32", 100),
    "dims with trailing ones": _tensor("output_norm.weight", WIDTH, 1, 1),
}

MOE: dict[str, Change] = {
    "used more than there are": _own("expert_used_count", "u32", 5),
    "no used count": _no("ARCH.expert_used_count"),
    "no expert_count": _no("ARCH.expert_count"),
    "expert_count 8": _own("expert_count", "u32", 8),
    "3 groups": lambda head, arch: head.with_key(f"{arch}.expert_group_count", "u32", 3).with_key(
        f"{arch}.expert_group_used_count", "u32", 1
    ),
    "2 groups, both used": lambda head, arch: head.with_key(f"{arch}.expert_group_count", "u32", 2).with_key(
        f"{arch}.expert_group_used_count", "u32", 2
    ),
    "groups as many as experts": _own("expert_group_count", "u32", 4),
    "used by layer, of another length": _own("expert_used_count", "u32[]", [2]),
    "expert length another": _own("expert_feed_forward_length", "u32", 48),
    "no router in layer 1": lambda head, arch: head.without_tensor("blk.1.ffn_gate_inp.weight"),
    "gate_up fused": lambda head, arch: head.without_tensor(
        "blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"
    ).with_tensor("blk.1.ffn_gate_up_exps.weight", WIDTH, 64, 4),
    "one tensor for each expert": lambda head, arch: replace(
        head.without_tensor("blk.1.ffn_gate_exps.weight"),
        tensors={
            **head.without_tensor("blk.1.ffn_gate_exps.weight").tensors,
            **{f"blk.1.ffn_gate.{expert}.weight": (WIDTH, 32) for expert in range(4)},
        },
    ),
}

DEEPSEEK2: dict[str, Change] = {
    "no q_lora_rank": _no("ARCH.attention.q_lora_rank"),
    "no kv_lora_rank": _no("ARCH.attention.kv_lora_rank"),
    "leading dense 2": _own("leading_dense_block_count", "u32", 2),
    "no shared count": _no("ARCH.expert_shared_count"),
    "no mla lengths": lambda head, arch: head.without_key(f"{arch}.attention.key_length_mla").without_key(
        f"{arch}.attention.value_length_mla"
    ),
    "kv_b beside k_b and v_b": _tensor("blk.1.attn_kv_b.weight", 32, 96),
    "no exp_probs_b": lambda head, arch: head.without_tensor("blk.1.exp_probs_b.bias"),
    "mtp promised": _own("nextn_predict_layers", "u32", 1),
    "weights_norm u32": _own("expert_weights_norm", "u32", 1),
}

LFM2: dict[str, Change] = {
    "layer kinds swapped": _own("attention.head_count_kv", "u32[]", [2, 0]),
    "no conv cache": _no("ARCH.shortconv.l_cache"),
    "one kind": _own("attention.head_count_kv", "u32", 2),
}

SPECIAL = {"llama": LLAMA, "qwen3moe": MOE, "deepseek2": {**MOE, **DEEPSEEK2}, "lfm2": LFM2}


def corpus() -> Iterator[tuple[str, Head]]:
    """Every model of the corpus, by name."""
    for arch, base in BASES.items():
        for name, change in {**EVERYWHERE, **SPECIAL.get(arch, {})}.items():
            yield f"{arch}: {name}", change(base(), arch)


# --- the engine ------------------------------------------------------------------------------------------------------


def verdict_of(path: Path) -> dict[str, Any]:
    """What llama.cpp says: whether it loads, and the line that says why not."""
    command = [sys.executable, "-c", _LOAD, str(path)]
    done = run_engine(command, TIMEOUT)
    if "LOADED" in done.stdout:
        return {"loads": True, "said": ""}
    log = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower() or "ASSERT" in line]
    said = next((line for line in log if "error loading" in line or "ASSERT" in line), log[0] if log else "")
    said = re.sub(r"\S*/llama\.cpp/", "", said)  # where it was built
    said = said.replace(str(path), "MODEL").replace(str(path.parent), "")
    return {"loads": False, "said": said.split("error loading model: ")[-1].strip()[-160:], "status": done.returncode}


def record() -> None:
    """Ask the installed llama.cpp about every model, and write what it says."""
    from importlib.metadata import version

    verdicts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for name, head in corpus():
            path.write_bytes(head.bytes())
            verdicts[name] = verdict_of(path)
    release = version("xllamacpp")
    data = {"engine": "llama.cpp", "by": f"xllamacpp {release}", "verdicts": verdicts}
    VERDICTS.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[2]).write_bytes(dict(corpus())[sys.argv[1]].bytes())
    else:
        record()
