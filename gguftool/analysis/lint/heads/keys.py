"""Rules about metadata that loaders read: the architecture, types of keys, required keys, counts that must agree.

Sources: llama.cpp src/llama-model.cpp (load_hparams), src/models/*.cpp (load_arch_hparams) and
src/llama-model-loader.cpp (get_key, get_arr, get_key_or_arr), as data in format/engine_facts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Final

from gguftool.analysis.lint.heads.causes import named_for, set_layers
from gguftool.analysis.lint.heads.hyperparameters import (
    ROPE_SCALINGS,
    Hyperparameters,
    hyperparameters,
    judged_by,
    per_engine,
)
from gguftool.analysis.lint.rules import Hit, Severity
from gguftool.analysis.lint.target import LintTarget
from gguftool.analysis.lint.way_out import edit_command, filled
from gguftool.errors import printable
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.heads import KeyFact
from gguftool.format.file_names import SPLIT_KEYS
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import INTEGERS, KV, ValueType, find_kv

MAX_BLOCKS: Final = 512  # LLAMA_MAX_LAYERS, llama-hparams.h
WHOLE_HEAD_ROPE: Final[dict[str, tuple[str, ...]]] = {  # n_rot must be the head length
    LLAMA_CPP: ("llama", "deci", "falcon", "llama-embed"),
    IK_LLAMA_CPP: ("llama", "deci", "falcon", "bitnet-25", "bitnet-b1.58"),
}
_ARRAYS: Final = {"UINT32": ("UINT32", "INT32"), "INT32": ("UINT32", "INT32")}

# Keys that are read by name, whatever the architecture; llama-vocab.cpp and llama-model-loader.cpp.
FIXED: Final = {
    "general.name": "STRING",
    "split.count": "UINT16",
    "tokenizer.ggml.model": "STRING",
    "tokenizer.ggml.pre": "STRING",
    "tokenizer.ggml.token_type_count": "UINT32",
    "tokenizer.ggml.add_space_prefix": "BOOL",
    "tokenizer.ggml.remove_extra_whitespaces": "BOOL",
    "tokenizer.ggml.add_bos_token": "BOOL",
    "tokenizer.ggml.add_eos_token": "BOOL",
    "tokenizer.ggml.add_sep_token": "BOOL",
    "tokenizer.ggml.normalizer.lowercase": "BOOL",
    "tokenizer.ggml.normalizer.strip_accents": "BOOL",
}
_ALWAYS_READ: Final = ("general.name", "split.count", "tokenizer.ggml.model", "tokenizer.ggml.pre")

_SPELLINGS: Final = {"UINT32": "u32", "UINT16": "u16", "FLOAT32": "f32"}
_COUNTED: Final = {  # keys with a number that equals a dim: the tensor, and the index of the dim
    "embedding_length": ("token_embd.weight", 0),
    "feed_forward_length": ("ffn_up.weight", 1),
    "expert_count": ("ffn_up_exps.weight", 2),
    "expert_feed_forward_length": ("ffn_up_exps.weight", 1),
}
_TYPE_OUT = "edit --set with --force-type writes it with the required type"
_SET_OUT = "edit --set writes it; the original model has the value"


def _shown(text: str) -> str:
    return f"'{printable(text, 80)}'"


@per_engine("K01", Severity.ERROR, way_out="use a release of the engine that knows it, or correct the key")
def unknown_architecture(target: LintTarget, engine: str) -> Iterator[Hit]:
    """The engine, as of the release that the rules know, does not know the architecture."""
    facts = judged_by(target, engine)
    if facts is None or target.architecture in facts.architectures:
        return
    near = difflib.get_close_matches(target.architecture, facts.architectures, n=1)
    hint = f"; the nearest name is '{near[0]}'" if near else ""
    message = f"general.architecture is {_shown(target.architecture)}, which {engine} {facts.release} does not know"
    yield Hit(message=message + hint, where=ARCHITECTURE_KEY, way_out=named_for(target), cause=ARCHITECTURE_KEY)


# --- types -----------------------------------------------------------------------------------------------------------


@per_engine("K02", Severity.ERROR, way_out=_TYPE_OUT)
def wrong_type(target: LintTarget, engine: str) -> Iterator[Hit]:
    """A key that the engine reads has another value type than it accepts."""
    facts = judged_by(target, engine)
    if facts is None:
        return
    kinds = dict.fromkeys(facts.special_tokens, "UINT32") | FIXED
    if target.string("tokenizer.ggml.model") in ("no_vocab", "none"):  # then no other key is read
        kinds = {
            key: kinds[key] for key in ("general.name", "split.count", "tokenizer.ggml.model", "tokenizer.ggml.pre")
        }
    kvs = {kv.key: kv for kv in reversed(target.kvs)}
    for key, kind in kinds.items():
        if key in kvs and kvs[key].type.name != kind:
            yield _wrong(target, kvs[key], [kind])
    for values in hyperparameters(target, engine):
        for key, readings in _readings(values).items():
            if not any(_accepts(fact, values.kvs[key]) for fact in readings):
                wanted = dict.fromkeys(fact.type if fact.form == "scalar" else f"[{fact.type}]" for fact in readings)
                yield _wrong(target, values.kvs[key], list(wanted))


def _readings(values: Hyperparameters) -> dict[str, list[KeyFact]]:
    """Find the places where each present key is read; leave out keys with a place that is not understood."""
    found: dict[str, list[KeyFact]] = {}
    unclear: set[str] = set()
    for fact in values.key_facts:
        key, holds = values.name_of(fact), values.reads(fact)
        if key not in values.kvs or holds is False:
            continue
        if holds is None or (not fact.type and fact.form != "array"):
            unclear.add(key)
        found.setdefault(key, []).append(fact)
    return {key: facts for key, facts in found.items() if key not in unclear}


def _accepts(fact: KeyFact, kv: KV) -> bool:
    """Whether the engine takes the entry's type where `fact` reads it."""
    if kv.type is not ValueType.ARRAY:
        # The engine skips an optional array of another type
        return not fact.required if fact.form == "array" else kv.type.name == fact.type
    if fact.form == "scalar":
        return False
    kinds = _ARRAYS.get(fact.type, (fact.type,))
    return not fact.type or kv.element_type.name in (*kinds, "BOOL")


