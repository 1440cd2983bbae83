"""Small models with random weights that real llama.cpp runs: one of each kind that `alter` changes.

A `TinyModel` is metadata and F32 weights.  Their axes are in NumPy's order, the reverse of GGUF's: experts come first,
and so do rows of the vocabulary.  Nothing here uses gguftool: files are written by `builders` and read by PyPI's gguf,
so that what gguftool makes is judged by others.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf  # noqa: TID253 - files are read with it
import numpy as np  # noqa: TID253 - models are arrays
from numpy.typing import NDArray  # noqa: TID253

from tests.support import builders as b

Weights = Mapping[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]

WIDTH, VOCABULARY, EXPERTS = 256, 288, 8
HEADS, KV_HEADS, HEAD = 4, 2, 32
DENSE_FF, EXPERT_FF = 256, 64


@dataclass(frozen=True)
class TinyModel:
    """Metadata by key, in order, and F32 weights by name, in order."""

    kvs: Mapping[str, b.KV]
    weights: Weights

    @property
    def architecture(self) -> str:
        return str(self.kvs["general.architecture"].value)

    def own(self, key: str, default: Any = None) -> Any:
        """The value of the architecture's own key `key`; of an array, its elements."""
        kv = self.kvs.get(f"{self.architecture}.{key}")
        value = default if kv is None else kv.value
        return list(value.items) if isinstance(value, b.Array) else value

    def with_own(self, key: str, kind: int, value: Any) -> TinyModel:
        """Set one of the architecture's own keys, in place if it is there."""
        return self.with_key(f"{self.architecture}.{key}", kind, value)

    def with_key(self, key: str, kind: int, value: Any) -> TinyModel:
        return replace(self, kvs={**self.kvs, key: b.KV(key, kind, value)})

    def with_weights(self, weights: Weights) -> TinyModel:
        return replace(self, weights=dict(weights))

    def write(self, path: Path) -> Path:
        """Write the model as F32; lists of integers as I64."""
        tensors = [_tensor(name, array) for name, array in self.weights.items()]
        path.write_bytes(b.gguf(tuple(self.kvs.values()), tensors))
        return path


def _tensor(name: str, array: NDArray[Any]) -> b.Tensor:
    is_list = array.dtype.kind == "i"
    kind = gguf.GGMLQuantizationType.I64 if is_list else gguf.GGMLQuantizationType.F32
    data = np.ascontiguousarray(array, np.int64 if is_list else np.float32).tobytes()
    return b.Tensor(name, tuple(reversed(array.shape)), int(kind), data)


