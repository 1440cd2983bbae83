"""The label of a model as text."""

from __future__ import annotations

from gguftool.analysis.label import Label
from gguftool.render.units import format_size


def label_text(label: Label) -> str:
    """Write the label of a model in one line: ``IQ3_K mix, 3.10 bpw, 7 types, 231 GiB``."""
    if not label.majority:
        return "no tensors"
    kind = f"{label.majority} mix" if label.mix else label.majority
    types = "1 type" if label.types == 1 else f"{label.types} types"
    return f"{kind}, {label.bits_per_weight:.2f} bpw, {types}, {format_size(label.nbytes)}"