def _wrong(target: LintTarget, kv: KV, wanted: list[str]) -> Hit:
    found = f"[{kv.element_type.name}]" if kv.type is ValueType.ARRAY else kv.type.name
    message = f"{_shown(kv.key)} is {found}; it must be {' or '.join(wanted)}"
    number = kv.type in (*INTEGERS, ValueType.FLOAT32, ValueType.FLOAT64)
    spelling = _SPELLINGS.get(wanted[0])
    if not number or spelling is None or (spelling != "f32" and kv.type not in INTEGERS):
        return Hit(message=message, where=printable(kv.key, 80))
    value = float(kv.value()) if spelling == "f32" else int(kv.value())
    command = edit_command(
        target, "--set", f"{kv.key}={spelling}:{value}", "--force-type", does="writes it with that type"
    )
    if kv.key in SPLIT_KEYS:  # edit leaves them to merge
        command = filled("'gguftool merge FILE -o NEW' writes one file without it", target)
    return Hit(message=message, where=printable(kv.key, 80), way_out=command)


# --- presence and values ---------------------------------------------------------------------------------------------


@per_engine("K03", Severity.ERROR, way_out=_SET_OUT)
def required_key(target: LintTarget, engine: str) -> Iterator[Hit]:
    """A key that the architecture requires is absent."""
    facts = judged_by(target, engine)
    if facts is not None and "tokenizer.ggml.model" not in {kv.key for kv in target.kvs}:
        yield Hit(message="'tokenizer.ggml.model' is absent", where="tokenizer.ggml.model")
    renamed = named_for(target)
    for values in hyperparameters(target, engine):
        for fact in values.key_facts:
            key = values.name_of(fact)
            absent = fact.required and key not in values.kvs and not _is_given(values, fact)
            if absent and values.reads(fact):
                kind = f" ({fact.type})" if fact.type else ""
                message, where = f"{_shown(key)} is absent{kind}", printable(key, 80)
                cause = ARCHITECTURE_KEY if renamed else ""
                yield Hit(message=message, where=where, way_out=renamed or _counted(target, key), cause=cause)


def _counted(target: LintTarget, key: str) -> str:
    """Write the command that sets a key to the value that the tensors show; "" if they show none."""
    name = key.removeprefix(f"{target.architecture}.")
    if name == "block_count":
        layers = len(target.layers)
        found = {layers} if layers and max(target.layers) == layers - 1 else set()
    else:
        role, axis = _COUNTED.get(name, ("", 0))
        found = {dims[axis] for t in target.tensors if t.role == role and len(dims := t.info.dims) > axis}
    if len(found) != 1:
        return ""
    return edit_command(target, "--set", f"{key}=u32:{found.pop()}", does="sets the value that the tensors have")


def _is_given(values: Hyperparameters, absent: KeyFact) -> bool:
    """Whether another key that is read into the same value is present."""
    others = (fact for fact in values.key_facts if absent.field and fact.field == absent.field)
    return any(values.name_of(fact) in values.kvs for fact in others)


# The rest does not show which layers were dropped or repeated.
_ENTRIES_OUT = (
    "make it again from the original: alter --layers drops and repeats layers with their entries; "
    "or edit --set writes one entry for each layer"
)


