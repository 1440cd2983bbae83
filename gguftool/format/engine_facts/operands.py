"""Which tensor types the engines cannot compute with, by the use of a tensor.

Norms, biases, scales and rope factors are operands of element-wise operations, which combine F32 with the F32
activations: any other type aborts the engine. Matrices may have any type with a dot product: F64 and the integers have
none, so the engine aborts or ends with a segmentation fault. A router in F16, BF16 or Q8_0 runs.

Measured with llama.cpp b11434 on the CPU: F16, BF16, Q8_0, F64 and I32 in each place. Source: ggml-cpu/binary-ops.cpp,
ggml.c (ggml_rope_impl), ggml-cpu/ggml-cpu.c (type traits).
"""

from __future__ import annotations

import re

from gguftool.format.ggml import TYPES, type_name

# Names of text models and projectors; image models have other engines, and other names.
_KNOWN = re.compile(r"(?:(?:enc|dec|v|a|mm)\.|blk\.|output|token_|rope_|cls|position_embd)")
_ELEMENTWISE = re.compile(
    r"(?:norm(?:_[a-z0-9]{1,20})?|layer_output_scale|rope_freqs|rope_factors_[a-z]{1,20})\.weight$"
    r"|\.bias$|\.(?:input_)?scale$|attn_sinks(?:\.weight)?$"
)
_INDICES = ("tid2eid", "d2t")  # tables of numbers, which are integers


def why_not_computable(name: str, type_id: int) -> str:
    """Why the engines abort on a tensor called `name` of type `type_id`; empty if they do not, or if unknown."""
    traits = TYPES.get(type_id)
    if traits is None or traits.name == "F32" or not _KNOWN.match(name):
        return ""
    if _ELEMENTWISE.search(name[-80:]):
        return f"{type_name(type_id)}, and engines take norms, biases and scales only in F32"
    is_number = traits.name == "F64" or traits.kind == "integer"
    if is_number and name.endswith(".weight") and not any(part in name for part in _INDICES):
        return f"{type_name(type_id)}, with which engines cannot multiply"
    return ""
