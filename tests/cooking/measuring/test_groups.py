"""Which tensors are measured, and which of them together."""

from __future__ import annotations

import pytest

from gguftool.cooking.measuring.groups import Grouping, grouped, layer_of, measurable, parse_grouping, role_of
from gguftool.errors import PlanError
from gguftool.model.opening import open_model
from tests.support.measure_cases import MODEL

NAMES = ("token_embd.weight", *(f"blk.{layer}.{base}.weight" for layer in (0, 1, 10) for base in ("attn_q", "ffn_up")))


def test_tensors_that_no_engine_quantizes_are_left_out() -> None:
    names = measurable(open_model(MODEL), "llama.cpp", ())
    assert len(names) == 16
    assert not any("norm" in name for name in names)
    with pytest.raises(PlanError, match="'attn_norm' matches no tensor"):
        measurable(open_model(MODEL), "llama.cpp", ("attn_norm",))


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("token_embd.weight", "token_embd", "token_embd"),
        ("blk.17.attn_v.weight", "attn_v", "blk.17"),
        ("blk.3.ffn_down_exps.weight", "ffn_down_exps", "blk.3"),
        ("v.blk.2.attn_q.weight", "attn_q", "v.blk.2"),
        ("odd", "odd", "odd"),
        ("", "", ""),
    ],
)
def test_role_and_layer(name: str, role: str, layer: str) -> None:
    assert (role_of(name), layer_of(name)) == (role, layer)


def test_ways_to_group() -> None:
    assert list(grouped(NAMES, Grouping())) == list(NAMES)
    assert list(grouped(NAMES, parse_grouping(["role"]))) == ["token_embd", "attn_q", "ffn_up"]
    assert list(grouped(NAMES, parse_grouping(["layer"]))) == ["token_embd", "blk.0", "blk.1", "blk.10"]
    rules = parse_grouping([r"blk\.(\d)\.=early.\1", r"ffn_(\w+)=late_\1"])
    assert grouped(NAMES, rules) == {
        "token_embd.weight": ("token_embd.weight",),
        "early.0": NAMES[1:3],
        "early.1": NAMES[3:5],
        "blk.10.attn_q.weight": ("blk.10.attn_q.weight",),
        "late_up": ("blk.10.ffn_up.weight",),
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["roles"], "neither none, role, layer nor REGEX=NAME"),
        (["role", "layer"], "exclude each other"),
        (["=x"], "neither"),
        (["(a*)*=x"], r"'\(a\*\)\*'"),
        (["(=x"], r"'\('"),
    ],
)
def test_what_is_no_grouping_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grouping(texts)


def test_a_name_with_a_group_that_the_expression_lacks_is_named() -> None:
    with pytest.raises(PlanError, match=r"'\\9'"):
        grouped(NAMES, parse_grouping([r"ffn=\9"]))
