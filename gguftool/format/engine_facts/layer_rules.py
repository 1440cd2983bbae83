"""Values that the engines derive from the number of a layer, or from the number of layers: rules as data.

A rule is an expression in Python's syntax over ``i`` (the layer), ``n_layer`` (layers without MTP), ``n_layer_all``,
``n_expert``, ``n_vocab`` and the names in `names`, each a key of the architecture and its default;
`heads.evaluate` computes it.  After an operation on layers each layer must have the value that it had in its own model,
and the whole model must keep its value: else the file computes something else, or does not load.

Sources: llama.cpp b11434 (2026-10) and ik_llama.cpp 8337e4cd (2026-08-15).  Arrays with an entry for each layer are in
`layer_keys.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.record import record

Names = Mapping[str, tuple[str, int]]


@record
class LayerRule:
    """A value that `engine` gives each layer of `architectures` by its number.

    `array` is the key of an array, with one entry for each layer, that replaces the rule; empty if there is none.
    """

    what: str
    engine: str
    architectures: tuple[str, ...]
    rule: str
    names: Names
    source: str
    array: str = ""


@record
class CountRule:
    """A decision of `engine` about a whole model of `architectures` by its number of layers or experts."""

    what: str
    engine: str
    architectures: tuple[str, ...]
    rule: str
    source: str
    names: Names


_PATTERN: Final = "attention.sliding_window_pattern"
_PERIOD: Final = "full_attention_interval"
_LAST_DENSE: Final = "i < n_layer and window != 0 and (period == 0 or i % period < period - 1)"
_FIRST_DENSE: Final = "i < n_layer and window != 0 and (period == 0 or i % period != 0)"


def _window(architecture: str, period: int, source: str, *, rule: str = _LAST_DENSE, window: int = 0) -> LayerRule:
    """Mainline's load_swa_pattern: an array, or a period with a default; `window` is the default of its width."""
    return LayerRule(
        what="sliding window",
        engine=LLAMA_CPP,
        architectures=(architecture,),
        rule=rule,
        names={"period": (_PATTERN, period), "window": ("attention.sliding_window", window)},
        array=_PATTERN,
        source=f"src/models/{source}.cpp",
    )


def _rule(
    what: str, engine: str, architectures: Iterable[str], rule: str, source: str, names: Names | None = None
) -> LayerRule:
    return LayerRule(
        what=what, engine=engine, architectures=tuple(architectures), rule=rule, names=names or {}, source=source
    )


def _recurrent(architectures: Iterable[str], period: int, source: str) -> LayerRule:
    return LayerRule(
        what="linear attention",
        engine=LLAMA_CPP,
        architectures=tuple(architectures),
        rule="i < n_layer and (i + 1) % period != 0",
        names={"period": (_PERIOD, period)},
        array="attention.recurrent_layers",
        source=source,
    )


_BOTH: Final = (LLAMA_CPP, IK_LLAMA_CPP)
_STEP: Final[Names] = {"step": ("interleave_moe_layer_step", 0)}
_STEP_AND_LEAD: Final[Names] = {**_STEP, "lead": ("leading_dense_block_count", 0)}
_IK: Final = "src/llama-hparams.cpp"

