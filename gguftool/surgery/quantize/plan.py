"""Quantize: plan a model in which a recipe decides each tensor's type, and convert as little as possible for it.

A tensor is copied from the source if it has its target type there, else from a model to reuse that has it in that type.
The rest is computed from the source while it is written (`quantized_source.py`), or made beforehand by an installed
llama-quantize (`external.py`).  The result is a plan like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from gguftool.errors import Notes, PlanError, grouped
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.imatrix import ImatrixEntry
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.format.recipe import Recipe
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.preset import PresetMix
from gguftool.model.scales import SCALED_ARCHITECTURES, Factor, factor_of, owner_of, scales_of
from gguftool.record import record, replace
from gguftool.storage.plan import Plan
from gguftool.surgery.compatibility import contradictions, refuse_not_computable, require_complete
from gguftool.surgery.inputs import Input
from gguftool.surgery.merge import lay_out
from gguftool.surgery.metadata import IMATRIX_PREFIX, SelectedTensor, output_metadata, with_preset
from gguftool.surgery.quantize.options import QuantizeOptions, Weights
from gguftool.surgery.quantize.quantizer import Pending, TensorQuantizer
from gguftool.surgery.quantize.target_types import EngineRules, target_types

_STORED = 127  # bytes of a string: val_str of llama_model_kv_override has 128


class TensorOrigin(Enum):
    """How a tensor of the output is obtained: from the source, from a model to reuse, or by quantizing."""

    COPIED = "copied"
    REUSED = "reused"
    QUANTIZED = "quantized"


@record
class TensorStep:
    """One tensor of the output: `tensor` as it will be, from `model`.

    `entry`: the imatrix weights that it is quantized with; `factor`: the scale that is multiplied into it.
    """

    tensor: Tensor
    origin: TensorOrigin
    model: Model
    entry: ImatrixEntry | None = None
    factor: Factor | None = None


@record
class Decision:
    """The step for each tensor of the output, in the order of `source`, and the models that give reused tensors.

    Scales go with their weights: they are multiplied into a weight that is made; a reused weight comes with those of
    its model.
    """

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
        """The steps that need an installed llama-quantize."""
        return tuple(step for step in self.made if isinstance(step.tensor.padded_extent.source, Pending))

    def with_made(self, made: Mapping[str, Tensor]) -> Decision:
        """The decision with its pending tensors replaced by those in `made`, by name."""
        steps = (
            replace(step, tensor=made[step.tensor.info.name]) if step.tensor.info.name in made else step
            for step in self.steps
        )
        return replace(self, steps=tuple(steps))


def plan_quantize(source: ModelLike, recipe: Recipe, output: StrPath, options: QuantizeOptions | None = None) -> Plan:
    """Plan `source` in the types that `recipe` gives, as the file `output`; with a size limit, as a set of that prefix.

    The first rule that matches a tensor counts; a tensor that no rule matches keeps its type. Raises one `PlanError`
    with all problems: rules that match nothing, types that the engine or the back end lacks, tensors that need an
    imatrix, an imatrix of another model. Plans with `Decision.pending` steps cannot be carried out as they are: use
    `decide`, `made_externally` and `plan_decision` for these.
    """
    options = options or QuantizeOptions()
    return plan_decision(decide(source, recipe, options), output, options)


def decide(source: ModelLike, recipe: Recipe, options: QuantizeOptions) -> Decision:
    """Decide how each tensor is obtained; raises `PlanError` as `plan_quantize` does."""
    source, reuse = as_model(source), tuple(map(as_model, options.reuse))
    require_complete(source)
    if source.byte_order is not ByteOrder.LITTLE:
        raise PlanError("is big-endian, but gguftool quantizes only to little-endian", source=source.name)
    notes = Notes()
    targets = target_types(source, recipe, EngineRules(engine=options.engine, mix=_mix(options)), notes)
    quantizer = TensorQuantizer(source, options, notes)
    steps = []
    for name, tensor in source.tensors.items():
        if owner_of(source.tensors, name) is None:
            step = _step(tensor, targets[name], reuse, quantizer)
            steps += [step, *_scale_steps(step, source, notes)]
    quantizer.finish()
    inputs = [Input(model=model) for model in reuse]
    problems = [*grouped(notes.problems), *contradictions(source, inputs, options.allowed_mismatches)]
    problems += [f"{model.name} is big-endian" for model in reuse if model.byte_order is not ByteOrder.LITTLE]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise PlanError(f"cannot quantize, {count}", problems=problems)
    remarks = (*(remark for model in (source, *reuse) for remark in model.remarks), *grouped(notes.remarks))
    return Decision(source=source, reuse=reuse, steps=tuple(steps), remarks=remarks)


def _mix(options: QuantizeOptions) -> PresetMix | None:
    if options.preset is None:
        return None
    return PresetMix(preset=options.preset, imatrix=options.weights is not None, pure=options.pure)


def plan_decision(decision: Decision, output: StrPath, options: QuantizeOptions) -> Plan:
    """Plan the output of `decision`, which `decide` made with the same `options`."""
    source = decision.source
    weighed = options.weights is not None and any(step.entry is not None for step in decision.made)
    here = Model(
        name="what is quantized here",
        files=source.files,
        kvs=_imatrix_kvs(options.weights, options.engine) if options.weights is not None and weighed else (),
        tensors={},
    )
    chosen = [
        SelectedTensor(tensor=step.tensor, model=here if step.origin is TensorOrigin.QUANTIZED else step.model)
        for step in decision.steps
    ]
    metadata = output_metadata(source, chosen, keep_file_type=options.output.keep_file_type)
    kept = [step.tensor for step in decision.steps if step.origin is TensorOrigin.COPIED]
    created = [step.tensor for step in decision.steps if step.origin is not TensorOrigin.COPIED]
    warnings = refuse_not_computable(created, kept, options.output)
    if options.preset is not None and not options.output.keep_file_type:
        metadata = with_preset(metadata, options.preset)
    dialect = options.output.dialect_for(source)
    used = {id(step.model) for step in decision.steps}
    inputs = [source, *(model for model in decision.reuse if id(model) in used)]
    remarks = (*decision.remarks, *warnings, *metadata.remarks)
    tensors = tuple(step.tensor for step in decision.steps)
    kvs = options.output.with_texts(metadata.kvs, source.byte_order)
    return lay_out(Path(output), kvs, tensors, dialect, options.output.max_size, inputs, remarks)


def _step(tensor: Tensor, target: int, reuse: Sequence[Model], quantizer: TensorQuantizer) -> TensorStep:
    source = quantizer.source
    if tensor.info.type == target:
        return TensorStep(tensor=tensor, origin=TensorOrigin.COPIED, model=source)
    for model in reuse:
        found = model.tensors.get(tensor.info.name)
        if found is not None and found.info.type == target and found.info.shape == tensor.info.shape:
            spelled = replace(found, info=replace(found.info, dims=tensor.info.dims))
            return TensorStep(tensor=spelled, origin=TensorOrigin.REUSED, model=model)
    factor = _folded(tensor, source, quantizer.notes)
    made, entry = quantizer.quantize(tensor, target, factor)
    return TensorStep(tensor=made, origin=TensorOrigin.QUANTIZED, model=source, entry=entry, factor=factor)


def _folded(tensor: Tensor, source: Model, notes: Notes) -> Factor | None:
    """The scale to multiply into `tensor` of `source` when it is made in another type, or None."""
    name = tensor.info.name
    factor = None if _keeps_scales(source) else factor_of(source.tensors, name)
    stem = name.removesuffix("weight")
    if factor is not None and tensor.type_name != "NVFP4" and f"{stem}bias" in source.tensors and ".ffn_" in name:
        # build_ffn multiplies after adding the bias, so the weight alone cannot carry the scale
        notes.problem("llama.cpp multiplies its bias by the scale, too, so the scale cannot be folded into it", name)
    return factor


def _scale_steps(step: TensorStep, source: Model, notes: Notes) -> list[TensorStep]:
    """The steps of the scales that the tensor of `step` keeps; `notes` reports what happens to the others."""
    name = step.tensor.info.name
    own = scales_of(source.tensors, name)
    if step.origin is TensorOrigin.QUANTIZED and own and not _keeps_scales(source):
        if step.factor is not None:
            notes.remark("multiplied by its scale, which is left out", name)
        return []
    found = scales_of(step.model.tensors, name)
    if found.keys() - own.keys():
        notes.remark(f"comes with its scales, from {step.model.name}", name)
    if own.keys() - found.keys():
        notes.remark(f"its scales are left out: {step.model.name} has it in this type without scales", name)
    origin = TensorOrigin.COPIED if step.origin is TensorOrigin.QUANTIZED else step.origin
    return [TensorStep(tensor=scale, origin=origin, model=step.model) for scale in found.values()]


def _keeps_scales(source: Model) -> bool:
    """Whether scales are part of the architecture of `source`, and stay with weights of any type."""
    kv = source.get(ARCHITECTURE_KEY)
    return kv is not None and kv.type is ValueType.STRING and kv.value() in SCALED_ARCHITECTURES


def _imatrix_kvs(weights: Weights, engine: str) -> tuple[KV, ...]:
    """The metadata that the llama-quantize of `engine` writes about its imatrix, in its types.

    Sources: llama.cpp and ik_llama.cpp, quantize.cpp (kv_overrides) and llama-quant.cpp, llama-quantize.cpp
    (kv_overrides: gguf_set_val_u32 there, gguf_set_val_i32 here).
    """
    imatrix = weights.imatrix
    number = ENGINES[engine].imatrix_number
    kvs = [
        make_kv(f"{IMATRIX_PREFIX}file", ValueType.STRING, _cut(weights.name)),
        make_kv(f"{IMATRIX_PREFIX}entries_count", number, len(imatrix.entries)),
    ]
    if imatrix.datasets:
        kvs.insert(1, make_kv(f"{IMATRIX_PREFIX}dataset", ValueType.STRING, _cut(imatrix.datasets[0])))
    if imatrix.chunk_count:
        kvs.append(make_kv(f"{IMATRIX_PREFIX}chunks_count", number, imatrix.chunk_count))
    return tuple(kvs)


def _cut(text: str) -> str:
    """Cut `text` to the bytes that both engines store."""
    return text.encode("utf-8", "surrogateescape")[:_STORED].decode("utf-8", "surrogateescape")
