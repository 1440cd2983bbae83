"""Rewrite the metadata for a selection of tokens: texts, scores, types, merges, and every key with a token's number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, TypeGuard

from gguftool.errors import printable
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.kv import INTEGERS, KV, ByteOrder, ValueType
from gguftool.model.remap.head_values import HeadValues, Remapped, Rewrite
from gguftool.model.remap.periods import check_counts

_TOKENS: Final = "tokenizer.ggml.tokens"
_SCORES: Final = "tokenizer.ggml.scores"
_TYPES: Final = "tokenizer.ggml.token_type"
_MERGES: Final = "tokenizer.ggml.merges"
_BY_TOKEN: Final = (_TOKENS, _SCORES, _TYPES)
_SUPPRESSED: Final = "tokenizer.ggml.suppress_tokens"  # never sampled; removed tokens need no entry
_HASHED: Final = "ple.layers"  # qwen4exp looks up n-grams by a hash of tokens' numbers
_IDS: Final = re.compile(r"token_ids?(?:_\w+)?$", re.ASCII)  # tokenizer.ggml.eos_token_id, adapters.token_ids_activate
_UNUSED: Final = 5  # LLAMA_TOKEN_TYPE_UNUSED, llama.h
_BYTE: Final = 6  # LLAMA_TOKEN_TYPE_BYTE
_PAD_SCORE: Final = -1000.0  # the score of tokens that convert_hf_to_gguf.py adds

# The tokens that engines use if no key names one, by tokenizer. Source: src/llama-vocab.cpp (load) of llama.cpp
# b11434 (2026-10) and ik_llama.cpp 8337e4cd (2026-08-15), which agree.
_GPT_2: Final = {"bos": 11, "eos": 11}
DEFAULT_IDS: Final[dict[str, dict[str, int]]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
    "gpt2": _GPT_2,
    "hybriddna": _GPT_2,
    "whitespace": _GPT_2,
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
    "plamo2": {"bos": 1, "eos": 2, "unknown": 0, "padding": 3},
}


def vocab_keys(
    kvs: Sequence[KV],
    kept: Sequence[int],
    added: int = 0,
    *,
    engines: Sequence[str] = tuple(ENGINES),
    byte_order: ByteOrder = ByteOrder.LITTLE,
) -> Remapped:
    """Rewrite `kvs` for the tokens `kept` (old numbers, in their new order) and `added` unused ones after them."""
    out = Rewrite(kvs, byte_order)
    values = HeadValues(kvs)
    _Vocabulary(out, values, kept, added).rewrite()
    if not out.problems:
        check_counts(out, values, engines)
    return out.result()


class _Vocabulary:
    """The old tokens, and where each goes."""

    def __init__(self, out: Rewrite, values: HeadValues, kept: Sequence[int], added: int) -> None:
        self.out = out
        self.values = values
        self.kept = kept
        self.added = added
        self.new_numbers = {old: new for new, old in enumerate(kept)}
        listed = values.kvs.get(_TOKENS)
        self.texts: list[str] = listed.value() if _is_text_list(listed) else []
        self.old = len(self.texts) or values.tokens or 0

    def rewrite(self) -> None:
        """Write every key that refers to tokens."""
        if not self._possible():
            return
        size = f"{self.values.architecture}.vocab_size"
        if size in self.values.kvs:
            self.out.number(size, len(self.kept) + self.added)
        for kv in self.out.kvs:
            if kv.key in _BY_TOKEN:
                self._entries(kv)
            elif kv.key == _MERGES:
                self._merges(kv)
            elif kv.key == _SUPPRESSED:
                self._suppressed(kv)
            elif _IDS.search(kv.key):
                self._ids(kv)
            elif kv.type is ValueType.ARRAY and kv.count == self.old and self.old:
                message = f"{printable(kv.key, 80)} has {kv.count:,} entries, as many as there are tokens"
                self.out.problems.append(
                    f"{message}, but gguftool does not know its meaning; edit --remove removes it, if it is not needed"
                )
            elif kv.key == "tokenizer.huggingface.json":
                self.out.warnings.append(f"{kv.key} still lists the old vocabulary; edit --remove removes it")

        self._name_defaults()

    def _name_defaults(self) -> None:
        """Write the key of a special token that engines know only by its old number."""
        model = self.values.kvs.get("tokenizer.ggml.model")
        kind = str(model.value()) if model is not None and model.type is ValueType.STRING else ""
        for word, number in DEFAULT_IDS.get(kind, {}).items():
            key = f"tokenizer.ggml.{word}_token_id"
            if key in self.values.kvs or number >= self.old:
                continue
            if number not in self.new_numbers:
                self.out.warnings.append(
                    f"{key} is absent: engines will use token {number}, which is now another token"
                )
            elif self.new_numbers[number] != number:
                self.out.number(key, self.new_numbers[number], after=_TOKENS)

    def _possible(self) -> bool:
        wrong = [number for number in self.kept if not 0 <= number < self.old]
        if not self.old:
            self.out.problems.append(f"{_TOKENS} is absent, so there is no vocabulary to change")
        elif wrong:
            self.out.problems.append(f"token {wrong[0]} is out of range; there are {self.old:,} tokens")
        if len(self.new_numbers) != len(self.kept):
            twice = next(number for index, number in enumerate(self.kept) if self.new_numbers[number] != index)
            self.out.problems.append(
                f"token {twice} is listed twice, and llama.cpp aborts on two tokens with the same text"
            )
        hashed = f"{self.values.architecture}.{_HASHED}"
        if hashed in self.values.kvs and any(old != new for old, new in self.new_numbers.items()):
            self.out.problems.append(
                f"{hashed}: n-grams are looked up by tokens' numbers; keep tokens 0 to N, in order"
            )
        if not len(self.kept) + self.added:
            self.out.problems.append("no tokens are left; keep at least one")
        return not self.out.problems

    def _entries(self, kv: KV) -> None:
        """Select the entries of an array with one for each token, and add those of new tokens."""
        if kv.type is not ValueType.ARRAY or kv.count != self.old:
            self.out.problems.append(f"{kv.key} has {kv.count:,} entries, but there are {self.old:,} tokens")
            return
        old = self.texts if kv.key == _TOKENS else kv.value()
        new = [old[number] for number in self.kept]
        if kv.key == _TYPES and _BYTE in (set(old) - set(new)):
            self.out.warnings.append(
                "no tokens for single bytes are left: text outside the vocabulary cannot be encoded"
            )
        self.out.array(kv.key, new + self._new_entries(kv.key, set(new)), kv.element_type)

    def _new_entries(self, key: str, there: set[Any]) -> list[Any]:
        if key == _SCORES:
            return [_PAD_SCORE] * self.added
        if key == _TYPES:
            return [_UNUSED] * self.added
        texts: list[str] = []
        number = len(self.kept)
        while len(texts) < self.added:
            if (text := f"[PAD{number}]") not in there:
                texts.append(text)
            number += 1
        return texts

    def _merges(self, kv: KV) -> None:
        """Leave out merges of, or into, tokens that are gone."""
        if not _is_text_list(kv):
            return
        gone = {text for number, text in enumerate(self.texts) if number not in self.new_numbers}
        merges = kv.value()
        left = [merge for merge in merges if not gone.intersection(_merged(merge))] if gone else merges
        if len(left) != len(merges):
            self.out.array(kv.key, left, ValueType.STRING)

    def _suppressed(self, kv: KV) -> None:
        if kv.type is ValueType.ARRAY and kv.element_type in INTEGERS:
            there = [self.new_numbers[number] for number in kv.value() if number in self.new_numbers]
            self.out.array(kv.key, there, kv.element_type)

    def _ids(self, kv: KV) -> None:
        """Write the new numbers of the tokens that a key names."""
        kind = kv.element_type
        if kind not in INTEGERS:
            return
        old = kv.value() if kv.type is ValueType.ARRAY else [kv.value()]
        gone = [number for number in old if number not in self.new_numbers and 0 <= number < self.old]
        if gone:
            text = printable(self.texts[gone[0]], 40) if self.texts else ""
            self.out.problems.append(
                f"{printable(kv.key, 80)} names token {gone[0]} '{text}', which would be gone; keep it"
            )
            return
        new = [self.new_numbers.get(number, number) for number in old]
        if kv.type is ValueType.ARRAY:
            self.out.array(kv.key, new, kind)
        else:
            self.out.number(kv.key, new[0])


def _is_text_list(kv: KV | None) -> TypeGuard[KV]:
    return kv is not None and kv.type is ValueType.ARRAY and kv.element_type is ValueType.STRING


def _merged(merge: str) -> tuple[str, str, str]:
    """The two texts of a merge, and their concatenation; the first character may be a space of the text itself."""
    space = merge.find(" ", 1)
    left, right = (merge, "") if space < 0 else (merge[:space], merge[space + 1 :])
    return left, right, left + right
