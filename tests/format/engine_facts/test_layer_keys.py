"""The table of layer keys against every key that both engines read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest

from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.heads import HeadFacts, KeyFact, head_facts
from gguftool.format.engine_facts.layer_keys import LAYER_KEYS, KeyKind, Length, full_key, layer_key

# Words in the names of keys that depend on layers; what matches and does not is in the table as NO_LAYERS.
ABOUT_LAYERS = re.compile(r"layer|block|interval|every|pattern|_step\b", re.ASCII)
LENGTHS = {"h_n_layer_all": Length.ALL, "h_n_layer": Length.ALL, "h_n_layer_": Length.TRUNK}
# Written by gguf-py and read by nobody; read in the sources by other means than the facts were read.
ELSEWHERE = {"activation_sparsity_scale", "swa_layers", "sliding_window_list", "dflash.target_layer_ids"}


def all_facts() -> list[HeadFacts]:
    return [facts for facts in map(head_facts, ENGINES) if facts is not None]


def read_keys() -> Iterator[tuple[str, KeyFact]]:
    """Every place where an engine reads a key, with the architecture."""
    for facts in all_facts():
        for name, architecture in facts.architectures.items():
            yield from ((name, fact) for fact in (*architecture.keys, *facts.general))


def test_every_key_with_an_entry_for_each_layer_is_in_the_table() -> None:
    seen = set()
    for architecture, fact in read_keys():
        if fact.length not in LENGTHS:
            continue
        row = layer_key(fact.name.replace("%s", architecture), architecture)
        assert row is not None, fact.name
        assert row.kind is KeyKind.PER_LAYER, fact.name
        assert row.length in (LENGTHS[fact.length], Length.ANY), fact.name
        seen.add(row.key)
    assert len(seen) > 15


def test_every_other_array_is_in_the_table() -> None:
    arrays = {(name, fact.name) for name, fact in read_keys() if fact.form != "scalar"}
    arrays = {(name, key) for name, key in arrays if not key.startswith("tokenizer.")}
    assert [pair for pair in sorted(arrays) if layer_key(pair[1].replace("%s", pair[0]), pair[0]) is None] == []


def test_every_key_with_a_word_for_layers_is_in_the_table() -> None:
    keys = {(name, fact.name) for name, fact in read_keys() if ABOUT_LAYERS.search(fact.name)}
    assert len({key for _, key in keys}) > 30
    assert [pair for pair in sorted(keys) if layer_key(pair[1].replace("%s", pair[0]), pair[0]) is None] == []


def arrays_of_gguf_py() -> set[str]:
    """The keys of the architecture that gguf-py's writer takes a sequence for."""
    writer = pytest.importorskip("gguf.gguf_writer", reason="pip install gguf")
    constants = pytest.importorskip("gguf.constants", reason="pip install gguf")
    found = set()
    for function in re.findall(
        r"def add_\w+\(self[^)]*Sequence[^)]*\).*?(?=\n    def )", inspect.getsource(writer), re.DOTALL
    ):
        for path in re.findall(r"Keys\.(\w+)\.(\w+)", function):
            found.add(getattr(getattr(constants.Keys, path[0]), path[1]))
    return {key for key in found if key.startswith("{arch}.")}


def test_every_array_that_gguf_py_writes_is_in_the_table() -> None:
    arrays = arrays_of_gguf_py()
    assert len(arrays) >= 8
    assert [key for key in sorted(arrays) if layer_key(key.format(arch="llama"), "llama") is None] == []


def test_every_row_is_a_key_that_an_engine_reads() -> None:
    read = {fact.name for _, fact in read_keys()}
    rows = [row for row in LAYER_KEYS if row.kind is not KeyKind.BEARS_NAMES and row.key not in ELSEWHERE]
    assert [row.key for row in rows if full_key(row, "%s") not in read] == []
    assert all(row.source for row in LAYER_KEYS)


def test_rows_of_one_key_are_for_different_architectures() -> None:
    for row in LAYER_KEYS:
        same = [other for other in LAYER_KEYS if other.key == row.key]
        assert len(same) == 1 or not frozenset.intersection(*(other.only for other in same))
        assert len(same) == 1 or all(other.only for other in same)


@pytest.mark.parametrize(
    ("key", "architecture", "kind"),
    [
        ("llama.block_count", "llama", KeyKind.LAYER_COUNT),
        ("deepseek2.leading_dense_block_count", "deepseek2", KeyKind.COUNT_FRONT),
        ("gemma4.attention.shared_kv_layers", "gemma4", KeyKind.COUNT_BACK),
        ("openpangu.swa_layers", "openpangu", KeyKind.LAYER_NUMBERS),
        ("qwen35.full_attention_interval", "qwen35", KeyKind.PERIODIC),
        ("eagle3.target_layers", "eagle3", KeyKind.TARGET_LAYERS),
        ("xielu.beta", "apertus", KeyKind.PER_LAYER),
        ("comfy.gguf.orig_shape.blk.0.weight", "sd3", KeyKind.BEARS_NAMES),
        ("general.tensor_extra.name", "llama", KeyKind.BEARS_NAMES),
        ("clef.decision.block_count", "clef", KeyKind.OTHER_STACK),
        ("modern-bert.decision.block_count", "modern-bert", KeyKind.COUNT_BACK),
        ("llama.rope.dimension_sections", "llama", KeyKind.NO_LAYERS),
    ],
)
def test_kinds(key: str, architecture: str, kind: KeyKind) -> None:
    row = layer_key(key, architecture)
    assert row is not None
    assert row.kind is kind


@pytest.mark.parametrize(
    "key", ["block_count", "other.block_count", "llama.blk_count", "general.name", "llama.swa_layers"]
)
def test_other_keys_are_not_in_the_table(key: str) -> None:
    assert layer_key(key, "llama") is None
