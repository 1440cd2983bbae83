"""Options of quantize: the rules, the back end, the weights, and the layout of the output."""

from __future__ import annotations

from gguftool.engines.llama_quantize import LlamaQuantize
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.ftypes import FType
from gguftool.format.imatrix import Imatrix
from gguftool.model.layout import OutputOptions
from gguftool.model.opening import ModelLike
from gguftool.record import record


@record
class Weights:
    """An imatrix, and the name under which the output's metadata records it: the user's spelling."""

    imatrix: Imatrix
    name: str


@record
class QuantizeOptions:
    """How to choose and make types, and how the output is laid out.

    `engine`: follow this engine's rules (kept tensors, fallbacks, types that it has); `requantize`: also quantize
    tensors that are quantized in the source; `weights`: the imatrix to use; `llama_quantize`: an installed program that
    makes everything but plain floats, default: the best library installed; `reuse`: models from which tensors are
    copied that already have the wanted type; `preset`: the mix for tensors that no rule matches, default: they stay as
    they are; `pure`: use only the preset's main type; `repack`: only rearrange rows, so that no number changes;
    `allowed_mismatches`: keys in which models to reuse may differ.
    """

    engine: str = LLAMA_CPP
    requantize: bool = False
    weights: Weights | None = None
    llama_quantize: LlamaQuantize | None = None
    reuse: tuple[ModelLike, ...] = ()
    preset: FType | None = None
    pure: bool = False
    repack: bool = False
    allowed_mismatches: tuple[str, ...] = ()
    output: OutputOptions = OutputOptions()
