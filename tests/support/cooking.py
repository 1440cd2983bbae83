"""Instances to plan: SmolLM2 with what was measured of it, and the shapes of a mixture of experts of 235B weights."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from gguftool.cooking.damage.evidence import NOTHING, Evidence, Given, InputFile, Observation
from gguftool.cooking.inputs import Offers
from gguftool.cooking.offers import Offer, offer_types
from gguftool.format.ggml import find_type
from gguftool.record import replace
from tests.support.paths import FIXTURES

EMBEDDING = "token_embd.weight"
PRESETS = ("a0_preset_Q3_K_S", "a2_preset_Q3_K_M", "a1_preset_Q4_K_M")
K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K")


NOTHING_MEASURED = replace(NOTHING, inputs=(InputFile(name="measure.jsonl", sha256=""),))


@cache
def smollm2() -> dict[str, Any]:
    """The instance: tensors and mixes by name; of a mix the types by tensor."""
    data = json.loads(gzip.decompress((FIXTURES / "cooking-smollm2.json.gz").read_bytes()))
    types = data["types"]
    for tensor in data["tensors"].values():
        named = dict(zip(types, tensor["types"], strict=True))
        tensor["types"] = {
            qtype: dict(zip(("bytes", "error", "fisher"), numbers, strict=True))
            for qtype, numbers in named.items()
            if numbers is not None
        }
    for mix in data["mixes"].values():
        picked = (types[int(digit, 16)] for digit in mix["types"])
        mix["types"] = dict(zip(data["tensors"], picked, strict=True))
    return data  # type: ignore[no-any-return]


def alias(name: str) -> str:
    """A type in the recipe's spelling."""
    traits = find_type(name)
    assert traits is not None
    return traits.alias


def blocks() -> Iterator[tuple[str, dict[str, Any]]]:
    """The tensors of the instance but the embedding."""
    return ((name, tensor) for name, tensor in smollm2()["tensors"].items() if name != EMBEDDING)


def smollm2_offers(types: Sequence[str]) -> Offers:
    """Its offers with widths unchecked, as its rows are no whole blocks; the embedding stays at Q6_K."""
    offers = [replace(offer_types(EMBEDDING, (576, 49152), ["Q6_K"], check_widths=False), choice=False)]
    for name, tensor in blocks():
        offers.append(offer_types(name, (576, tensor["elements"] // 576), types, check_widths=False))
    return Offers(name="SmolLM2", offers=tuple(offers), model=None, head=0, ready=False)


def fisher_evidence() -> Evidence:
    """Every Fisher damage, as given."""
    given = tuple(
        Given(tensor=name, type=alias(qtype), value=numbers["fisher"], spread=0.18)
        for name, tensor in blocks()
        for qtype, numbers in tensor["types"].items()
        if numbers["fisher"] is not None
    )
    return Evidence(errors={}, curve={}, given=given)


def measured_evidence() -> Evidence:
    """The 35 measured divergences, and the table of weighted errors."""
    observations = tuple(
        Observation(tensors=(name,), type=alias(one["type"]), value=one["kld"], error=one["se"])
        for name, tensor in blocks()
        if (one := tensor.get("measured"))
    )
    errors = {
        (name, alias(qtype)): numbers["error"]
        for name, tensor in blocks()
        for qtype, numbers in tensor["types"].items()
    }
    return Evidence(errors=errors, curve={}, observations=observations)


def moe_shapes(layers: int = 94) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a Qwen3-235B-A22B: 94 layers, width 4,096, 64 heads over 4, 128 experts of 1,536."""
    yield EMBEDDING, (4096, 151936)
    yield "output_norm.weight", (4096,)
    yield "output.weight", (4096, 151936)
    for layer in range(layers):
        block = f"blk.{layer}."
        yield f"{block}attn_norm.weight", (4096,)
        yield f"{block}attn_q.weight", (4096, 8192)
        yield f"{block}attn_k.weight", (4096, 512)
        yield f"{block}attn_v.weight", (4096, 512)
        yield f"{block}attn_output.weight", (8192, 4096)
        yield f"{block}ffn_norm.weight", (4096,)
        yield f"{block}ffn_gate_inp.weight", (4096, 128)
        yield f"{block}ffn_gate_exps.weight", (4096, 1536, 128)
        yield f"{block}ffn_up_exps.weight", (4096, 1536, 128)
        yield f"{block}ffn_down_exps.weight", (1536, 4096, 128)


def moe_offers(types: Sequence[str], layers: int = 94) -> Offers:
    """Offers of `types` for its matrices; norms and routers stay F32."""
    offers: list[Offer] = []
    for name, dims in moe_shapes(layers):
        kept = len(dims) == 1 or "gate_inp" in name
        offers.append(replace(offer_types(name, dims, ["f32"] if kept else types), choice=not kept))
    return Offers(name="moe", offers=tuple(offers), model=None, head=0, ready=False)