LAYER_RULES: Final[tuple[LayerRule, ...]] = (
    _window("exaone-moe", 4, "exaone-moe", window=128),
    _window("exaone4", 4, "exaone4", window=4096, rule=f"n_layer == 64 and {_LAST_DENSE}"),
    _window("gemma2", 2, "gemma2", window=4096),
    _window("gemma3", 6, "gemma3"),
    _window("gemma3n", 5, "gemma3n"),
    _window("gemma-embedding", 6, "gemma-embedding"),
    _window("olmo2", 4, "olmo2"),
    _window("plamo3", 8, "plamo3"),
    _window("llama4", 4, "llama4", window=8192),
    _window("muse-glimmer", 4, "muse-glimmer"),
    _window("gpt-oss", 2, "openai-moe"),
    _window("afmoe", 4, "afmoe"),
    _window("cohere2", 4, "cohere2"),
    _window("mellum", 4, "mellum"),
    _window("cohere2moe", 4, "cohere2moe", rule=_FIRST_DENSE),
    _window("laguna", 4, "laguna", rule=_FIRST_DENSE),
    _window("smallthinker", 4, "smallthinker", rule=_FIRST_DENSE),
    _window("modern-bert", 3, "modern-bert", rule=_FIRST_DENSE),
    _rule("sliding window", IK_LLAMA_CPP, ("gemma2",), "i % 2 == 0", "src/graphs/build_gemma2.cpp"),
    _rule("sliding window", IK_LLAMA_CPP, ("gemma3",), "(i + 1) % 6 != 0", "src/graphs/build_gemma3.cpp"),
    _rule("sliding window", IK_LLAMA_CPP, ("cohere2",), "i % 4 < 3", "src/graphs/build_cohere2.cpp"),
    _rule("sliding window", IK_LLAMA_CPP, ("gpt-oss",), "i % 2 < 1", "src/graphs/build_openai.cpp"),
    _rule("chunked attention", IK_LLAMA_CPP, ("llama4",), "i % 4 < 3", "src/graphs/build_llama.cpp"),
    LayerRule(
        what="sliding window",
        engine=IK_LLAMA_CPP,
        architectures=("muse-glimmer",),
        rule="(i + 1) % period != 0",
        names={"period": (_PATTERN, 4)},
        array=_PATTERN,
        source=_IK,
    ),
    LayerRule(  # one number under the key is the same for all layers here
        what="sliding window",
        engine=IK_LLAMA_CPP,
        architectures=("mellum",),
        rule="window != 0 and ((i + 1) % 4 != 0 if same == -1 else same != 0)",
        names={"same": (_PATTERN, -1), "window": ("attention.sliding_window", 0)},
        array=_PATTERN,
        source=_IK,
    ),
    # linear attention
    _recurrent(("qwen35", "qwen35moe", "qwen3next", "qwen4exp", "clef"), 4, "src/models/qwen35.cpp, qwen4exp.cpp"),
    _recurrent(("minimax-01",), 8, "src/models/minimax-01.cpp"),
    _rule(
        "linear attention",
        IK_LLAMA_CPP,
        ("qwen35", "qwen35moe"),
        "i < n_layer and (i + 1) % period != 0",
        _IK,
        {"period": (_PERIOD, 4)},
    ),
    _rule("linear attention", IK_LLAMA_CPP, ("qwen3next",), "(i + 1) % 4 != 0", _IK),
    _rule("slope of the attention", LLAMA_CPP, ("minimax-01",), "i", "src/models/minimax-01.cpp"),
    # experts
    *(
        _rule("experts", engine, ("llama4",), "step > 0 and (i + 1) % step == 0", "src/models/llama4.cpp", _STEP)
        for engine in _BOTH
    ),
    *(
        _rule(
            "experts",
            engine,
            ("ernie4_5-moe",),
            "i >= lead and (i + 1) % step == 0",
            "src/models/ernie4-5-moe.cpp",
            _STEP_AND_LEAD,
        )
        for engine in _BOTH
    ),
    _rule(
        "experts",
        LLAMA_CPP,
        ("nomic-bert-moe",),
        "every > 0 and i % every == 1",
        "src/models/nomic-bert-moe.cpp",
        {"every": ("moe_every_n_layers", 0)},
    ),
    # RoPE in some layers
    _rule(
        "RoPE",
        LLAMA_CPP,
        ("llama4",),
        "(i + 1) % (n_layer if window == 0 else 4) != 0",
        "src/models/llama4.cpp",
        {"window": ("attention.sliding_window", -1)},
    ),
    _rule("RoPE", IK_LLAMA_CPP, ("llama4",), "(i + 1) % 4 != 0", "src/graphs/build_llama.cpp"),
    *(_rule("RoPE", engine, ("smollm3",), "(i + 1) % 4 != 0", "src/models/smollm3.cpp") for engine in _BOTH),
    _rule("RoPE", LLAMA_CPP, ("afmoe",), "(i + 1) % 4 != 0", "src/models/afmoe.cpp"),
    _rule(
        "RoPE",
        LLAMA_CPP,
        ("smallthinker",),
        "window == 0 or i % 4 != 0",
        "src/models/smallthinker.cpp",
        {"window": ("attention.sliding_window", 0)},
    ),
    # shared keys and values, indexers
    _rule(  # layers from 20 on take those of 18 and 19
        "keys and values",
        LLAMA_CPP,
        ("gemma3n",),
        "i - 16 if i == 18 or i == 19 else i < 20",
        "src/models/gemma3n.cpp, src/llama-model.cpp",
    ),
    LayerRule(
        what="indexer",
        engine=LLAMA_CPP,
        architectures=("glm-dsa",),
        rule="i < n_layer and (context < 1048576 or i <= 1 or (i < 78 and i % 4 == 2))",
        names={"context": ("context_length", 0)},
        array="attention.indexer.types",
        source="src/models/glm-dsa.cpp",
    ),
    _rule("indexer", IK_LLAMA_CPP, ("glm-dsa",), "i < n_layer and (i <= 1 or i % 4 == 2)", _IK),
    # other periods
    _rule(
        "halved activations",
        LLAMA_CPP,
        ("rwkv6", "rwkv6qwen2"),
        "i // every if every != 0 else 0",
        "src/models/rwkv6.cpp; the converter divides the weights to match",
        {"every": ("rescale_every_n_layers", 0)},
    ),
    _rule(
        "residual checkpoint",
        LLAMA_CPP,
        ("kimi-k3",),
        "block > 0 and i % block == 0",
        "src/models/kimi-k3.cpp",
        {"block": ("attn_res.block_size", 0)},
    ),
    # the first layer
    _rule("first layer's value projection", LLAMA_CPP, ("rwkv7", "arwkv7"), "i == 0", "src/models/rwkv7.cpp"),
    _rule("first layer without a norm", LLAMA_CPP, ("modern-bert",), "i == 0", "src/models/modern-bert.cpp"),
)