def read(path: Path) -> TinyModel:
    """Read a file with PyPI's gguf, and dequantize every tensor."""
    reader = gguf.GGUFReader(path)
    kvs = {key: _kv(key, field) for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return TinyModel(kvs, {tensor.name: _dequantized(tensor) for tensor in reader.tensors})


def _kv(key: str, field: gguf.ReaderField) -> b.KV:
    if field.types[0] != gguf.GGUFValueType.ARRAY:
        return b.KV(key, int(field.types[0]), field.contents())
    return b.KV(key, b.ARR, b.Array(int(field.types[1]), list(field.contents())))


def _dequantized(tensor: gguf.ReaderTensor) -> NDArray[Any]:
    is_list = tensor.data.dtype.kind == "i"  # of token ids, say
    numbers = tensor.data if is_list else gguf.dequantize(tensor.data, tensor.tensor_type)
    return np.asarray(numbers).reshape(tuple(reversed([int(dim) for dim in tensor.shape])))


# --- weights ---------------------------------------------------------------------------------------------------------


def _random(seed: str, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights of a size that lets every layer matter and no number grow: the same for the same seed and name."""
    rng = np.random.default_rng(zlib.crc32(f"{seed} {name}".encode()))
    noise = rng.standard_normal(shape)
    tied = seed == "gemma3"  # a large embedding would have each token predict itself
    if name.endswith("norm.weight"):
        return np.asarray((20 if tied and name == "output_norm.weight" else 1) * (1 + 0.1 * noise), np.float32)
    if name.endswith("ssm_a"):  # minus the exponential of a logarithm
        return np.asarray(-np.exp(0.5 * noise), np.float32)
    if name.endswith((".bias", "ssm_conv1d.weight")):
        return np.asarray(0.3 * noise, np.float32)
    gains = {"token_embd.weight": 0.1 if tied else 16.0, "output.weight": 2.0}
    gain = gains.get(name, 2.0 if "ffn_gate_inp" in name else 1.0)
    return np.asarray(gain * noise / np.sqrt(shape[-1]), np.float32)


def make_model(architecture: str, own: Mapping[str, tuple[int, Any]], shapes: Shapes) -> TinyModel:
    common: dict[str, tuple[int, Any]] = {
        "context_length": (b.U32, 128),
        "embedding_length": (b.U32, WIDTH),
        "feed_forward_length": (b.U32, DENSE_FF),
        "attention.head_count": (b.U32, HEADS),
        "attention.head_count_kv": (b.U32, KV_HEADS),
        "attention.key_length": (b.U32, HEAD),
        "attention.value_length": (b.U32, HEAD),
        "rope.dimension_count": (b.U32, HEAD),
        "attention.layer_norm_rms_epsilon": (b.F32, 1e-5),
        "rope.freq_base": (b.F32, 10000.0),
    }
    keys = [b.KV("general.architecture", b.STR, architecture), b.KV("general.name", b.STR, f"tiny {architecture}")]
    keys += [b.KV(f"{architecture}.{key}", kind, value) for key, (kind, value) in {**common, **own}.items()]
    keys += [*_tokenizer(), b.KV("general.file_type", b.U32, 0)]
    weights = {name: _random(architecture, name, shape) for name, shape in shapes.items()}
    return TinyModel({str(kv.key): kv for kv in keys}, weights)


def _tokenizer() -> Iterable[b.KV]:
    """Tokens of ASCII only: the engine holds back the logprobs of a token that is no whole character."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", "\u2581", *letters]
    pairs = [first + second for first in "etaoinshr" for second in "abcdefghijklmnopqrstuvwxyz"]
    tokens += pairs[: VOCABULARY - len(tokens)]
    kinds = [2, 3, 3] + [1] * (VOCABULARY - 3)
    yield b.KV("tokenizer.ggml.model", b.STR, "llama")
    yield b.KV("tokenizer.ggml.pre", b.STR, "default")
    yield b.KV("tokenizer.ggml.tokens", b.ARR, b.Array(b.STR, tokens))
    yield b.KV("tokenizer.ggml.scores", b.ARR, b.Array(b.F32, [-float(number) for number in range(VOCABULARY)]))
    yield b.KV("tokenizer.ggml.token_type", b.ARR, b.Array(b.I32, kinds))
    yield b.KV("tokenizer.ggml.bos_token_id", b.U32, 1)
    yield b.KV("tokenizer.ggml.eos_token_id", b.U32, 2)
    yield b.KV("tokenizer.ggml.unknown_token_id", b.U32, 0)
    yield b.KV("tokenizer.ggml.add_bos_token", b.BOOL, 1)


def with_merges(model: TinyModel) -> TinyModel:
    """`model` with a vocabulary of byte pairs, as most models of today have."""
    kvs = {key: kv for key, kv in model.kvs.items() if not key.endswith(".scores")}
    tokens = [token.replace("\u2581", "\u0120") for token in model.kvs["tokenizer.ggml.tokens"].value.items]
    merges = [" ".join(token) for token in tokens if len(token) == 2]
    model = replace(model, kvs=kvs).with_key("tokenizer.ggml.model", b.STR, "gpt2")
    model = model.with_key("tokenizer.ggml.pre", b.STR, "gpt-2")
    model = model.with_key("tokenizer.ggml.tokens", b.ARR, b.Array(b.STR, tokens))
    return model.with_key("tokenizer.ggml.merges", b.ARR, b.Array(b.STR, merges))


# --- shapes, in NumPy's order ----------------------------------------------------------------------------------------

ENDS: Shapes = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "output_norm.weight": (WIDTH,),
    "output.weight": (VOCABULARY, WIDTH),
}
_ATTENTION: Shapes = {
    "attn_norm.weight": (WIDTH,),
    "attn_q.weight": (HEADS * HEAD, WIDTH),
    "attn_k.weight": (KV_HEADS * HEAD, WIDTH),
    "attn_v.weight": (KV_HEADS * HEAD, WIDTH),
    "attn_output.weight": (WIDTH, HEADS * HEAD),
}
_HEAD_NORMS: Shapes = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
_FFN_NORM: Shapes = {"ffn_norm.weight": (WIDTH,)}
_DENSE: Shapes = {
    "ffn_gate.weight": (DENSE_FF, WIDTH),
    "ffn_up.weight": (DENSE_FF, WIDTH),
    "ffn_down.weight": (WIDTH, DENSE_FF),
}
_MOE: Shapes = {
    "ffn_gate_inp.weight": (EXPERTS, WIDTH),
    "ffn_gate_exps.weight": (EXPERTS, EXPERT_FF, WIDTH),
    "ffn_up_exps.weight": (EXPERTS, EXPERT_FF, WIDTH),
    "ffn_down_exps.weight": (EXPERTS, WIDTH, EXPERT_FF),
}
_SHARED: Shapes = {
    "ffn_gate_shexp.weight": (EXPERT_FF, WIDTH),
    "ffn_up_shexp.weight": (EXPERT_FF, WIDTH),
    "ffn_down_shexp.weight": (WIDTH, EXPERT_FF),
}
_EXPERT_KEYS: dict[str, tuple[int, Any]] = {
    "expert_count": (b.U32, EXPERTS),
    "expert_used_count": (b.U32, 2),
    "expert_feed_forward_length": (b.U32, EXPERT_FF),
}
_MTP: Shapes = {
    "nextn.eh_proj.weight": (WIDTH, 2 * WIDTH),
    "nextn.enorm.weight": (WIDTH,),
    "nextn.hnorm.weight": (WIDTH,),
    "nextn.shared_head_norm.weight": (WIDTH,),
}