@per_engine("K04", Severity.ERROR, way_out=_ENTRIES_OUT)
def length_of_array(target: LintTarget, engine: str) -> Iterator[Hit]:
    """An array with one entry per layer has more or fewer entries than there are layers."""
    for values in hyperparameters(target, engine):
        seen: set[str] = set()
        for fact in values.key_facts:
            key = values.name_of(fact)
            kv = values.kvs.get(key)
            if not fact.length or kv is None or kv.type is not ValueType.ARRAY or not values.reads(fact):
                continue
            wanted = values.value(fact.length)
            if wanted is not None and kv.count != wanted and key not in seen:
                seen.add(key)
                message = f"{_shown(key)} has {kv.count:,} entries; the metadata counts {wanted:,} layers"
                fits = kv.count == len(target.layers)  # then block_count is wrong
                cause = f"{target.architecture}.block_count" if fits else ""
                yield Hit(message=message, where=printable(key, 80), cause=cause)


@per_engine("K05", Severity.ERROR, way_out=_SET_OUT)
def numbers_of_experts(target: LintTarget, engine: str) -> Iterator[Hit]:
    """The numbers of experts, of experts in use and of groups do not fit together: the engine aborts."""
    for values in hyperparameters(target, engine):
        experts, blocks = values.named("n_expert"), values.named("n_layer_all")
        if experts is None or blocks is None:
            continue
        most = values.facts.limits.get("experts", experts)
        if experts > most:
            message = f"expert_count is {experts:,}; {engine} {values.facts.release} is built for {most:,}"
            yield Hit(message=message, where="expert_count")
        every = [values.named("n_expert_used", layer) for layer in range(min(max(blocks, 1), MAX_BLOCKS))]
        if None not in every:
            yield from _use_hits(target, experts, max(one or 0 for one in every))
        groups = values.field("n_expert_groups")
        if engine == LLAMA_CPP and groups is not None:
            yield from _group_hits(experts, groups, values.field("n_group_used"))


def _use_hits(target: LintTarget, experts: int, used: int) -> Iterator[Hit]:
    key = f"{target.architecture}.expert_count"
    if used > experts == 0:
        message = f"expert_used_count is {used:,}, but expert_count is absent or 0"
        out = "" if find_kv(target.kvs, key) else _counted(target, key)
        yield Hit(message=message, where=key, way_out=out, cause=key)
    elif used > experts:
        yield Hit(message=f"expert_used_count is {used:,}, expert_count {experts:,}", where="expert_used_count")
    elif experts and not used:
        message = f"expert_count is {experts:,}, but expert_used_count is absent or 0"
        yield Hit(message=message, where="expert_used_count")


def _group_hits(experts: int, groups: int, used: int | None) -> Iterator[Hit]:
    problems = (
        (experts > 0 and groups >= experts, f"expert_group_count is {groups:,} of {experts:,} experts"),
        (experts == 0 and groups > 0, f"expert_group_count is {groups:,}, but there are no experts"),
        (groups > 1 and experts % groups > 0, f"{groups:,} groups do not divide {experts:,} experts"),
        (groups > 1 and used is not None and not 0 < used < groups, f"expert_group_used_count is {used} of {groups:,}"),
    )
    yield from (Hit(message=message, where="expert_group_count") for wrong, message in problems if wrong)


@per_engine("K06", Severity.ERROR, way_out=_SET_OUT)
def value_out_of_range(target: LintTarget, engine: str) -> Iterator[Hit]:
    """The engine refuses a value in the metadata, or aborts on it."""
    for values in hyperparameters(target, engine):
        arch, blocks, nextn = target.architecture, values.named("n_layer_all"), values.field("n_layer_nextn")
        if engine == LLAMA_CPP and blocks is not None and not 0 < blocks <= MAX_BLOCKS:
            message, key = f"{arch}.block_count is {blocks:,}; it must be 1 to {MAX_BLOCKS}", f"{arch}.block_count"
            yield Hit(message=message, where="block_count", way_out=set_layers(target), cause=key)
        if engine == LLAMA_CPP and blocks is not None and nextn is not None and nextn > blocks:
            yield Hit(message=f"nextn_predict_layers is {nextn:,} of {blocks:,} layers", where="nextn_predict_layers")
        scaling = target.string(f"{arch}.rope.scaling.type")
        if scaling and scaling not in ROPE_SCALINGS:
            message = f"{arch}.rope.scaling.type is {_shown(scaling)}; it must be one of {', '.join(ROPE_SCALINGS)}"
            yield Hit(message=message, where="rope.scaling.type")
        yield from _rope(values, arch, engine)


def _rope(values: Hyperparameters, arch: str, engine: str) -> Iterator[Hit]:
    heads = values.named("n_head")
    rotated, length = values.named("n_rot"), values.named("n_embd_head_k")
    if arch in WHOLE_HEAD_ROPE[engine] and heads and rotated is not None and length is not None and rotated != length:
        message = f"{arch}.rope.dimension_count is {rotated:,}, but the heads have {length:,} dimensions"
        yield Hit(message=message, where="rope.dimension_count")