def _count(
    what: str, engine: str, architectures: Iterable[str], rule: str, source: str, **names: tuple[str, int]
) -> CountRule:
    return CountRule(
        what=what, engine=engine, architectures=tuple(architectures), rule=rule, source=source, names=names
    )


_LITE: Final = "{n} == 26 or {n} == 27 or ({n} == 48 and n_vocab == 128256)"
_DEEPSEEK_2: Final = ("deepseek2", "mistral4")
_GATING: Final = ("expert_gating_func", 0)

COUNT_RULES: Final[tuple[CountRule, ...]] = (
    _count("attention scale (27B)", LLAMA_CPP, ("gemma2",), "n_layer == 46", "src/models/gemma2.cpp:25"),
    _count("attention scale (27B)", LLAMA_CPP, ("gemma3",), "n_layer == 62", "src/models/gemma3.cpp:29"),
    _count("attention scale (27B)", IK_LLAMA_CPP, ("gemma3",), "n_layer_all == 62", f"{_IK}:846"),
    _count(
        "attention scale, known for 26, 42 and 46 layers only",
        IK_LLAMA_CPP,
        ("gemma2",),
        "1 if n_layer_all == 26 or n_layer_all == 42 else 2 if n_layer_all == 46 else 0",
        "src/graphs/build_gemma2.cpp:46",
    ),
    _count(
        "attention of a Lite model", LLAMA_CPP, _DEEPSEEK_2, _LITE.format(n="n_layer"), "src/models/deepseek2.cpp:8"
    ),
    _count("attention of a Lite model", IK_LLAMA_CPP, _DEEPSEEK_2, _LITE.format(n="n_layer_all"), f"{_IK}:1106"),
    _count(
        "gating function",
        LLAMA_CPP,
        _DEEPSEEK_2,
        "gating == 0 and (n_layer == 47 or n_layer == 48) and n_vocab == 154880",
        "src/models/deepseek2.cpp:26",
        gating=_GATING,
    ),
    _count(
        "gating function",
        IK_LLAMA_CPP,
        _DEEPSEEK_2,
        "gating == 0 and (n_layer_all == 47 or n_layer_all == 48)",
        f"{_IK}:1127",
        gating=_GATING,
    ),
    _count("sliding window", LLAMA_CPP, ("exaone4",), "n_layer == 64", "src/models/exaone4.cpp:4"),
    *(
        _count(
            "ALiBi or RoPE", engine, ("baichuan",), "1 if n_layer_all == 40 else 2 if n_layer_all == 32 else 0", source
        )
        for engine, source in ((LLAMA_CPP, "src/models/baichuan.cpp:11"), (IK_LLAMA_CPP, f"{_IK}:377"))
    ),
    *(
        _count("norms of queries and keys", engine, ("command-r",), "n_layer_all >= 64", source)
        for engine, source in (
            (LLAMA_CPP, "src/models/command-r.cpp:28"),
            (IK_LLAMA_CPP, "src/llama-load-tensors.cpp:2699"),
        )
    ),
    *(
        _count("norms of queries and keys", engine, ("llama4",), "n_expert == 128", source)
        for engine, source in ((LLAMA_CPP, "src/models/llama4.cpp:41"), (IK_LLAMA_CPP, f"{_IK}:303"))
    ),
    _count(
        "width of the sliding window",
        IK_LLAMA_CPP,
        ("phi3",),
        "0 if window >= 0 else 1 if n_layer_all == 32 else 2 if n_layer_all == 40 else 0",
        f"{_IK}:741",
        window=("attention.sliding_window", -1),
    ),
    _count("slope of the attention", LLAMA_CPP, ("minimax-01",), "n_layer", "src/models/minimax-01.cpp:288"),
    _count("number of layers of a draft", LLAMA_CPP, ("eagle3",), "n_layer == 1", "src/models/eagle3.cpp:156"),
    _count(
        "number of MTP layers, which it takes for 0",
        IK_LLAMA_CPP,
        ("deepseek4",),
        "n_layer_all == 43 and mtp > 0",
        f"{_IK}:1746",
        mtp=("nextn_predict_layers", 0),
    ),
)


