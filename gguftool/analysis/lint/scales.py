"""Rules about scales: the tensors ``X.scale`` and ``X.input_scale`` that belong to the weight ``X.weight``.

Source: llama.cpp src/llama-model.cpp (which scales it loads), src/llama-graph.cpp (where it multiplies by them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguftool.analysis.lint.kinds import kind_in_words
from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity, hits_by_message, rule
from gguftool.analysis.lint.target import LintTarget, TensorView
from gguftool.analysis.lint.way_out import MAX_COMMAND, model_name, new_file_name
from gguftool.errors import command_line
from gguftool.format.engine_facts.engines import BOTH
from gguftool.model.scales import SCALED_ARCHITECTURES, is_scale_of, scale_names, weight_name
from gguftool.record import replace

_NVFP4 = "NVFP4"


def _scaled(target: LintTarget) -> Iterator[tuple[TensorView, TensorView]]:
    """Yield each scale with its weight."""
    for tensor in target.tensors:
        weight = target.by_name.get(weight_name(tensor.name) or "")
        if weight is not None and is_scale_of(tensor.info, weight.info):
            yield tensor, weight


@rule(
    "M07",
    Severity.WARNING,
    way_out="if the weight was swapped without its scale, merge or swap again from the originals",
)
def scale_beside_other_type(target: LintTarget) -> Iterator[Hit]:
    """A scale belongs to a weight that is not NVFP4: llama.cpp multiplies by it, whatever the weight's type."""
    if target.architecture in SCALED_ARCHITECTURES:
        return
    odd = {id(scale): weight for scale, weight in _scaled(target) if weight.type != _NVFP4}
    found = (tensor for tensor in target.tensors if id(tensor) in odd and tensor.name.endswith(".scale"))
    for hit in hits_by_message(found, lambda t: f"belongs to a weight of type {odd[id(t)].type}"):
        weights = [odd[id(target.by_name[name])] for name in hit.tensors]
        yield replace(hit, way_out=_multiplied_in(target, weights))


def _multiplied_in(target: LintTarget, weights: Sequence[TensorView]) -> str:
    """Write the command that multiplies the scales of `weights` into them: in another type, or they would be copied."""
    rules = (f"{weight.name}={'F32' if weight.type == 'F16' else 'F16'}" for weight in weights)
    words = [word for rule in rules for word in ("--tensor", rule)]
    if sum(map(len, words)) > MAX_COMMAND:
        return ""
    words = ["quantize", model_name(target), "--allow-requantize", *words, "-o", new_file_name(target)]
    return f"{command_line(*words)} multiplies it in; if it was lost in a swap, merge again from the originals"


@rule("M08", Severity.WARNING, way_out="merge or swap again from the originals: scales come with their weights")
def scale_missing(target: LintTarget) -> Iterator[Hit]:
    """An NVFP4 weight has no scale, but others in the file have one: it may have been lost."""
    if target.architecture in SCALED_ARCHITECTURES:
        return
    if not any(weight.type == _NVFP4 and scale.name.endswith(".scale") for scale, weight in _scaled(target)):
        return
    bare = (
        tensor
        for tensor in target.weights
        if tensor.type == _NVFP4 and all(name not in target.by_name for name in scale_names(tensor.name)[:1])
    )
    if target.missing:
        if any(bare):
            raise CannotEvaluate("the set is incomplete, so scales may be in another shard")
        return
    yield from hits_by_message(bare, lambda t: f"{_NVFP4} without a scale, other weights have one")


@rule(
    "M09",
    Severity.ERROR,
    engines=BOTH,
    way_out="take the weight from the file that the scale comes from, or merge again from the originals",
)
def scale_without_weight(target: LintTarget) -> Iterator[Hit]:
    """A scale has no weight: engines refuse a file with tensors that they did not ask for."""
    if kind_in_words(target) or not target.architecture or target.missing or target.this_file_only:
        return
    orphans = (
        tensor
        for tensor in target.tensors
        if tensor.layer is not None and (name := weight_name(tensor.name)) is not None and name not in target.by_name
    )
    yield from hits_by_message(orphans, lambda t: "a scale, but the weight of that name is missing")
