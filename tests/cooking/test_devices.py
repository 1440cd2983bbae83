"""Devices: parsing, placement as -ot places, what runs beside weights, and the command line."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from gguftool.analysis.placement import parse_rules
from gguftool.cooking.devices import (
    Context,
    Placement,
    compute_bytes,
    engine_arguments,
    kv_cache_bytes,
    layer_shares,
    parse_devices,
    reserves,
)
from gguftool.cooking.offers import Offer, offer_types
from gguftool.errors import PlanError
from gguftool.model.opening import open_model
from gguftool.render.units import parse_size
from tests.support import builders
from tests.support.cooking import moe_shapes
from tests.support.paths import FIXTURES
from tests.support.text_command import run_text

QWEN = str(FIXTURES / "engines" / "tiny-qwen3moe-Q4_K.gguf")
MIB = 1 << 20


def placement(*texts: str) -> Placement:
    """The placement of these devices."""
    return Placement(parse_devices(texts, parse_size))


def offers() -> tuple[Offer, ...]:
    """The tensors of a large mixture of experts."""
    return tuple(offer_types(name, dims, ["f32"]) for name, dims in moe_shapes())


def test_the_first_rule_that_matches_decides_and_the_rest_goes_to_the_last() -> None:
    found = placement(r"GPU=11GiB:blk\.[0-9]\.ffn", "GPU=11GiB:attn", "CPU=231GiB")
    assert found.names == ("GPU", "CPU")
    assert found.device_of("blk.3.ffn_up_exps.weight") == "GPU"
    assert found.device_of("blk.33.ffn_up_exps.weight") == "CPU"
    assert found.device_of("blk.33.attn_q.weight") == "GPU"
    assert found.device_of("output.weight") == "CPU"


def test_embeddings_stay_in_main_memory_unless_a_rule_says_otherwise() -> None:
    assert placement("CPU=1G:exps", "GPU=1G").device_of("token_embd.weight") == "CPU"
    assert placement("GPU=1G:embd", "CPU=1G").device_of("token_embd.weight") == "GPU"
    assert placement("GPU=1G").device_of("token_embd.weight") == "GPU"


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["GPU"], "is not NAME=SIZE:REGEX"),
        (["GPU=much"], "is not a size"),
        (["GPU=1G:("], "regular expression"),
        (["GPU=1G:a,b"], "not contain a comma"),
        (["GPU=1G:a", "GPU=2G:b"], "GPU has two sizes"),
        (["=1G", "X="], "'=1G'.*'X='"),
    ],
)
def test_faulty_devices_are_named_together(texts: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_devices(texts, parse_size)


def test_names_of_buffers() -> None:
    found = parse_devices(["GPU=1", "GPU1=1:a", "RAM=1:b", "Vulkan0=1:c", "VRAM=1:d"], parse_size)
    assert [one.buffer for one in found] == ["CUDA0", "CUDA1", "CPU", "Vulkan0", "CUDA0"]


# What llama.cpp b11434 logs for these models, on a CPU: KV buffer, compute buffer, in MiB.
LOGGED = [(256, 512, 0.25, 3.53 * 256 / 300), (2048, 512, 2.0, 7.52), (300, 300, 0.5, 3.53)]


@pytest.mark.parametrize(("ctx", "ubatch", "cache", "compute"), LOGGED)
def test_reserves_are_what_llama_cpp_logs_or_more(ctx: int, ubatch: int, cache: float, compute: float) -> None:
    model = open_model(QWEN)
    own = tuple(offer_types(name, one.info.dims, ["f32"]) for name, one in model.tensors.items())
    context = Context(ctx=ctx, ubatch=ubatch)
    assert kv_cache_bytes(model, own, context) == cache * MIB
    assert compute * MIB <= compute_bytes(model, own, context) < 2 * compute * MIB + 2 * MIB


def test_a_quantized_cache_is_smaller_and_must_fit_its_rows() -> None:
    model = open_model(QWEN)
    own = tuple(offer_types(name, one.info.dims, ["f32"]) for name, one in model.tensors.items())
    plain = kv_cache_bytes(model, own, Context(ctx=512))
    assert kv_cache_bytes(model, own, Context(ctx=512, kv_type="q8_0")) == plain * 34 // 64
    with pytest.raises(PlanError, match="not whole blocks of q4_K"):
        kv_cache_bytes(model, own, Context(ctx=512, kv_type="q4_K"))
    with pytest.raises(PlanError, match="there is no tensor type"):
        kv_cache_bytes(model, own, Context(ctx=512, kv_type="zz"))


LAYERS = ("blk.0.attn_k.weight", "blk.1.attn_k.weight")


def test_heads_by_layer_latent_attention_and_layers_without_attention(tmp_path: Path) -> None:
    def bytes_of(*kvs: builders.KV, names: tuple[str, ...] = LAYERS, ctx: int = 256, ubatch: int = 512) -> int:
        path = tmp_path / "m.gguf"
        path.write_bytes(builders.gguf(kvs, [builders.tensor("token_embd.weight", "F32", (64, 4))]))
        offers = tuple(offer_types(name, (64, 64), ["f32"]) for name in names)
        return kv_cache_bytes(open_model(path), offers, Context(ctx=ctx, ubatch=ubatch))

    base = (
        builders.KV("general.architecture", 8, "x"),
        builders.KV("x.embedding_length", 4, 64),
        builders.KV("x.attention.head_count", 4, 4),
    )
    assert bytes_of(*base) == 256 * 2 * (64 + 64) * 2
    assert bytes_of(*base, builders.KV("x.attention.head_count_kv", 4, 2)) == 256 * 2 * (32 + 32) * 2
    by_layer = builders.KV("x.attention.head_count_kv", 9, builders.Array(4, (2, 0)))
    assert bytes_of(*base, by_layer) == 256 * (32 + 32) * 2
    latent = (
        builders.KV("x.attention.head_count_kv", 4, 1),
        builders.KV("x.attention.key_length", 4, 576),
        builders.KV("x.attention.key_length_mla", 4, 192),
        builders.KV("x.attention.value_length", 4, 512),
        builders.KV("x.attention.value_length_mla", 4, 128),
    )
    assert bytes_of(*base, *latent) == 256 * 2 * 576 * 2
    assert bytes_of(*base, names=LAYERS[1:]) == 256 * (64 + 64) * 2
    assert bytes_of(*base, names=()) == 0
    window = (
        builders.KV("x.attention.sliding_window", 4, 256),
        builders.KV("x.attention.sliding_window_pattern", 9, builders.Array(7, (True, False))),
    )
    assert bytes_of(*base, *window, ctx=4096, ubatch=200) == (512 + 4096) * (64 + 64) * 2


@pytest.mark.parametrize(
    ("architecture", "keys", "why"),
    [
        ("deepseek32", ("embedding_length", "attention.head_count"), "caches more than keys and values for deepseek32"),
        ("x", ("embedding_length",), "lacks the heads"),
    ],
)
def test_a_cache_that_is_not_known_is_refused_with_a_way_out(
    architecture: str, keys: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    kvs = (
        builders.KV("general.architecture", 8, architecture),
        *(builders.KV(f"{architecture}.{key}", 4, 64) for key in keys),
    )
    path.write_bytes(builders.gguf(kvs, [builders.tensor(LAYERS[0], "F32", (64, 64))]))
    found = run_text("plan", str(path), "--device", "CPU=1G", "--ctx", "512")
    assert found.returncode == 2
    assert re.search(f"--ctx: .*{why}.*; leave it out, and give less than the device has", found.stderr)
    assert found.stderr.count("error:") == 1


def test_the_cache_is_on_gpus_with_the_attention() -> None:
    found = placement(r"GPU0=24GiB:blk\.([0-9]|[1-3][0-9])\.attn", "GPU1=24GiB:attn", "CPU=200GiB")
    shares = layer_shares(found, offers())
    assert shares == {"GPU0": 40 / 94, "GPU1": 54 / 94}
    held = reserves(found, None, offers(), Context())
    assert {one.nbytes for one in held.values()} == {0}
    with pytest.raises(PlanError, match="only maps"):
        reserves(found, None, offers(), Context(ctx=1))


def test_the_command_line_places_as_planned() -> None:
    found = placement(r"GPU0=24GiB:blk\.[0-9]\.(attn|ffn)", "GPU1=24GiB:attn|norm|output", "CPU=200GiB")
    words = shlex.split(engine_arguments(found, offers(), Context(ctx=32768, kv_type="q8_0")))
    assert words[:4] == ["-ngl", "999", "-ts", "11,89"]
    assert words[-10:] == ["-c", "32768", "-ub", "512", "-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"]
    rules = parse_rules([word for flag, word in pairwise(words) if flag == "-ot"])
    for offer in offers():
        first = next(rule for rule in rules if rule.regex.search(offer.name))
        assert first.device == found[found.device_of(offer.name)].buffer


def test_rules_for_one_device_and_for_main_memory_alone() -> None:
    assert engine_arguments(placement("GPU=1G"), offers(), Context()) == "-ngl 999"
    assert engine_arguments(placement("CPU=1G"), offers(), Context()) == "-ngl 0"
    assert engine_arguments(placement("CPU=1G:exps", "GPU=1G"), (), Context()) == (
        "-ngl 999 -ot exps=CPU -ot '^token_embd\\.weight$=CPU' -ot '.*=CUDA0'"
    )
    assert engine_arguments(Placement(()), (), Context()) == ""
