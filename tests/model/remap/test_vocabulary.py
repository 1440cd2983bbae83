"""Metadata for a selection of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.format.engine_facts.engines import ENGINES, LLAMA_CPP
from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.model.remap.head_values import Remapped
from gguftool.model.remap.vocabulary import DEFAULT_IDS, vocab_keys

U32 = ValueType.UINT32
TEXTS = ["<s>", "a", "b", "ab", "c", "abc"]


def head(*more: KV) -> tuple[KV, ...]:
    return (
        make_kv("general.architecture", ValueType.STRING, "llama"),
        make_kv("llama.vocab_size", U32, 6),
        make_kv("tokenizer.ggml.tokens", ValueType.ARRAY, TEXTS, element=ValueType.STRING),
        make_kv("tokenizer.ggml.scores", ValueType.ARRAY, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], element=ValueType.FLOAT32),
        make_kv("tokenizer.ggml.token_type", ValueType.ARRAY, [3, 1, 1, 1, 1, 6], element=ValueType.INT32),
        make_kv("tokenizer.ggml.merges", ValueType.ARRAY, ["a b", "ab c"], element=ValueType.STRING),
        make_kv("tokenizer.ggml.bos_token_id", U32, 0),
        *more,
    )


HEAD = head()


def values(found: Remapped) -> Mapping[str, Any]:
    assert (found.problems, found.refusals) == ((), ())
    return {kv.key.rsplit(".", 1)[1]: kv.value() for kv in found.kvs}


def test_all_tokens_are_the_same_bytes() -> None:
    assert vocab_keys(HEAD, range(6)) == Remapped(kvs=HEAD)


def test_arrays_size_merges_and_ids_follow() -> None:
    found = values(vocab_keys(HEAD, [1, 0, 2, 3]))
    assert found["tokens"] == ["a", "<s>", "b", "ab"]
    assert found["scores"] == [1.0, 0.0, 2.0, 3.0]
    assert found["token_type"] == [1, 3, 1, 1]
    assert (found["vocab_size"], found["bos_token_id"], found["merges"]) == (4, 1, ["a b"])


def test_a_merge_goes_with_any_of_its_three_texts() -> None:
    for gone in (1, 2, 3):
        kept = [number for number in range(6) if number != gone]
        assert "a b" not in values(vocab_keys(HEAD, kept))["merges"]


def test_new_tokens_are_unused_and_have_names_of_their_own() -> None:
    named = make_kv("tokenizer.ggml.tokens", ValueType.ARRAY, [*TEXTS[:5], "[PAD6]"], element=ValueType.STRING)
    kvs = tuple(named if kv.key == named.key else kv for kv in HEAD)
    found = values(vocab_keys(kvs, range(6), added=2))
    assert found["tokens"][5:] == ["[PAD6]", "[PAD7]", "[PAD8]"]
    assert (found["scores"][6:], found["token_type"][6:]) == ([-1000.0, -1000.0], [5, 5])
    assert found["vocab_size"] == 8


@given(first=st.permutations(range(6)), second=st.permutations(range(6)))
def test_two_orders_one_after_the_other_are_their_composition(first: Sequence[int], second: Sequence[int]) -> None:
    once = vocab_keys(HEAD, first).kvs
    assert vocab_keys(once, second).kvs == vocab_keys(HEAD, [first[number] for number in second]).kvs


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([0, 6], "token 6 is out of range; there are 6 tokens"),
        ([0, 1, 1], "token 1 is listed twice"),
        ([], "no tokens are left"),
        ([1, 2], "tokenizer.ggml.bos_token_id names token 0 '<s>', which would be gone"),
    ],
)
def test_wrong_lists(kept: Sequence[int], said: str) -> None:
    assert said in vocab_keys(HEAD, kept).problems[0]


def test_lists_of_ids_follow_and_unknown_arrays_stop() -> None:
    ids = make_kv("llama.adapters.token_ids_activate", ValueType.ARRAY, [3, 0], element=ValueType.INT32)
    assert values(vocab_keys(head(ids), [0, 1, 2, 3][::-1]))["token_ids_activate"] == [0, 3]
    novel = make_kv("tokenizer.ggml.novel", ValueType.ARRAY, [0] * 6, element=U32)
    assert (
        "tokenizer.ggml.novel has 6 entries, as many as there are tokens" in vocab_keys(head(novel), [0, 1]).problems[0]
    )


def test_special_tokens_that_no_key_names_get_one_if_they_move() -> None:
    kvs = head(make_kv("tokenizer.ggml.model", ValueType.STRING, "llama"))
    found = vocab_keys(kvs, [1, 0, 2, 3])
    assert values(found)["unknown_token_id"] == 1
    assert "eos_token_id" not in values(found)  # token 2 has kept its number
    assert "tokenizer.ggml.unknown_token_id: 1 (new)" in found.remarks
    gone = vocab_keys(kvs, [0, 1, 3])
    assert any("eos_token_id is absent: engines will use token 2" in text for text in gone.warnings)


def test_every_special_token_of_the_engines_follows() -> None:
    for engine in ENGINES:
        facts = head_facts(engine)
        assert facts is not None
        assert len(facts.special_tokens) > 10
        for key in facts.special_tokens:
            kvs = tuple(kv for kv in HEAD if kv.key != key)
            found = vocab_keys((*kvs, make_kv(key, U32, 3)), [3, 2, 1, 0])
            assert values(found)[key.rsplit(".", 1)[1]] == 0
    named = {key.removeprefix("tokenizer.ggml.").removesuffix("_token_id") for key in facts.special_tokens}
    assert {word for words in DEFAULT_IDS.values() for word in words} <= named


def test_suppressed_tokens_may_be_gone() -> None:
    kvs = head(make_kv("tokenizer.ggml.suppress_tokens", ValueType.ARRAY, [5, 2], element=ValueType.INT32))
    assert values(vocab_keys(kvs, [2, 0]))["suppress_tokens"] == [0]


def test_tokens_that_are_hashed_keep_their_numbers() -> None:
    kvs = head(make_kv("llama.ple.layers", ValueType.ARRAY, [1], element=U32))
    assert vocab_keys(kvs, range(4), added=1).problems == ()
    assert "n-grams are looked up by tokens' numbers" in vocab_keys(kvs, [0, 2]).problems[0]


def test_a_default_token_outside_the_vocabulary_is_nobodys() -> None:
    found = vocab_keys(head(make_kv("tokenizer.ggml.model", ValueType.STRING, "gpt2")), [1, 0])
    assert not any("eos" in text for text in (*found.warnings, *found.remarks))


def test_an_id_that_stands_for_none_stays() -> None:
    none = make_kv("tokenizer.ggml.padding_token_id", U32, 2**32 - 1)
    assert values(vocab_keys(head(none), [1, 0]))["padding_token_id"] == 2**32 - 1
    behind = make_kv("tokenizer.ggml.padding_token_id", U32, 6)
    assert values(vocab_keys(head(behind), [1, 0]))["padding_token_id"] == 6


def test_warnings() -> None:
    blob = make_kv("tokenizer.huggingface.json", ValueType.STRING, "{}")
    found = vocab_keys(head(blob), range(5))
    assert any("tokenizer.huggingface.json" in text for text in found.warnings)
    assert any("single bytes" in text for text in found.warnings)


def test_a_model_without_a_vocabulary() -> None:
    assert "there is no vocabulary" in vocab_keys(HEAD[:1], [0]).problems[0]


def test_an_engine_that_goes_by_the_number_of_tokens() -> None:
    kvs = (
        make_kv("general.architecture", ValueType.STRING, "deepseek2"),
        make_kv("deepseek2.block_count", U32, 48),
        make_kv("deepseek2.vocab_size", U32, 128256),
    )
    assert "Lite" in vocab_keys(kvs, range(128000), engines=[LLAMA_CPP]).refusals[0]
