"""The values that an engine computes from the metadata before it asks for tensors.

Names are those of the engine's sources: ``n_embd`` and the like, and ``h_FIELD`` for what a key is read into. A value
is None if it depends on more than the metadata, or if the engine changes it in ways that were not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, wraps
from types import MappingProxyType
from typing import Any, Final

from gguftool.analysis.lint.rules import Check, Hit, Severity, rule
from gguftool.analysis.lint.target import LintTarget
from gguftool.format.engine_facts.engines import BOTH
from gguftool.format.engine_facts.heads import ArchitectureFacts, HeadFacts, KeyFact, Value, evaluate, head_facts
from gguftool.format.kv import KV, ValueType

NOT_REQUIRED, DUPLICATED, SKIP, SKIP_IF_VIRTUAL, ALLOW_RESHAPE = 1, 2, 4, 8, 16
ROPE_SCALINGS: Final = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_CONSTANTS: Final = {
    "TENSOR_NOT_REQUIRED": NOT_REQUIRED,
    "TENSOR_DUPLICATED": DUPLICATED,
    "TENSOR_SKIP": SKIP,
    "TENSOR_SKIP_IF_VIRTUAL": SKIP_IF_VIRTUAL,
    "TENSOR_ALLOW_RESHAPE": ALLOW_RESHAPE,
    "TENSOR_READ_LAZY": 32,
    **{f"LLAMA_ROPE_SCALING_TYPE_{name.upper()}": number for name, number in ROPE_SCALINGS.items()},
}
_OF_WINDOWS: Final = ("n_embd_head_k_swa", "n_embd_head_v_swa", "n_rot_swa")
_NO_VOCABULARY: Final = ("no_vocab", "none")
_FEW_EXPERTS_ARE_NONE: Final = ("hunyuan_vl", "hunyuan-vl", "hunyuan-dense")
EngineCheck = Callable[[LintTarget, str], Iterable[Hit]]
# The fields behind names: the first that an engine has counts. Then names that are computed from others.
_FIELDS: Final = {
    "n_embd": ("n_embd",),
    "n_layer_all": ("n_layer_all", "n_layer"),
    "n_layer_nextn": ("n_layer_nextn",),
    "n_head": ("n_head_arr",),
    "n_ff": ("n_ff_arr",),
    "n_ff_exp": ("n_ff_exp_arr",),
    "n_expert_used": ("n_expert_used_arr", "n_expert_used"),
    "is_recr": ("is_recr_impl",),
}
_EXPRESSIONS: Final = {
    "n_embd_k_gqa": "n_embd_head_k * h_n_head_kv_i",
    "n_embd_v_gqa": "n_embd_head_v * h_n_head_kv_i",
    "n_embd_gqa": "n_embd_head_v * h_n_head_kv_i",
    "is_mla": "h_n_embd_head_k_mla_impl != 0 and h_n_embd_head_v_mla_impl != 0",
    "n_embd_head_k_mla": "h_n_embd_head_k_mla_impl if h_is_mla_ else n_embd_head_k",
    "n_embd_head_v_mla": "h_n_embd_head_v_mla_impl if h_is_mla_ else n_embd_head_v",
}
_DEEPSTACK: Final = "n_deepstack_layers"  # ik_llama.cpp divides embedding_length by it plus one
_MOST_LAYERS: Final = 1024  # entries of an array that are decoded; engines take 512 layers
TOKENS: Final = "tokenizer.ggml.tokens"
MAX_DEPTH = 40  # of values computed from values


class Hyperparameters:
    """The values of one model, for one engine."""

    def __init__(
        self,
        target: LintTarget,
        facts: HeadFacts,
        architecture: ArchitectureFacts,
        assumed: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Compute values of `target`; `assumed` values of keys, or numbers of elements, count instead of its own."""
        self.assumed = assumed
        self.facts = facts
        self.architecture = architecture
        self.target = target
        self.kvs: dict[str, KV] = {}
        for kv in target.kvs:
            self.kvs.setdefault(kv.key, kv)
        self._locals: Mapping[str, str] = architecture.values
        self.keys_read: set[str] = set()  # so far, to compute values: no other key changes these
        self._decoded: dict[str, Any] = {}
        self._depth = 0

    def assuming(self, assumed: Mapping[str, int]) -> Hyperparameters:
        """Compute the values of the same model, with other values of some keys."""
        return Hyperparameters(self.target, self.facts, self.architecture, {**self.assumed, **assumed})

    @cached_property
    def key_facts(self) -> tuple[KeyFact, ...]:
        """Every place where a key is read, the architecture's own first."""
        return (*self.architecture.keys, *self.facts.general)

    def name_of(self, fact: KeyFact) -> str:
        """Name the key in this model."""
        return fact.name.replace("%s", self.target.architecture)

    def reads(self, fact: KeyFact) -> bool | None:
        """Whether the engine reads a key there; None if unknown."""
        self._locals = self.architecture.key_values
        try:
            return self.holds(fact.conditions)
        finally:
            self._locals = self.architecture.values

    def holds(self, conditions: tuple[str, ...], layer: int = 0) -> bool | None:
        """Whether all conditions are met: False if one is not, None if unknown."""
        found = [self.value(condition, layer) for condition in conditions]
        if any(one == 0 for one in found):
            return False
        return None if None in found else True

    def value(self, expression: str, layer: int = 0) -> Value:
        """Compute the value of an expression in `layer`."""
        return evaluate(expression, lambda name: self.named(name, layer))

    def named(self, name: str, layer: int = 0) -> Value:
        """Compute the value behind a name."""
        if name == "i":
            return layer
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name == "h_rope_scaling_type_train":
            return self._rope_scaling()
        if name in self._locals:
            return self._nested(self._locals[name], layer)
        if name.startswith("h_"):
            inner = name[2:]
            if inner.endswith("_"):
                return self._derived(inner[:-1], 0)
            return self._derived(inner[:-2], layer) if inner.endswith("_i") else self.field(inner)
        return self._derived(name, layer if name == "n_expert_used" else 0)

    def _rope_scaling(self) -> Value:
        name = self.target.string(f"{self.target.architecture}.rope.scaling.type") or "linear"
        return None if "rope_scaling_type_train" in self.architecture.assigned else ROPE_SCALINGS.get(name)

    def _has(self, field: str) -> bool:
        """Whether this engine has a value of that name."""
        return any(fact.field == field for fact in self.facts.general)

    def _nested(self, expression: str, layer: int) -> Value:
        if self._depth > MAX_DEPTH:
            return None
        self._depth += 1
        try:
            return self.value(expression, layer)
        finally:
            self._depth -= 1

    def field(self, name: str, layer: int = 0) -> Value:
        """Find what a key was read into, or its default if the key is absent."""
        if name in self.architecture.computed:
            return self._nested(self.architecture.computed[name], layer)
        if name in self.architecture.assigned or (name == "n_embd" and self._is_given(_DEEPSTACK)):
            return None
        fact = next((fact for fact in self.key_facts if fact.field == name), None)
        if fact is None:
            return None
        kv = self.kvs.get(self.name_of(fact))
        if kv is not None:
            self.keys_read.add(kv.key)
        if kv is not None and kv.key in self.assumed:
            return self.assumed[kv.key]
        if kv is None:
            return None if fact.required else 0 if fact.form == "either" else self.facts.defaults.get(name)
        if kv.key not in self._decoded:
            self._decoded[kv.key] = None if kv.type is ValueType.STRING else kv.value(_MOST_LAYERS)
        found = self._decoded[kv.key]
        if isinstance(found, list):
            found = found[layer] if layer < len(found) else None
        return int(found) if isinstance(found, int) else None

    def _derived(self, name: str, layer: int) -> Value:
        """Compute a value that the engine has a function for; there, no local name hides another."""
        hidden, self._locals = self._locals, {}
        try:
            return self._general(name, layer)
        finally:
            self._locals = hidden

    def _general(self, name: str, layer: int) -> Value:
        if name in _FIELDS:
            fields = _FIELDS[name]
            return self.field(next((field for field in fields if self._has(field)), fields[0]), layer)
        if name in _EXPRESSIONS:
            return self._nested(_EXPRESSIONS[name], layer)
        match name:
            case "n_layer":  # ik_llama.cpp counts the layers of multi-token prediction in
                return self.value("n_layer_all - h_n_layer_nextn" if self._has("n_layer_all") else "n_layer_all")
            case "n_head_kv":
                return self.field("n_head_kv_arr" if self._is_given("attention.head_count_kv") else "n_head_arr", layer)
            case "n_expert":
                return None if self.target.architecture in _FEW_EXPERTS_ARE_NONE else self.field("n_expert")
            case "n_embd_head_k":
                return self._head_length("n_embd_head_k_full", "attention.key_length", "n_embd // n_head")
            case "n_embd_head_v":
                return self._head_length("n_embd_head_v_full", "attention.value_length", "n_embd // n_head")
            case "n_rot":
                field = "n_rot_full" if self._has("n_rot_full") else "n_rot"
                return self._head_length(field, "rope.dimension_count", "n_embd_head_k")
            case "n_vocab":
                return self._vocabulary()
        return None

    def _is_given(self, key: str) -> bool:
        return f"{self.target.architecture}.{key}" in self.kvs

    def _head_length(self, field: str, key: str, default: str) -> Value:
        """Compute a length of each head: from a key, or by default from an expression."""
        if field in self.architecture.assigned or self._has_windows:
            return None
        if self.named("n_head") == 0:  # to the engine this is a model without attention
            return 0
        return self.field(field) if self._is_given(key) else self._nested(default, 0)

    @cached_property
    def _has_windows(self) -> bool:
        """Whether layers with a sliding window have heads of another size."""
        keys = [fact for fact in self.key_facts if fact.field in _OF_WINDOWS]
        return any(self.name_of(fact) in self.kvs for fact in keys)

    def _vocabulary(self) -> Value:
        if self.target.string("tokenizer.ggml.model") in _NO_VOCABULARY:
            return self.target.integer(f"{self.target.architecture}.vocab_size") or 0
        tokens = self.kvs.get(TOKENS)
        if TOKENS in self.assumed:
            return self.assumed[TOKENS]
        return tokens.count if tokens is not None and tokens.type is ValueType.ARRAY else None


