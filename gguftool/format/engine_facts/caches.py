"""How llama.cpp lays out the KV cache: architectures without one, or with another than keys and values by layer.

Source: llama.cpp b11434 (2026-10), src/llama-model.cpp (create_memory), src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp
(the cells of a window), src/models/gemma3n.cpp and gemma4.cpp (layers that use the cache of another).
"""

from __future__ import annotations

from typing import Final

# Encoders and diffusion models: all tokens are computed at once.
NO_CACHE: Final = frozenset(
    {
        "bert",
        "clef",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
        "wavtokenizer-dec",
    }
)
# A second cache, of an indexer, or a compressed one.
OTHER_CACHE: Final = frozenset({"deepseek32", "deepseek4", "glm-dsa", "glm5-next", "minimax-m3"})
SHARED_FROM: Final = {"gemma3n": 20}  # layers from this one on have no cache of their own
SHARED_KEY: Final = "attention.shared_kv_layers"  # this many of the last layers have no cache

CELLS: Final = 256  # a cache has a multiple of these, one for each token
UBATCH: Final = 512  # tokens computed at once by default; a sliding window holds these in addition to its own
