"""Special tokens by their text: `eos=<|im_end|>` becomes the id of that token in the model's vocabulary.

Sources of the names: LLM_KV_TOKENIZER_*_ID in src/llama-arch.cpp of both engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from gguftool.errors import PlanError, did_you_mean, listed, printable
from gguftool.format.kv import INTEGERS, KV, ByteOrder, ValueType, find_kv, make_kv
from gguftool.format.values import indices_of, parse_kv, type_spelling

TOKENS_KEY = "tokenizer.ggml.tokens"
TOKEN_TYPES_KEY = "tokenizer.ggml.token_type"
_SPECIAL = frozenset({3, 4})  # CONTROL and USER_DEFINED of llama_token_type
_MAX_NEAR = 5_000  # special tokens that an unknown text is compared with

# Name -> key below tokenizer.ggml; `seperator` is how both engines spell it.
_ODD_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
_NAMES = (
    "bos", "eos", "eot", "eom", "unk", "sep", "pad", "cls", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
    "prefix", "suffix", "middle",
)  # fmt: skip
SPECIAL_TOKENS = {name: f"tokenizer.ggml.{_ODD_KEYS.get(name, name)}_token_id" for name in _NAMES}


def token_key(name: str) -> str:
    """The key of the special token `name`, such as `eos`; raises `PlanError` for a name that no engine reads."""
    if name not in SPECIAL_TOKENS:
        near = did_you_mean(name, SPECIAL_TOKENS)
        raise PlanError(f"'{printable(name)}' is not a special token; those are {', '.join(SPECIAL_TOKENS)}{near}")
    return SPECIAL_TOKENS[name]


def token_value(kvs: Sequence[KV], name: str, text: str, byte_order: ByteOrder) -> KV:
    """The entry that makes the token with `text` the special token `name`; raises `PlanError` unless one has it."""
    key = token_key(name)
    vocabulary = find_kv(kvs, TOKENS_KEY)
    if vocabulary is None or type_spelling(vocabulary) != "str[]":
        raise PlanError(f"the model has no {TOKENS_KEY}; --set {key}=u32:ID sets the id itself")
    found = indices_of(vocabulary, text)
    if not found:
        raise PlanError(f"no token has the text '{printable(text)}'{_hint(kvs, vocabulary, key, text)}")
    if len(found) > 1:
        ids = listed([str(index) for index in found])
        raise PlanError(f"{len(found)} tokens have the text '{printable(text)}': {ids}; --set {key}=u32:ID chooses one")
    old = find_kv(kvs, key)
    if old is None or old.type not in INTEGERS:
        return make_kv(key, ValueType.UINT32, found[0], byte_order=byte_order)
    try:
        return parse_kv(key, type_spelling(old), str(found[0]), byte_order)
    except ValueError as error:
        raise PlanError(f"'{key}': {error}") from None


def _hint(kvs: Sequence[KV], vocabulary: KV, key: str, text: str) -> str:
    if text.isdecimal():
        return f"; --set {key}=u32:{text} sets an id" if find_kv(kvs, key) is None else f"; --set {key}={text} sets it"
    types = find_kv(kvs, TOKEN_TYPES_KEY)
    tokens = vocabulary.value()
    if types is not None and types.type is ValueType.ARRAY and types.element_type in INTEGERS:
        special = (token for token, kind in zip(tokens, types.value(), strict=False) if kind in _SPECIAL)
    else:
        special = (token for token in tokens if token.startswith(("<", "[")))
    return did_you_mean(text, islice(special, _MAX_NEAR))
