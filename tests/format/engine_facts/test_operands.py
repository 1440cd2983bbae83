"""On which types engines abort: as measured with llama.cpp b11434, place by place."""

from __future__ import annotations

import pytest

from gguftool.format.engine_facts.operands import why_not_computable
from gguftool.format.ggml import find_type

MEASURED = [
    ("blk.0.attn_norm.weight", "F16 BF16 Q8_0 F64 I32", ""),
    ("blk.0.attn_q_norm.weight", "F16 BF16 Q8_0 F64 I32", ""),
    ("output_norm.weight", "F16 BF16 Q8_0 F64 I32", ""),
    ("blk.0.attn_q.bias", "F16 BF16 Q8_0 F64 I32", ""),
    ("rope_freqs.weight", "F16 BF16 Q8_0 F64 I32", ""),
    ("token_embd.weight", "F64 I32", "F16 BF16 Q8_0"),
    ("output.weight", "F64 I32", "F16 BF16 Q8_0"),
    ("blk.0.attn_q.weight", "F64 I32", "F16 BF16 Q8_0"),
    ("blk.0.ffn_gate_inp.weight", "F64 I32", "F16 BF16 Q8_0"),
    ("blk.0.ffn_up_exps.weight", "F64 I32", "F16 BF16 Q8_0"),
    ("blk.0.ffn_gate_tid2eid.weight", "", "I32"),
    ("double_blocks.0.img_attn.norm.key_norm.weight", "", "F16 BF16"),
]


@pytest.mark.parametrize(("name", "aborts", "runs"), MEASURED)
def test_types_on_which_engines_abort(name: str, aborts: str, runs: str) -> None:
    for kinds, expected in ((aborts, True), (f"{runs} F32", False)):
        for kind in kinds.split():
            traits = find_type(kind)
            assert traits is not None
            assert bool(why_not_computable(name, traits.id)) is expected, kind


def test_a_type_that_nobody_knows_is_not_judged() -> None:
    assert why_not_computable("blk.0.attn_norm.weight", 9999) == ""
