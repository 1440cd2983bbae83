"""What a tensor is for, by its name: its role in the network and its layer."""

from __future__ import annotations

import re
from enum import Enum

_LAYER = re.compile(r"(?:^|\.)blk\.(0|[1-9][0-9]{0,5})\.")


class Role(str, Enum):
    """Roles that tensors play."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    ATTENTION = "attention"
    FFN = "dense ffn"
    EXPERTS = "routed experts"
    ROUTER = "router"
    NORM = "norms"
    OTHER = "other"


# The first part that is found decides.
_PARTS = (
    ("_norm", Role.NORM),
    ("_exps", Role.EXPERTS),
    ("ffn_gate_inp", Role.ROUTER),
    ("ffn_", Role.FFN),
    ("attn_", Role.ATTENTION),
    ("token_embd", Role.EMBEDDING),
    ("output", Role.OUTPUT),
)


def role_of(name: str) -> Role:
    """Return the role of the tensor called `name`; OTHER where the table does not know it."""
    return next((role for part, role in _PARTS if part in name), Role.OTHER)


def layer_of(name: str) -> int | None:
    """Return the number of the layer (``blk.N.``) that the tensor called `name` belongs to, or None."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None