def _layers(*kinds: Shapes) -> Shapes:
    """The shapes of `kinds`, one a layer."""
    return {f"blk.{layer}.{role}": shape for layer, roles in enumerate(kinds) for role, shape in roles.items()}


def with_other_layers(model: TinyModel) -> TinyModel:
    """`model` with other random weights in all layers: another finetune of the same base."""
    layers = [name for name in model.weights if name.startswith("blk.")]
    other = {name: _random("another", name, model.weights[name].shape) for name in layers}
    return model.with_weights({**model.weights, **other})


def llama(layers: int = 4) -> TinyModel:
    own = {"block_count": (b.U32, layers)}
    return make_model("llama", own, {**ENDS, **_layers(*[{**_ATTENTION, **_FFN_NORM, **_DENSE}] * layers)})


def qwen3moe(layers: int = 3) -> TinyModel:
    own = {"block_count": (b.U32, layers), **_EXPERT_KEYS}
    roles = {**_ATTENTION, **_HEAD_NORMS, **_FFN_NORM, **_MOE}
    return make_model("qwen3moe", own, {**ENDS, **_layers(*[roles] * layers)})


def gemma3(layers: int = 8) -> TinyModel:
    """Sliding windows of 8 tokens in all layers but 5, as the architecture has it by default."""
    own = {"block_count": (b.U32, layers), "attention.sliding_window": (b.U32, 8)}
    post: Shapes = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    roles = {**_ATTENTION, **_HEAD_NORMS, **_FFN_NORM, **_DENSE, **post}
    ends = {name: shape for name, shape in ENDS.items() if name != "output.weight"}
    return make_model("gemma3", own, {**ends, **_layers(*[roles] * layers)})


