"""How ik_llama.cpp's llama-quantize classifies a model: the architectures it knows, and sizes that change its mixes.

Source: src/llama-arch.cpp, src/llama-hparams.cpp (llm_load_hparams), at 8337e4cd.
"""

from __future__ import annotations

from typing import Final

# Layers of models of 70B and of 8B, by architecture.
_LAYERS_70B: Final = {"llama": {80}, "qwen2": {80}, "qwen2vl": {80}, "deci": {80}, "olmo": {80}}
_LAYERS_8B: Final = {"llama": {32, 36}, "qwen3": {36}, "qwen3vl": {36}, "cohere2": {32}, "mistral3": {34}}
_PLAIN_NORMS: Final = frozenset({"olmo", "cohere2"})
_WHOLE_HEADS: Final = frozenset({"llama", "deci"})
_MANY_TOKENS: Final = 127_999
_NAMES: Final = (
    "llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bert nomic-bert jina-bert-v2 "
    "bloom stablelm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35moe qwen35 "
    "mellum phi2 phi3 plamo codeshell orion internlm2 minicpm gemma gemma2 gemma3 starcoder2 mamba xverse "
    "command-r dbrx olmo openelm arctic deepseek2 deepseek4 chatglm glm4 glm4moe bitnet bitnet-25 bitnet-b1.58 t5 "
    "t5encoder jais granite granitemoe cohere2 cohere2_moe dots1 ernie4_5 ernie4_5-moe hunyuan-moe gpt-oss "
    "bailingmoe2 bailingmoe3 minimax-m2 minimax-m3 smollm3 mistral3 mimo2 seed_oss step35 laguna glm-dsa mistral4 "
    "gemma4 gemma4_mtp dflash dflash-draft gemma4-assistant openpangu muse-glimmer"
)
ARCHITECTURES: Final = frozenset(_NAMES.split())


def is_70b(architecture: str, layers: int, *, one_to_one: bool, experts: int) -> bool:
    """Whether ik_llama.cpp treats a model as one of 70B; `one_to_one`: it has as many heads of K and V as of Q."""
    if layers not in _LAYERS_70B.get(architecture, ()):
        return False
    return architecture != "llama" or not (one_to_one or experts == 8)


def is_8b(architecture: str, layers: int, *, width: int, experts: int) -> bool:
    """Whether ik_llama.cpp treats a model as one of 8B, if it has many tokens; `width`: the embedding length."""
    if layers not in _LAYERS_8B.get(architecture, ()):
        return False
    return experts != 8 if architecture == "llama" else width != 2560 or not architecture.startswith("qwen3")


def needed_keys(architecture: str) -> tuple[str, ...]:
    """The metadata without which llama-quantize continues but does not know layers and heads, or the model's size."""
    keys = [f"{architecture}.{key}" for key in ("block_count", "context_length", "embedding_length")]
    if architecture in _LAYERS_70B or architecture in _LAYERS_8B:
        norm = "layer_norm_epsilon" if architecture in _PLAIN_NORMS else "layer_norm_rms_epsilon"
        keys.append(f"{architecture}.attention.{norm}")
    return tuple(keys)


def rotates_whole_heads(architecture: str) -> bool:
    """Whether llama-quantize does not know the size of a model that rotates only parts of its heads."""
    return architecture in _WHOLE_HEADS


def has_many_tokens(tokens: int) -> bool:
    """Whether a model has as many tokens as Llama 3."""
    return tokens >= _MANY_TOKENS
