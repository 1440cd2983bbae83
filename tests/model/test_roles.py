from __future__ import annotations

import pytest

from gguftool.model.roles import Place, Role, tensor_place, tensor_places
from tests.support.counted_work import FACTOR, calls_of, growth

# All of gguf.constants that has no role: side paths of Gemma 3n and 4, and WavTokenizer's decoder.
OTHER = {
    "altup_unembd_proj",
    "altup_proj",
    "blk.7.inp_gate",
    "blk.7.proj",
    "blk.7.altup_correct_coef",
    "blk.7.altup_correct_scale",
    "blk.7.altup_predict_coef",
    "blk.7.altup_router",
    "blk.7.altup_router_norm",
    "blk.7.laurel_l",
    "blk.7.laurel_r",
    "blk.7.laurel_post_norm",
    "conv1d",
    "convnext.7.dw",
    "convnext.7.pw1",
    "convnext.7.pw2",
    "convnext.7.gamma",
    "posnet.7.conv1",
    "posnet.7.conv2",
    "posnet.7.norm1",
    "posnet.7.norm2",
    "posnet.7.attn_q",
    "posnet.7.attn_k",
    "posnet.7.attn_v",
    "posnet.7.attn_output",
}


def known_names() -> list[str]:
    constants = pytest.importorskip("gguf.constants", reason="pip install gguf")
    return sorted({name.format(bid=7) for name in constants.TENSOR_NAMES.values()})


@pytest.mark.parametrize("suffix", ["", ".weight", ".bias"])
def test_no_name_of_gguf_py_but_the_written_ones_is_other(suffix: str) -> None:
    names = known_names()
    assert len(names) > 300
    assert {name for name in names if tensor_place(name + suffix).role is Role.OTHER} == OTHER


def test_each_name_of_a_layer_has_its_number() -> None:
    numbered = [name for name in known_names() if "blk.7." in name]
    assert len(numbered) > 200
    assert [name for name in numbered if tensor_place(f"{name}.weight").layer != 7] == []


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("token_embd.weight", Role.EMBEDDING),
        ("output.weight", Role.OUTPUT),
        ("output_norm.weight", Role.NORM),
        ("blk.0.attn_output.weight", Role.ATTENTION),
        ("blk.0.attn_q_a_norm.weight", Role.NORM),
        ("blk.0.attn_kv_b.weight", Role.ATTENTION),
        ("blk.0.ffn_down.weight", Role.DENSE_FFN),
        ("blk.0.ffn_down_exps.weight", Role.ROUTED_EXPERTS),
        ("blk.0.ffn_gate_up_exps.bias", Role.ROUTED_EXPERTS),
        ("blk.0.ffn_down.3.weight", Role.ROUTED_EXPERTS),
        ("blk.0.ffn_down_shexp.weight", Role.SHARED_EXPERTS),
        ("blk.0.ffn_gate_inp.weight", Role.ROUTER),
        ("blk.0.exp_probs_b.bias", Role.ROUTER),
        ("blk.0.ssm_out.weight", Role.RECURRENT),
        ("blk.0.time_mix_key.weight", Role.RECURRENT),
        ("blk.0.channel_mix_key.weight", Role.DENSE_FFN),
        ("blk.0.nextn.eh_proj.weight", Role.MTP),
        ("v.blk.0.attn_q.weight", Role.MULTIMODAL),
        ("mm.0.weight", Role.MULTIMODAL),
        ("model.layers.0.self_attn.q_proj.weight", Role.OTHER),
        ("", Role.OTHER),
    ],
)
def test_roles(name: str, role: Role) -> None:
    assert tensor_place(name).role is role


def test_stacks_are_told_apart() -> None:
    assert tensor_place("dec.blk.3.attn_q.weight") == Place(role=Role.ATTENTION, stack="dec.blk", layer=3)
    assert tensor_place("enc.blk.3.attn_q.weight").stack == "enc.blk"
    assert tensor_place("v.sam.blk.11.attn.qkv.weight") == Place(role=Role.MULTIMODAL, stack="v.sam.blk", layer=11)


def test_numbers_that_are_no_layers() -> None:
    assert tensor_place("blk.99999999999999999999.attn_q.weight").layer is None
    assert tensor_place("blk.-1.attn_q.weight").layer is None
    assert tensor_place("blk.٣.attn_q.weight").layer is None  # a digit, but no ASCII one


def test_a_layer_with_nextn_tensors_is_mtp_all_of_it() -> None:
    places = tensor_places(
        ["blk.1.attn_q.weight", "blk.2.attn_q.weight", "blk.2.nextn.eh_proj.weight", "output.weight"]
    )
    assert [place.role for place in places.values()] == [Role.ATTENTION, Role.MTP, Role.MTP, Role.OUTPUT]
    assert places["blk.2.attn_q.weight"].layer == 2


def test_hostile_names_take_no_time() -> None:
    for name in ("norm_" * 12_000 + "!", "a." * 30_000, "blk.0." + "_" * 60_000, "ffn_" + "_exps" * 12_000 + "!"):
        assert tensor_place(name).role is Role.OTHER
        assert calls_of(lambda name=name: tensor_place(name)) < 20  # type: ignore[misc]

    def short(size: int) -> None:
        for _ in range(200):
            tensor_place("blk.0." + "norm_" * size + "!")

    assert growth(short, 6) < 2 * FACTOR**2  # at worst the square of a length that is bounded
