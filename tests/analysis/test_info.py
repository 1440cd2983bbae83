"""Info: one screen about a model, from its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguftool.analysis.info import Info, info, infos
from gguftool.analysis.kv_cache import KVCache
from gguftool.render.format import Format
from gguftool.render.registry import render
from tests.support import builders as b
from tests.support.head_corpus import BASES, Head, deepseek2, gemma3, lfm2, llama
from tests.support.paths import REPO

DEMO = REPO / "fixtures" / "demo.gguf"


def of(tmp_path: Path, head: Head) -> Info:
    path = tmp_path / "m.gguf"
    path.write_bytes(head.bytes())
    return info(path)


def text_of(found: Info) -> str:
    return render(found, Format.TEXT)


def test_the_demo_in_all_fields() -> None:
    found = info(DEMO)
    assert (found.model, found.name, found.architecture) == ("demo.gguf", "Demo Llama 70K Instruct", "llama")
    assert (found.tensors, found.files, found.file_bytes) == (21, 1, DEMO.stat().st_size)
    assert (found.context_length, found.embedding_length) == (2048, 32)
    assert (found.heads, found.kv_heads, found.experts) == ((4,), (2,), None)
    assert (found.tokenizer, found.pre_tokenizer, found.tokens, found.chat_template) == ("llama", "default", 283, True)
    assert [(group.stack, group.layers, group.tensors) for group in found.layers] == [("blk", (0, 1), 18)]
    assert found.label.majority == "Q4_1"
    assert found.gaps == ()


def test_layers_with_other_tensors_are_another_group(tmp_path: Path) -> None:
    found = of(tmp_path, deepseek2())
    assert [group.layers for group in found.layers] == [(0,), (1, 2)]
    assert "1x blk.0 " in text_of(found)
    assert "2x blk.1-2 " in text_of(found)
    assert sum(group.nbytes for group in found.layers) < found.label.nbytes
    assert "experts        4, 2 for each token\n" in text_of(found)


# Two layers, 2 heads of 16 keys and values each, 2 bytes: 256 bytes a token.
CACHES: dict[str, tuple[Head, int]] = {
    "by the length of the embedding": (llama(), 256),
    "one key for all, without values, in 3 layers": (deepseek2(), 3 * 40 * 2),
    "a layer of two, by an array of heads": (lfm2(), 128),
    "heads of their own length": (
        llama().with_key("llama.attention.key_length", "u32", 32).with_key("llama.attention.value_length", "u32", 64),
        2 * 2 * (32 + 64) * 2,
    ),
    "an MTP layer runs apart": (
        llama().with_key("llama.nextn_predict_layers", "u32", 1).with_tensor("blk.1.nextn.eh_proj.weight", 64, 128),
        128,
    ),
    "layers that use the cache of others": (llama().with_key("llama.attention.shared_kv_layers", "u32", 1), 128),
}


@pytest.mark.parametrize("case", CACHES)
def test_the_cache_of_a_token(case: str, tmp_path: Path) -> None:
    head, per_token = CACHES[case]
    arch = head.kvs["general.architecture"][1]
    found = of(tmp_path, head.with_key(f"{arch}.context_length", "u32", 200_000))
    assert [one.context for one in found.memory] == [4096, 32768, 131072, 200_000]
    assert [one.kv_cache for one in found.memory[:3]] == [per_token * one.context for one in found.memory[:3]]
    assert found.memory[3].kv_cache == per_token * 200_192  # whole runs of 256 cells
    assert all(one.total == one.kv_cache + found.label.nbytes for one in found.memory)


def test_a_window_takes_so_many_tokens_and_those_of_a_batch(tmp_path: Path) -> None:
    layers = gemma3().with_key("gemma3.context_length", "u32", 4096)  # both within the window of 32
    assert [one.kv_cache for one in of(tmp_path, layers).memory] == [256 * 768]
    every = layers.with_key("gemma3.attention.sliding_window_pattern", "u32", 2)  # one of two sees everything
    assert [one.kv_cache for one in of(tmp_path, every).memory] == [128 * 4096 + 128 * 768]
    assert KVCache(rows=(), rows_in_window=(1,), window=10_000).nbytes(512) == 1024


def test_what_is_trained_for_less_is_given_for_that_alone(tmp_path: Path) -> None:
    assert [one.context for one in of(tmp_path, llama()).memory] == [128]
    unknown = of(tmp_path, llama().without_key("llama.context_length"))
    assert [one.context for one in unknown.memory] == [4096]


@pytest.mark.parametrize("architecture", ["bert", "deepseek32"])
def test_another_cache_is_not_guessed(architecture: str, tmp_path: Path) -> None:
    head = llama()
    keys = {key.replace("llama.", f"{architecture}.", 1): value for key, value in head.kvs.items()}
    found = of(tmp_path, Head({**keys, "general.architecture": ("str", architecture)}, head.tensors))
    assert (found.context_length, found.memory) == (128, ())
    assert "memory" not in text_of(found)


HOSTILE: dict[str, tuple[str, str, Any]] = {
    "no heads": ("llama.attention.head_count", "u32", 0),
    "heads by layer, too few": ("llama.attention.head_count_kv", "u32[]", [1]),
    "a context of 2^64": ("llama.context_length", "u64", 2**64 - 1),
    "a negative context": ("llama.context_length", "i32", -1),
    "a text for a number": ("llama.embedding_length", "str", "x"),
    "a window of 2^32": ("llama.attention.sliding_window", "u32", 2**32 - 1),
    "more shared layers than there are": ("llama.attention.shared_kv_layers", "u32", 2**32 - 1),
    "an architecture that is a number": ("general.architecture", "u32", 1),
    "a name with an escape": ("general.name", "str", "x\x1b[31m\ny"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_the_metadata_says_there_is_a_screen(case: str, tmp_path: Path) -> None:
    text = text_of(of(tmp_path, llama().with_key(*HOSTILE[case])))
    assert "file " in text
    assert all(line.isprintable() for line in text.split("\n"))


GAPS: dict[str, tuple[Head, list[tuple[str, str]]]] = {
    "architecture": (
        llama().with_key("general.architecture", "str", "lama"),
        [("llama.cpp", "architecture lama"), ("ik_llama.cpp", "architecture lama")],
    ),
    "tokenizer": (
        llama().with_key("tokenizer.ggml.model", "str", "x"),
        [("llama.cpp", "tokenizer x"), ("ik_llama.cpp", "tokenizer x")],
    ),
    "pre-tokenizer": (
        llama().with_key("tokenizer.ggml.model", "str", "gpt2").with_key("tokenizer.ggml.pre", "str", "x"),
        [("llama.cpp", "pre-tokenizer x"), ("ik_llama.cpp", "pre-tokenizer x")],
    ),
    "an adapter is no model": (
        llama().with_key("general.type", "str", "adapter").with_key("general.architecture", "str", "lama"),
        [],
    ),
    **{name: (base(), []) for name, base in BASES.items() if name != "lfm2"},
}


@pytest.mark.parametrize("case", GAPS)
def test_engines_that_do_not_know_a_name(case: str, tmp_path: Path) -> None:
    head, wanted = GAPS[case]
    found = [(gap.engine, reason) for gap in of(tmp_path, head).gaps for reason in gap.reasons]
    assert found == wanted


def test_engines_that_do_not_know_a_type(tmp_path: Path) -> None:
    (tmp_path / "ik.gguf").write_bytes(b.gguf(b.llama_kvs(), (b.tensor("blk.0.ffn_up.weight", "IQ4_KS", (256, 2)),)))
    (gap,) = info(tmp_path / "ik.gguf").gaps
    assert (gap.engine, gap.reasons) == ("llama.cpp", ("tensor type IQ4_KS",))
    assert gap.judged_by.startswith("llama.cpp b")
    unknown = info(REPO / "fixtures" / "unknown-type.gguf")
    assert [gap.engine for gap in unknown.gaps] == ["llama.cpp", "ik_llama.cpp"]


def test_a_set_is_one_model_and_others_are_more() -> None:
    shards = [REPO / "fixtures" / f"shards-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    found = infos([*shards, DEMO])
    assert [(one.files, one.architecture) for one in found.models] == [(3, "llama"), (1, "llama")]
    text = render(found, Format.TEXT)
    assert text.index("shards-00001") < text.index("demo.gguf")


@pytest.mark.parametrize("format", [Format.TEXT, Format.JSON])
def test_no_folder_of_this_machine_is_in_it(format: Format, tmp_path: Path) -> None:
    assert str(tmp_path) not in render(of(tmp_path, llama()), format)