# Architectures without a single list of layers `blk.N` that runs once from first to last, and why.
NO_LAYER_LIST: Final[dict[str, str]] = {
    "clip": "a projector counts its layers by clip.vision.block_count and clip.audio.block_count",
    "hrm_text": "its layers run several times, and block_count counts the runs",
    "t5": "it has layers of an encoder and of a decoder",
    "t5encoder": "its layers are those of an encoder, enc.blk.N",
    "wavtokenizer-dec": "it has layers of a posnet and of a convnext",
}

# Architectures that load with more than one MTP layer, and abort when they run it. Source: graph_mtp in src/models.
ONE_MTP_LAYER: Final = frozenset(
    {
        "bailingmoe3",
        "cohere2moe",
        "deepseek2",
        "deepseek32",
        "deepseek4",
        "glm-dsa",
        "glm4moe",
        "mistral4",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "qwen4exp",
    }
)


def layer_rules(architecture: str, engines: Iterable[str]) -> tuple[LayerRule, ...]:
    """The rules for layers of `architecture` in `engines`."""
    wanted = frozenset(engines)
    return tuple(rule for rule in LAYER_RULES if rule.engine in wanted and architecture in rule.architectures)


def count_rules(architecture: str, engines: Iterable[str]) -> tuple[CountRule, ...]:
    """The rules for whole models of `architecture` in `engines`."""
    wanted = frozenset(engines)
    return tuple(rule for rule in COUNT_RULES if rule.engine in wanted and architecture in rule.architectures)
