"""Quantize with an installed llama-quantize, for types that no library here makes.

The program gets a small GGUF with the model's metadata and only the tensors to convert, and one rule for each type.
Its output supplies the pending tensors of a decision.  Tensors are renamed after their type,
``iq4_ks.000017.weight``: so one rule for each type is enough, and neither engine counts them as parts of attention.
Embeddings and the output keep their names, by which engines know them.  An imatrix is cut to these tensors, as exact
weights in the legacy format, which every release of both engines reads.

How the program is run is in `engines/llama_quantize.py`.
Source: src/llama-quant.cpp of llama.cpp and src/llama.cpp of ik_llama.cpp (which names they look at).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from gguftool.engines.llama_quantize import LlamaQuantizeRun, run_llama_quantize
from gguftool.errors import ExecuteError, FormatError, PlanError, listed, printable
from gguftool.format.engine_facts.embeddings import EMBEDDINGS_AND_OUTPUT
from gguftool.format.ggml import TYPES, type_alias
from gguftool.format.imatrix import Imatrix, ImatrixEntry, ImatrixKind
from gguftool.format.imatrix_write import serialize_legacy
from gguftool.format.pattern import literal
from gguftool.format.recipe import spelling
from gguftool.model.layout import Dialect, gguf_file
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.model.opening import open_model
from gguftool.record import record, replace
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.source import Extent
from gguftool.surgery.dequantized_source import FloatType, dequantized
from gguftool.surgery.metadata import without_layout_keys
from gguftool.surgery.quantize.options import QuantizeOptions
from gguftool.surgery.quantize.plan import Decision, TensorStep

_F32 = 0  # the type id


@record
class ExternalJob:
    """A run of the program of `options`, for `output`, with `threads` (default: one for each core)."""

    options: QuantizeOptions
    output: Path
    threads: int | None = None

    @property
    def tool(self) -> Path:
        """The program; raises `PlanError` if the options have none."""
        if self.options.llama_quantize is None:
            raise PlanError("these tensors need a llama-quantize, and none is given")
        return self.options.llama_quantize.path


@contextlib.contextmanager
def made_externally(
    decision: Decision, job: ExternalJob, note: Callable[[str], None]
) -> Iterator[Mapping[str, Tensor]]:
    """Make the pending tensors of `decision`; yield them by name, until the context ends.

    They are in a temporary folder next to the output, which is removed when the context ends. `note` gets one line of
    progress. Raises `ExecuteError` if the program fails, `PlanError` if it made something other than requested.
    """
    with tempfile.TemporaryDirectory(prefix=".gguftool-", dir=_existing(job.output.parent)) as folder:
        place = Path(folder)
        steps = {_new_name(index, step): step for index, step in enumerate(decision.pending)}
        execute(_small_plan(decision.source, steps, place, job.options), Options(sync=False, resume=False))
        note(f"{job.tool.name} makes {len(steps):,} tensor(s)")
        run_llama_quantize(_run_of(job, steps, place))
        made = _opened(place / "made.gguf", job.tool)
        yield {step.tensor.info.name: _checked(made, name, step) for name, step in steps.items()}


def _run_of(job: ExternalJob, steps: Mapping[str, TensorStep], folder: Path) -> LlamaQuantizeRun:
    weighted = any(step.entry is not None for step in steps.values())
    return LlamaQuantizeRun(
        tool=job.tool,
        engine=job.options.engine,
        source=folder / "source.gguf",
        target=folder / "made.gguf",
        rules=tuple(dict.fromkeys(_rule(step, job.options.engine) for step in steps.values())),
        imatrix=folder / "weights.dat" if weighted else None,
        requantize=job.options.requantize,
        threads=job.threads,
    )


def _opened(path: Path, tool: Path) -> Model:
    try:
        return open_model(path)
    except FormatError as error:  # it names a file that is removed before the user reads this
        raise ExecuteError(f"what it wrote is not a valid GGUF: {error}", source=str(tool)) from error


def _rule(step: TensorStep, engine: str) -> str:
    name, kind = step.tensor.info.name, step.tensor.info.type
    start = literal(name) + "$" if name in EMBEDDINGS_AND_OUTPUT else TYPES[kind].name.lower() + r"\."
    return f"^{start}={spelling(kind, engine)}"


def _new_name(index: int, step: TensorStep) -> str:
    name = step.tensor.info.name
    return name if name in EMBEDDINGS_AND_OUTPUT else f"{TYPES[step.tensor.info.type].name.lower()}.{index:06}.weight"


def _existing(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists: the rest is created with the output."""
    folder = folder.absolute()
    return next((each for each in (folder, *folder.parents) if each.is_dir()), folder)


def _small_plan(source: Model, steps: Mapping[str, TensorStep], folder: Path, options: QuantizeOptions) -> Plan:
    """Plan the GGUF with the tensors of `source` under their new names, and the imatrix cut to them."""
    tensors = [_input(source.tensors[step.tensor.info.name], step) for step in steps.values()]
    renamed = [
        replace(tensor, info=replace(tensor.info, name=name)) for name, tensor in zip(steps, tensors, strict=True)
    ]
    dialect = Dialect(version=3, byte_order=source.byte_order, alignment=source.alignment)
    kvs = without_layout_keys(source.kvs)
    outputs = [gguf_file(folder / "source.gguf", kvs, renamed, dialect)]
    entries = {name: _entry(name, step) for name, step in steps.items() if step.entry is not None}
    if entries and options.weights is not None:
        given = options.weights.imatrix
        cut = Imatrix(
            entries=entries,
            datasets=given.datasets,
            chunk_count=given.chunk_count or 1,
            kind=ImatrixKind.LEGACY,
        )
        data = serialize_legacy(cut)
        outputs.append(OutputFile(path=folder / "weights.dat", head=data, copies=(), size=len(data)))
    return Plan(outputs=tuple(outputs), inputs=source.sources)


def _input(tensor: Tensor, step: TensorStep) -> Tensor:
    """The tensor to convert: as `source` has it, or as F32 times its scale, because the program ignores scales."""
    if step.factor is None:
        return tensor
    computed = dequantized(tensor, FloatType.F32, tensor.byte_order, step.factor)
    return replace(
        tensor,
        info=replace(tensor.info, type=_F32),
        padded_extent=Extent(source=computed, offset=0, length=computed.size),
        type_nbytes=computed.size,
        sizing=Sizing.EXACT,
        alignment=1,  # computed bytes have no padding to keep
    )


def _entry(name: str, step: TensorStep) -> ImatrixEntry:
    """An entry with the tensor's weights as its sums and a count of 1, so that nothing is divided again."""
    import numpy as np

    if step.entry is None:
        raise LookupError(name)
    weights = step.entry.weights_for(step.tensor.info.dims).reshape(1, -1)
    return ImatrixEntry(name=name, sums=weights, counts=np.ones(1, dtype=np.float32))


def _checked(made: Model, name: str, step: TensorStep) -> Tensor:
    """The tensor made for `step`, under its own name; raises `PlanError` if its type or shape is wrong."""
    wanted, found = step.tensor.info, made.tensors.get(name)
    if found is None or found.info.type != wanted.type or found.info.shape != wanted.shape:
        got = "nothing" if found is None else f"{type_alias(found.info.type)} {listed([str(found.info.dims)])}"
        raise PlanError(
            f"made {got} of '{printable(wanted.name)}', but {type_alias(wanted.type)} {wanted.dims} was requested; "
            "does this program belong to the engine given by --engine?",
            source="llama-quantize",
        )
    return replace(found, info=replace(found.info, name=wanted.name, dims=wanted.dims))
