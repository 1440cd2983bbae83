"""Quantize: plan a model in which a recipe decides each tensor's type, and convert as little as possible for it.

A tensor that the source has in its target type is copied, else one that a model to reuse has in it.  The rest is
computed from the source while it is written (`quantized_source.py`), or made first by an installed llama-quantize
(`external.py`).  The result is a plan like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from gguftool.errors import Notes, PlanError, grouped
from gguftool.format.imatrix import ImatrixEntry
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.format.recipe import Recipe
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.record import record, replace
from gguftool.storage.plan import Plan
from gguftool.surgery.compatibility import contradictions, require_complete
from gguftool.surgery.inputs import Input
from gguftool.surgery.merge import lay_out
from gguftool.surgery.metadata import IMATRIX_PREFIX, SelectedTensor, output_metadata
from gguftool.surgery.quantize.options import QuantizeOptions, Weights
from gguftool.surgery.quantize.quantizer import Pending, TensorQuantizer
from gguftool.surgery.quantize.target_types import EngineRules, target_types


class TensorOrigin(Enum):
    """How a tensor of the output is obtained: from the source, from a model to reuse, or by quantizing."""

    COPIED = "copied"
    REUSED = "reused"
    QUANTIZED = "quantized"


@record
class TensorStep:
    """One tensor of the output: `tensor` as it will be, from `model`; `entry`: the weights that it is made with."""

    tensor: Tensor
    origin: TensorOrigin
    model: Model
    entry: ImatrixEntry | None = None


@record
class Decision:
    """The step for each tensor of `source`, in the source's order, and the models of which some are reused."""

    source: Model
    reuse: tuple[Model, ...]
    steps: tuple[TensorStep, ...]
    remarks: tuple[str, ...]

    @property
    def made(self) -> tuple[TensorStep, ...]:
        """The steps that quantize."""
        return tuple(step for step in self.steps if step.origin is TensorOrigin.QUANTIZED)

    @property
    def pending(self) -> tuple[TensorStep, ...]:
        """The steps that wait for an installed llama-quantize."""
        return tuple(step for step in self.made if isinstance(step.tensor.padded_extent.source, Pending))

    def with_made(self, made: Mapping[str, Tensor]) -> Decision:
        """The decision with its pending tensors replaced by those that llama-quantize `made`, by name."""
        steps = (
            replace(step, tensor=made[step.tensor.info.name]) if step.tensor.info.name in made else step
            for step in self.steps
        )
        return replace(self, steps=tuple(steps))


def plan_quantize(source: ModelLike, recipe: Recipe, output: StrPath, options: QuantizeOptions | None = None) -> Plan:
    """Plan `source` in the types that `recipe` gives, as the file `output`; with a size limit, as a set of that prefix.

    The first rule that matches a tensor counts; a tensor that no rule matches keeps its type. Raises one `PlanError`
    with all problems: rules that match nothing, types that the engine or the back end lacks, tensors that need an
    imatrix, an imatrix of another model. Plans with `Decision.pending` steps cannot be carried out as they are: take
    `decide`, `made_externally` and `plan_decision` for these.
    """
    options = options or QuantizeOptions()
    return plan_decision(decide(source, recipe, options), output, options)


def decide(source: ModelLike, recipe: Recipe, options: QuantizeOptions) -> Decision:
    """Decide how each tensor is obtained; raises `PlanError` as `plan_quantize` does."""
    source, reuse = as_model(source), tuple(map(as_model, options.reuse))
    require_complete(source)
    if source.byte_order is not ByteOrder.LITTLE:
        raise PlanError("is big-endian: what is quantized here is little-endian", source=source.name)
    notes = Notes()
    targets = target_types(source, recipe, EngineRules(engine=options.engine, pure=options.pure), notes)
    quantizer = TensorQuantizer(source, options, notes)
    steps = tuple(_step(tensor, targets[name], reuse, quantizer) for name, tensor in source.tensors.items())
    quantizer.finish()
    inputs = [Input(model=model) for model in reuse]
    problems = [*grouped(notes.problems), *contradictions(source, inputs, options.allowed_mismatches)]
    problems += [f"{model.name} is big-endian" for model in reuse if model.byte_order is not ByteOrder.LITTLE]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise PlanError(f"cannot quantize, {count}", problems=problems)
    remarks = (*(remark for model in (source, *reuse) for remark in model.remarks), *grouped(notes.remarks))
    return Decision(source=source, reuse=reuse, steps=steps, remarks=remarks)


def plan_decision(decision: Decision, output: StrPath, options: QuantizeOptions) -> Plan:
    """Plan the output of `decision`, which `decide` made with the same `options`."""
    source = decision.source
    weighed = options.weights is not None and any(step.entry is not None for step in decision.made)
    here = Model(
        name="what is quantized here",
        files=source.files,
        kvs=_imatrix_kvs(options.weights) if options.weights is not None and weighed else (),
        tensors={},
    )
    chosen = [
        SelectedTensor(tensor=step.tensor, model=here if step.origin is TensorOrigin.QUANTIZED else step.model)
        for step in decision.steps
    ]
    metadata = output_metadata(source, chosen, keep_file_type=options.output.keep_file_type)
    dialect = options.output.dialect_for(source)
    used = {id(step.model) for step in decision.steps}
    inputs = [source, *(model for model in decision.reuse if id(model) in used)]
    remarks = (*decision.remarks, *metadata.remarks)
    tensors = tuple(step.tensor for step in decision.steps)
    return lay_out(Path(output), metadata.kvs, tensors, dialect, options.output.max_size, inputs, remarks)


def _step(tensor: Tensor, target: int, reuse: Sequence[Model], quantizer: TensorQuantizer) -> TensorStep:
    source = quantizer.source
    if tensor.info.type == target:
        return TensorStep(tensor=tensor, origin=TensorOrigin.COPIED, model=source)
    for model in reuse:
        found = model.tensors.get(tensor.info.name)
        if found is not None and found.info.type == target and found.info.shape == tensor.info.shape:
            spelled = replace(found, info=replace(found.info, dims=tensor.info.dims))
            return TensorStep(tensor=spelled, origin=TensorOrigin.REUSED, model=model)
    made, entry = quantizer.quantize(tensor, target)
    return TensorStep(tensor=made, origin=TensorOrigin.QUANTIZED, model=source, entry=entry)


def _imatrix_kvs(weights: Weights) -> tuple[KV, ...]:
    """The metadata that llama-quantize writes about its imatrix. Source: llama.cpp tools/quantize/quantize.cpp."""
    imatrix = weights.imatrix
    kvs = [
        make_kv(f"{IMATRIX_PREFIX}file", ValueType.STRING, weights.name),
        make_kv(f"{IMATRIX_PREFIX}entries_count", ValueType.UINT32, len(imatrix.entries)),
    ]
    if imatrix.datasets:
        kvs.insert(1, make_kv(f"{IMATRIX_PREFIX}dataset", ValueType.STRING, imatrix.datasets[0]))
    if imatrix.chunk_count:
        kvs.append(make_kv(f"{IMATRIX_PREFIX}chunks_count", ValueType.UINT32, imatrix.chunk_count))
    return tuple(kvs)
