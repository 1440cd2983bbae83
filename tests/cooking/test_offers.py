"""Which types each tensor can have: the engine's rules, widths, imatrices, ready-made quants, maps."""

from __future__ import annotations

import pytest

from gguftool.cooking.offers import (
    Offer,
    Pool,
    default_types,
    offer_types,
    offers_of_ready,
    offers_of_source,
    ready_map,
    ready_model,
    used_share,
    why_not,
)
from gguftool.errors import Notes
from gguftool.format.ggml import nbytes
from gguftool.format.tensors_map import MapEntry
from gguftool.model.opening import open_model
from tests.support.paths import FIXTURES

LLAMA, IK = "llama.cpp", "ik_llama.cpp"
MOE = str(FIXTURES / "engines" / "tiny-qwen3moe-Q4_K.gguf")


def reason(name: str, dims: tuple[int, ...], text: str, *, engine: str = LLAMA, imatrix: bool = True) -> str:
    """Why a tensor cannot have a type; empty if it can."""
    return why_not(name, dims, text, Pool(engine=engine, imatrix=imatrix)) or ""


@pytest.mark.parametrize(
    ("name", "dims", "text", "engine", "imatrix", "expected"),
    [
        ("blk.0.attn_q.weight", (576, 576), "q4_K", LLAMA, True, "not whole blocks"),
        ("blk.0.attn_q.weight", (576, 576), "q4_0", LLAMA, True, ""),
        ("blk.0.attn_q.weight", (256, 256), "iq4_ks", LLAMA, True, "llama.cpp has no"),
        ("blk.0.attn_q.weight", (256, 256), "iq4_ks", IK, True, ""),
        ("blk.0.attn_q.weight", (256, 258), "q4_K_R4", IK, True, "packs 4 rows"),
        ("blk.0.attn_q.weight", (256, 256), "q4_K_R4", IK, True, ""),
        ("token_embd.weight", (256, 256), "q4_K_R4", IK, True, "packs 4 rows"),
        ("blk.0.attn_q.weight", (128, 256), "q8_KV", IK, True, "kernel of q8_KV"),
        ("blk.0.attn_q.weight", (256, 256), "iq2_xxs", LLAMA, False, "needs an imatrix"),
        ("token_embd.weight", (256, 256), "iq2_xxs", LLAMA, False, ""),
        ("blk.0.attn_q.weight", (256, 256), "tq2_0", LLAMA, True, "ternary"),
        ("blk.0.attn_q.weight", (256, 256), "i32", LLAMA, True, "cannot multiply"),
        ("blk.0.attn_q.weight", (256, 256), "q8_K", LLAMA, True, "has no"),
        ("blk.0.attn_q.weight", (256, 256), "zz", LLAMA, True, "is not a type"),
    ],
)
def test_the_rules_of_engines(
    name: str, dims: tuple[int, ...], text: str, engine: str, imatrix: bool, expected: str
) -> None:
    found = reason(name, dims, text, engine=engine, imatrix=imatrix)
    assert (expected in found) if expected else found == ""


def test_pools_grow_in_bits_and_hold_no_repacked_or_ternary_types() -> None:
    for engine in (LLAMA, IK):
        pool = default_types(engine)
        assert {"q2_K", "q4_K", "q6_K", "q8_0"} <= set(pool)
        assert not [text for text in pool if "_r4" in text or "_bn" in text or text.startswith(("tq", "q1_0"))]
        sizes = [nbytes_of(text) for text in pool]
        assert sizes == sorted(sizes)
    assert "iq4_ks" in default_types(IK)


def nbytes_of(text: str) -> float:
    """Bytes of a large tensor, without row metadata."""
    offer = offer_types("x", (256, 256), [text])
    return offer.nbytes[0] / 256 // 8  # row metadata of 2 to 8 bytes does not count


def test_bytes_of_an_offer_are_those_of_the_type() -> None:
    offer = offer_types("x", (512, 32), ["Q4_K", "iq4_ks", "f16"])
    assert offer.types == ("q4_K", "iq4_ks", "f16")
    assert offer.nbytes == (nbytes(12, (512, 32)), nbytes(144, (512, 32)), 512 * 32 * 2)
    assert offer_types("x", (576, 64), ["q4_K"], check_widths=False).nbytes == (576 * 64 // 256 * 144,)
    with pytest.raises(ValueError, match="rows of 576 cannot have the type q4_K"):
        offer_types("x", (576, 64), ["q4_K"])


def test_a_model_to_quantize_offers_its_matrices_and_keeps_the_rest() -> None:
    model, notes = open_model(MOE), Notes()
    offers = {one.name: one for one in offers_of_source(model, Pool(engine=LLAMA, types=("q3_K", "q8_0")), {}, notes)}
    assert set(offers) == set(model.tensors)
    assert offers["blk.0.ffn_up_exps.weight"].types == ("q3_K", "q8_0")
    assert offers["blk.0.ffn_up_exps.weight"].own == "q4_K"
    for kept in ("blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight"):
        assert not offers[kept].choice
        assert offers[kept].nbytes == (model.tensors[kept].nbytes,)


def test_where_no_type_of_the_pool_fits_fallbacks_are_offered() -> None:
    model, notes = open_model(str(FIXTURES / "demo.gguf")), Notes()
    offers = {one.name: one for one in offers_of_source(model, Pool(engine=LLAMA, types=("q4_K",)), {}, notes)}
    assert offers["blk.0.attn_q.weight"].types == ("q5_0",)  # rows of 32
    assert any("offered instead: q5_0" in text for text in notes.remarks)


def test_ready_made_quants_offer_the_types_that_are_there() -> None:
    quants = [ready_model(open_model(str(FIXTURES / "mix" / f"tiny-{name}.gguf"))) for name in ("Q4_0", "Q8_0", "BF16")]
    offers = {one.name: one for one in offers_of_ready(quants, (), LLAMA, Notes())}
    assert offers["blk.0.attn_q.weight"].types == ("q4_0", "q8_0", "bf16")
    few = {one.name: one for one in offers_of_ready(quants, ("q4_0", "q8_0"), LLAMA, Notes())}
    assert few["blk.0.attn_q.weight"].types == ("q4_0", "q8_0")


def test_maps_offer_bytes_by_their_types_and_shapes_must_agree() -> None:
    entries = [
        MapEntry(file="f", sha256=None, tensor="blk.0.attn_q.weight", shape=shape, dtype=dtype, elements=1, nbytes=7)
        for shape, dtype in (((256, 32), "iq4_ks"), ((256, 64), "q4_k"))
    ]
    notes = Notes()
    (offer,) = offers_of_ready([ready_map("a.map", entries[:1])], (), IK, notes)
    assert offer.types == ("iq4_ks",)
    assert offer.nbytes == (nbytes(144, (256, 32)),)  # not the map's 7
    offers_of_ready([ready_map("a.map", entries[:1]), ready_map("b.map", entries[1:])], (), IK, notes)
    assert list(notes.problems) == ["b.map has another shape"]


def test_what_a_token_meets() -> None:
    names = {"output.weight": None, "token_embd.weight": None}
    assert used_share("blk.0.ffn_up_exps.weight", names, 128, 8) == 8 / 128
    assert used_share("blk.0.ffn_up.weight", names, 128, 8) == 1
    assert used_share("token_embd.weight", names, 0, 0) == 0
    assert used_share("token_embd.weight", {"token_embd.weight": None}, 0, 0) == 1  # it is the output too


def test_elements_of_an_offer() -> None:
    assert Offer(name="x", dims=(4, 5, 6), types=("f32",), nbytes=(480,)).elements == 120