def has_head(target: LintTarget) -> bool:
    """Whether `target` has a model's head to judge; if not, rules about files say what it is instead."""
    return target.has_metadata and target.architecture not in ("", "clip") and target.kind in ("", "model")


def judged_by(target: LintTarget, engine: str) -> HeadFacts | None:
    """Find the facts by which the head of `target` can be judged."""
    return head_facts(engine) if has_head(target) else None


def per_engine(
    code: str, severity: Severity, *, way_out: str, engines: tuple[str, ...] = BOTH
) -> Callable[[EngineCheck], EngineCheck]:
    """Register the decorated function as one rule for each engine; it gets the engine's name."""

    def register(check: EngineCheck) -> EngineCheck:
        for engine in engines:
            rule(code, severity, way_out=way_out, engines=(engine,))(_bound(check, engine))
        return check

    return register


def _bound(check: EngineCheck, engine: str) -> Check:
    @wraps(check)
    def bound(target: LintTarget) -> Iterable[Hit]:
        return check(target, engine)

    return bound


def hyperparameters(target: LintTarget, engine: str) -> Iterator[Hyperparameters]:
    """Yield the values of `target` for `engine`; nothing if the engine does not know the architecture."""
    facts = judged_by(target, engine)
    architecture = facts.architectures.get(target.architecture) if facts else None
    if facts is not None and architecture is not None:
        yield Hyperparameters(target, facts, architecture)
