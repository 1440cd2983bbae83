"""Quantize: a model in which only those tensors are made anew that a recipe wants in another type.

What the source has in the wanted type is copied; else what a model to reuse has in it; the rest is computed from the
source while it is written (`surgery/quantized.py`), or was made before by an installed llama-quantize
(`surgery/external.py`).  The outcome is a plan like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from gguftool.errors import PlanError
from gguftool.format.imatrix import ImatrixEntry
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.format.recipe import Recipe
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model, Tensor
from gguftool.record import record, replace
from gguftool.storage.plan import Plan
from gguftool.surgery.compatibility import contradictions
from gguftool.surgery.inputs import Input
from gguftool.surgery.merge import lay_out
from gguftool.surgery.metadata import IMATRIX_PREFIX, Chosen, true_metadata
from gguftool.surgery.quantize.maker import Awaited, MakeOptions, Maker, Weights
from gguftool.surgery.quantize.target_types import Rules, wanted_types
from gguftool.surgery.selection import Notes, grouped, require_complete


@record
class QuantizeOptions:
    """How to choose and make types, and how the output lies in its files.

    `reuse`: models to copy tensors from that are in the wanted type already; `pure`: no types of their own for
    embeddings and output; `allowed_mismatches`: keys in which models to reuse may differ.
    """

    make: MakeOptions = MakeOptions()
    reuse: tuple[Model, ...] = ()
    pure: bool = False
    allowed_mismatches: tuple[str, ...] = ()
    output: OutputOptions = OutputOptions()


class Origin(Enum):
    """Where a tensor of the output comes from."""

    COPIED = "copied"
    REUSED = "reused"
    QUANTIZED = "quantized"


@record
class Step:
    """One tensor of the output: `tensor` as it will be, of `model`; `entry` are the weights that it is made with."""

    tensor: Tensor
    origin: Origin
    model: Model
    entry: ImatrixEntry | None = None


@record
class Decision:
    """What becomes of each tensor of `source`, in its order."""

    source: Model
    reuse: tuple[Model, ...]
    steps: tuple[Step, ...]
    remarks: tuple[str, ...]

    @property
    def made(self) -> tuple[Step, ...]:
        """The tensors that are quantized."""
        return tuple(step for step in self.steps if step.origin is Origin.QUANTIZED)

    @property
    def awaited(self) -> tuple[Step, ...]:
        """The tensors that an installed llama-quantize is to make first."""
        return tuple(step for step in self.made if isinstance(step.tensor.gap.source, Awaited))

    def with_made(self, made: Mapping[str, Tensor]) -> Decision:
        """Return the decision with the tensors that an earlier step has `made`."""
        steps = (
            replace(step, tensor=made[step.tensor.info.name]) if step.tensor.info.name in made else step
            for step in self.steps
        )
        return replace(self, steps=tuple(steps))


def plan_quantize(source: Model, recipe: Recipe, output: Path, options: QuantizeOptions | None = None) -> Plan:
    """Plan `source` with the types that `recipe` says, as `output`, or as a set with that prefix.

    Raises one `PlanError` with everything that stands in the way: rules that match nothing, types that the engine or
    the back end has not, tensors that need an imatrix, entries of another model's.
    """
    options = options or QuantizeOptions()
    return plan_decision(decide(source, recipe, options), output, options)


def decide(source: Model, recipe: Recipe, options: QuantizeOptions) -> Decision:
    """Decide where each tensor comes from; raises as `plan_quantize` does."""
    require_complete(source)
    if source.byte_order is not ByteOrder.LITTLE:
        raise PlanError("is big-endian: what is quantized here is little-endian", source=source.name)
    notes = Notes()
    wanted = wanted_types(source, recipe, Rules(engine=options.make.engine, pure=options.pure), notes)
    maker = Maker(source, options.make, notes)
    steps = tuple(_step(tensor, wanted[name], source, options.reuse, maker) for name, tensor in source.tensors.items())
    maker.finish()
    inputs = [Input(model=model) for model in options.reuse]
    problems = [*grouped(notes.problems), *contradictions(source, inputs, options.allowed_mismatches)]
    problems += [f"{model.name} is big-endian" for model in options.reuse if model.byte_order is not ByteOrder.LITTLE]
    if problems:
        said = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise PlanError(f"cannot quantize, {said}", problems=problems)
    remarks = (*(remark for model in (source, *options.reuse) for remark in model.remarks), *grouped(notes.remarks))
    return Decision(source=source, reuse=options.reuse, steps=steps, remarks=remarks)


def plan_decision(decision: Decision, output: Path, options: QuantizeOptions) -> Plan:
    """Plan what was decided."""
    source = decision.source
    weighed = options.make.weights is not None and any(step.entry is not None for step in decision.made)
    here = Model(
        name="what is quantized here",
        files=source.files,
        kvs=_imatrix_kvs(options.make.weights) if options.make.weights is not None and weighed else (),
        tensors={},
    )
    chosen = [
        Chosen(tensor=step.tensor, model=here if step.origin is Origin.QUANTIZED else step.model)
        for step in decision.steps
    ]
    truth = true_metadata(source, chosen, keep_file_type=options.output.keep_file_type)
    dialect = options.output.dialect_for(source)
    used = {id(step.model) for step in decision.steps}
    inputs = [source, *(model for model in decision.reuse if id(model) in used)]
    remarks = (*decision.remarks, *truth.remarks)
    tensors = tuple(step.tensor for step in decision.steps)
    return lay_out(output, truth.kvs, tensors, dialect, options.output.max_size, inputs, remarks)


def _step(tensor: Tensor, wanted: int, source: Model, reuse: Sequence[Model], maker: Maker) -> Step:
    if tensor.info.type == wanted:
        return Step(tensor=tensor, origin=Origin.COPIED, model=source)
    for model in reuse:
        found = model.tensors.get(tensor.info.name)
        if found is not None and found.info.type == wanted and found.info.shape == tensor.info.shape:
            spelled = replace(found, info=replace(found.info, dims=tensor.info.dims))
            return Step(tensor=spelled, origin=Origin.REUSED, model=model)
    made, entry = maker.make(tensor, wanted)
    return Step(tensor=made, origin=Origin.QUANTIZED, model=source, entry=entry)


def _imatrix_kvs(weights: Weights) -> tuple[KV, ...]:
    """Return what llama-quantize writes of its imatrix. Source: llama.cpp tools/quantize/quantize.cpp."""
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