def deepseek2(groups: int = 2) -> TinyModel:
    """MLA; one dense layer, two of experts in groups, one of them shared, with `exp_probs_b`, and one MTP layer."""
    q_lora, kv_lora, rope, nope, value = 64, 64, 16, 32, 32
    own = {
        "block_count": (b.U32, 4),
        "nextn_predict_layers": (b.U32, 1),
        "leading_dense_block_count": (b.U32, 1),
        "attention.head_count_kv": (b.U32, 1),
        "attention.q_lora_rank": (b.U32, q_lora),
        "attention.kv_lora_rank": (b.U32, kv_lora),
        "attention.key_length": (b.U32, kv_lora + rope),
        "attention.value_length": (b.U32, kv_lora),
        "attention.key_length_mla": (b.U32, nope + rope),
        "attention.value_length_mla": (b.U32, value),
        "rope.dimension_count": (b.U32, rope),
        **_EXPERT_KEYS,
        "expert_group_count": (b.U32, groups),
        "expert_group_used_count": (b.U32, 1 if groups == 2 else groups // 2),
        "expert_shared_count": (b.U32, 1),
        "expert_weights_scale": (b.F32, 1.5),
        "expert_weights_norm": (b.BOOL, 1),
        "expert_gating_func": (b.U32, 2),
    }
    attention: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "attn_q_a_norm.weight": (q_lora,),
        "attn_kv_a_norm.weight": (kv_lora,),
        "attn_q_a.weight": (q_lora, WIDTH),
        "attn_q_b.weight": (HEADS * (nope + rope), q_lora),
        "attn_kv_a_mqa.weight": (kv_lora + rope, WIDTH),
        "attn_k_b.weight": (HEADS, kv_lora, nope),
        "attn_v_b.weight": (HEADS, value, kv_lora),
        "attn_output.weight": (WIDTH, HEADS * value),
    }
    experts: Shapes = {**_MOE, "exp_probs_b.bias": (EXPERTS,), **_SHARED}
    dense, moe = {**attention, **_FFN_NORM, **_DENSE}, {**attention, **_FFN_NORM, **experts}
    return make_model("deepseek2", own, {**ENDS, **_layers(dense, moe, moe, {**moe, **_MTP})})


def qwen35(layers: int = 8) -> TinyModel:
    """A hybrid: every fourth layer is attention, the others linear attention; and one MTP layer."""
    return _qwen35("qwen35", layers, {}, _DENSE)


def qwen35moe(layers: int = 4) -> TinyModel:
    """The same with experts, one of them shared."""
    own = {**_EXPERT_KEYS, "expert_shared_feed_forward_length": (b.U32, EXPERT_FF)}
    return _qwen35("qwen35moe", layers, own, {**_MOE, "ffn_gate_inp_shexp.weight": (WIDTH,), **_SHARED})


def _qwen35(architecture: str, layers: int, more: Mapping[str, tuple[int, Any]], ffn: Shapes) -> TinyModel:
    state, key_heads, value_heads = 32, 2, 4
    keys, values = state * key_heads, state * value_heads
    own = {
        "block_count": (b.U32, layers + 1),
        "nextn_predict_layers": (b.U32, 1),
        "full_attention_interval": (b.U32, 4),
        "rope.dimension_sections": (b.ARR, b.Array(b.I32, [6, 5, 5, 0])),
        "ssm.conv_kernel": (b.U32, 4),
        "ssm.inner_size": (b.U32, values),
        "ssm.state_size": (b.U32, state),
        "ssm.time_step_rank": (b.U32, value_heads),
        "ssm.group_count": (b.U32, key_heads),
        **more,
    }
    rest: Shapes = {"post_attention_norm.weight": (WIDTH,), **ffn}
    attention = {**_ATTENTION, "attn_q.weight": (2 * HEADS * HEAD, WIDTH), **_HEAD_NORMS, **rest}
    linear: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "attn_qkv.weight": (2 * keys + values, WIDTH),
        "attn_gate.weight": (values, WIDTH),
        "ssm_conv1d.weight": (2 * keys + values, 4),
        "ssm_dt.bias": (value_heads,),
        "ssm_a": (value_heads,),
        "ssm_beta.weight": (value_heads, WIDTH),
        "ssm_alpha.weight": (value_heads, WIDTH),
        "ssm_norm.weight": (state,),
        "ssm_out.weight": (WIDTH, values),
        **rest,
    }
    trunk = [attention if (layer + 1) % 4 == 0 else linear for layer in range(layers)]
    return make_model(architecture, own, {**ENDS, **_layers(*trunk, {**attention, **_MTP})})


