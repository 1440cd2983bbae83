"""Tiny models that know what comes next: MTP layers and a draft of EAGLE-3 that real llama.cpp finds right.

With random weights a draft is never right, and nobody would see whether it was cut or grafted well.
"""

from __future__ import annotations

import re

import numpy as np  # noqa: TID253 - models are arrays

from tests.support import builders as b
from tests.support.tiny_models import ENDS, HEAD, WIDTH, TinyModel, llama, make_model


def first_order(model: TinyModel) -> TinyModel:
    """`model` with layers that add nothing: what comes next depends on the last token alone.

    Its MTP layers know that: they see that token, and end as the trunk does.
    """
    silent = re.compile(r"(attn_output|ssm_out|ffn_down|ffn_down_exps|ffn_down_shexp)\.weight$")
    token = np.concatenate([np.eye(WIDTH), np.zeros((WIDTH, WIDTH))], axis=1).astype(np.float32)
    known = {
        "eh_proj": token,
        "enorm": np.ones(WIDTH, np.float32),
        "shared_head_norm": model.weights["output_norm.weight"],
    }
    changed = {name: np.zeros_like(array) for name, array in model.weights.items() if silent.search(name)}
    changed |= {name: known[part] for name in model.weights for part in known if name.endswith(f"nextn.{part}.weight")}
    return model.with_weights({**model.weights, **changed})


def eagle3() -> TinyModel:
    """A draft for `first_order(llama())` that knows what comes next: its attention looks at the last token alone."""
    target = first_order(llama()).weights
    own = {
        "block_count": (b.U32, 1),
        "attention.head_count": (b.U32, WIDTH // HEAD),
        "attention.head_count_kv": (b.U32, WIDTH // HEAD),
        "target_layers": (b.ARR, b.Array(b.I32, [0, 1, 2])),
        "target_hidden_size": (b.U32, WIDTH),
        "norm_before_residual": (b.BOOL, 1),
    }
    one, nothing = np.eye(WIDTH, dtype=np.float32), np.zeros((WIDTH, WIDTH), np.float32)
    token = np.concatenate([8 * one, nothing], axis=1)  # of the token and what the target thinks; 8 makes it sharp
    layer = {f"attn_{part}.weight": token for part in ("q", "k", "v")}
    layer |= {"attn_output.weight": one, "ffn_gate.weight": nothing, "ffn_up.weight": nothing}
    layer |= {f"{norm}.weight": np.ones(WIDTH, np.float32) for norm in ("attn_norm", "ffn_norm")}
    layer |= {"attn_norm_2.weight": np.full(WIDTH, 1e-5, np.float32)}  # what it thought itself hardly counts
    weights = {name: target[name] for name in ENDS} | {"fc.weight": np.concatenate([nothing] * 3, axis=1)}
    weights |= {f"blk.0.{role}": array for role, array in {**layer, "ffn_down.weight": nothing}.items()}
    return make_model("eagle3", own, {}).with_weights(weights)