def gpt_oss(layers: int = 4) -> TinyModel:
    """Experts with biases, attention with sinks, and sliding windows of 8 tokens in every other layer."""
    own = {"block_count": (b.U32, layers), **_EXPERT_KEYS, "attention.sliding_window": (b.U32, 8)}
    more: Shapes = {
        "post_attention_norm.weight": (WIDTH,),
        "attn_sinks.weight": (HEADS,),
        "attn_q.bias": (HEADS * HEAD,),
        "attn_k.bias": (KV_HEADS * HEAD,),
        "attn_v.bias": (KV_HEADS * HEAD,),
        "attn_output.bias": (WIDTH,),
        "ffn_gate_inp.bias": (EXPERTS,),
        "ffn_gate_exps.bias": (EXPERTS, EXPERT_FF),
        "ffn_up_exps.bias": (EXPERTS, EXPERT_FF),
        "ffn_down_exps.bias": (EXPERTS, WIDTH),
    }
    return make_model("gpt-oss", own, {**ENDS, **_layers(*[{**_ATTENTION, **_MOE, **more}] * layers)})


def lfm2moe() -> TinyModel:
    """A hybrid by list: layers without heads for keys are short convolutions; one dense layer, then experts."""
    heads = WIDTH // HEAD
    own = {
        "block_count": (b.U32, 4),
        "attention.head_count": (b.U32, heads),
        "attention.head_count_kv": (b.ARR, b.Array(b.U32, [0, KV_HEADS, 0, KV_HEADS])),
        "shortconv.l_cache": (b.U32, 3),
        "leading_dense_block_count": (b.U32, 1),
        "expert_gating_func": (b.U32, 2),
        **_EXPERT_KEYS,
    }
    convolution: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "shortconv.conv.weight": (WIDTH, 3),
        "shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    attention = {**_ATTENTION, "attn_q.weight": (WIDTH, WIDTH), "attn_output.weight": (WIDTH, WIDTH), **_HEAD_NORMS}
    experts = {**_FFN_NORM, **_MOE, "exp_probs_b.bias": (EXPERTS,)}
    kinds = [{**convolution, **_FFN_NORM, **_DENSE}]
    kinds += [{**kind, **experts} for kind in (attention, convolution, attention)]
    ends: Shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "token_embd_norm.weight": (WIDTH,)}
    return make_model("lfm2moe", own, {**ends, "output.weight": (VOCABULARY, WIDTH), **_layers(*kinds)})


MODELS: Mapping[str, Callable[[], TinyModel]] = {
    "llama": llama,
    "qwen3moe": qwen3moe,
    "gemma3": gemma3,
    "deepseek2": deepseek2,
    "qwen35": qwen35,
    "qwen35moe": qwen35moe,
    "gpt-oss": gpt_oss,
    "lfm2moe": lfm2moe,
}


def quantization(model: TinyModel, wide: str = "q4_K", narrow: str = "q8_0") -> Sequence[tuple[str, str]]:
    """A type for each matrix that engines quantize: `wide` where rows are whole blocks of 256, else `narrow`."""
    kept = ("norm", "bias", "ffn_gate_inp", "ssm_", "shortconv.conv", "attn_k_b", "attn_v_b")
    matrices = {name: array for name, array in model.weights.items() if array.ndim > 1}
    return [
        (name, wide if array.shape[-1] % 256 == 0 else narrow)
        for name, array in matrices.items()
        if not any(word in name for word in kept)
    ]
