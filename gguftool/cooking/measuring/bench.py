"""A bench: the engine, the reference's logits and a scratch copy. It measures one task after another."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from gguftool.cooking.measure_lines import ERRORS, LEAST_KLD, Basis, Carrier, FloorLine, KldLine, Scores
from gguftool.cooking.measuring.logits import SavedLogits, kept_logits, make_logits, same_perplexity
from gguftool.cooking.measuring.scratch import NoCarrierError, Scratch, plan_scratch
from gguftool.cooking.model_digest import model_digest
from gguftool.cooking.type_values import TypedTensor, TypeMaker
from gguftool.engines.llama_perplexity import (
    LEAST_TOKENS,
    Comparison,
    LogitsHead,
    PerplexityRun,
    compare_logits,
    engine_build,
    find_perplexity,
    scored_tokens,
)
from gguftool.engines.probe import LoadEngine
from gguftool.errors import ExecuteError, PlanError, command_line
from gguftool.format.ggml import TYPES, find_type, type_alias
from gguftool.format.kv import ByteOrder, ValueType
from gguftool.model.companions import open_imatrix
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.record import record, replace
from gguftool.storage.execute.copying import shared_bytes
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.sources.locate import base_name
from gguftool.storage.system.names import unlink
from gguftool.storage.system.space import free_bytes
from gguftool.surgery.compatibility import require_complete
from gguftool.surgery.quantize.options import QuantizeOptions, Weights
from gguftool.surgery.quantize.plan import Decision, TensorOrigin, TensorStep, plan_decision

_TOKENS = "tokenizer.ggml.tokens"
_LARGEST_FLOOR = 0.02  # nats; GPUs differ from run to run by a hundredth of that
_STEP = 1 << 20


@record
class Setup:
    """The files to measure with, under names that every machine of a cluster finds, and options.

    `context` and `chunks`: the text is cut into chunks of `context` tokens, at most `chunks` of them. `arguments`: more
    options for the engine. `seconds`: the time limit of one run of it. `any_width` as in `TypeMaker`. `version` is that
    of gguftool.
    """

    model: str
    text: str
    engine: str
    imatrix: str | None = None
    quants: tuple[str, ...] = ()
    context: int = 512
    chunks: int = 8
    arguments: tuple[str, ...] = ()
    seconds: float = 7 * 86400.0
    any_width: bool = False
    version: str = ""

    @property
    def options(self) -> str:
        """The options that change numbers, as lines record them."""
        words = ["-c", str(self.context), "--chunks", str(self.chunks), *self.arguments]
        return " ".join(words) + (" any-width" if self.any_width else "")


@record
class Task:
    """One measurement: a group of tensors at one type, by its alias."""

    group: str
    tensors: tuple[str, ...]
    type: str


@record
class Inputs:
    """The opened inputs of a setup, and the basis that lines record."""

    model: Model
    maker: TypeMaker
    engine: LoadEngine
    basis: Basis
    vocabulary: int | None


def open_inputs(setup: Setup, folder: Path) -> Inputs:
    """Open the files of `setup`; run the engine in `folder` to get its version.

    Raises `PlanError` for inputs that cannot be measured this way.
    """
    if setup.chunks * scored_tokens(setup.context) < LEAST_TOKENS:
        raise PlanError(
            f"{setup.chunks} chunks of {setup.context} tokens score {setup.chunks * scored_tokens(setup.context)}, but "
            f"the engine gives statistics for {LEAST_TOKENS} or more; give more --chunks or a larger --ctx"
        )
    engine = find_perplexity(setup.engine, folder)
    model = open_reference(setup.model)
    for source in model.sources:
        if source.is_remote:
            fetch = command_line("fetch", setup.model, "-o", base_name(source.name))
            raise PlanError(f"engines load local files; {fetch} gets it", source=source.name)
    maker = make_maker(model, setup.imatrix, setup.quants, engine=engine.engine, any_width=setup.any_width)
    weights = maker.weights
    basis = Basis(
        model=model_digest(model),
        text=_file_digest(setup.text),
        imatrix=None if weights is None else weights.imatrix.digest,
        engine=engine_build(engine),
        options=setup.options,
        gguftool=setup.version,
    )
    return Inputs(model=model, maker=maker, engine=engine, basis=basis, vocabulary=vocabulary_of(model))


def open_reference(name: str) -> Model:
    """Open the model to measure; raises `PlanError` if it is incomplete or big-endian."""
    model = open_model(name)
    require_complete(model)
    if model.byte_order is not ByteOrder.LITTLE:
        raise PlanError("is big-endian, but measure needs a little-endian model", source=model.name)
    return model


def make_maker(
    model: Model, imatrix: str | None, quants: tuple[str, ...], *, engine: str, any_width: bool = False
) -> TypeMaker:
    """Open an imatrix and ready-made quants of `model`; raises `PlanError` for an imatrix of another model."""
    weights = None if imatrix is None else Weights(imatrix=open_imatrix(imatrix), name=imatrix)
    if weights is not None and not weights.imatrix.entries.keys() & model.tensors.keys():
        raise PlanError(f"has no entry for any tensor of {model.name}: it belongs to another model", source=imatrix)
    opened = tuple(open_model(quant) for quant in quants)
    return TypeMaker(model=model, weights=weights, quants=opened, engine=engine, any_width=any_width)


def vocabulary_of(model: Model) -> int | None:
    """The number of tokens in the vocabulary, None if the metadata do not list them."""
    kv = model.get(_TOKENS)
    return kv.count if kv is not None and kv.type is ValueType.ARRAY else None


def _file_digest(name: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(name, "rb") as file:
            while data := file.read(_STEP):
                digest.update(data)
    except OSError as error:
        raise PlanError(f"cannot be read: {error.strerror}", source=name) from error
    return digest.hexdigest()


def needed_bytes(inputs: Inputs, setup: Setup, folder: Path, *, copies: int, logits: bool) -> int:
    """Bytes that `copies` scratch copies take in `folder`, and the logits; shared blocks are not counted."""
    plan = plan_scratch(inputs.model, folder)
    extents = [copy for output in plan.outputs for copy in output.copies]
    size = sum(output.size for output in plan.outputs)
    own = size - (shared_bytes(extents, folder) if folder.is_dir() else 0)
    largest = max((tensor.nbytes for tensor in inputs.model.tensors.values()), default=0)
    return copies * (own + largest) + (logits_bytes(inputs, setup) if logits else 0)


def logits_bytes(inputs: Inputs, setup: Setup) -> int:
    """Bytes of the saved logits, if the text has all chunks."""
    head = LogitsHead(context=setup.context, vocabulary=inputs.vocabulary or 0, chunks=setup.chunks)
    return head.nbytes


class Bench:
    """Measures in `folder`, which has its scratch copy; `logits` are those of the reference."""

    def __init__(
        self,
        inputs: Inputs,
        setup: Setup,
        folder: Path,
        *,
        cores: tuple[int, ...] = (),
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.inputs = inputs
        self.setup = setup
        self.folder = folder
        self._run = PerplexityRun(
            engine=inputs.engine,
            context=setup.context,
            chunks=setup.chunks,
            arguments=setup.arguments,
            cores=cores,
            seconds=setup.seconds,
            stopped=stopped,
        )
        self._scratch: Scratch | None = None

    @property
    def _reference(self) -> Path:
        return Path(os.path.abspath(self.inputs.model.files[0].source.name))

    def save_logits(self, folder: Path) -> SavedLogits:
        """Find the reference's logits in `folder`, or let the engine save them there, after checking the space."""
        kept = kept_logits(folder, self.inputs.basis)
        if kept is not None:
            return kept
        needed, free = logits_bytes(self.inputs, self.setup), free_bytes(folder)
        if free is not None and needed > free:
            raise ExecuteError(
                f"the logits take {needed:,} bytes and {free:,} are free here; give fewer --chunks, or make room",
                source=str(folder),
            )
        text = Path(os.path.abspath(self.setup.text))
        return make_logits(self._run, self._reference, text, folder, self.inputs.basis, self.inputs.vocabulary)

    def floor(self, logits: SavedLogits) -> FloorLine:
        """Measure the reference against its own logits; raises `ExecuteError` if it is not nearly the same."""
        found = compare_logits(self._run, self._reference, logits.path)
        if found.kld.value > _LARGEST_FLOOR or not same_perplexity(found.ppl.value, found.base_ppl.value):
            raise ExecuteError(
                f"the reference differs from its own logits by {found.kld.value:g} nats, with a perplexity of "
                f"{found.ppl.value:g} and {found.base_ppl.value:g}: the logits belong to another model, or the engine "
                "computes something else each time",
                source=str(self._run.engine.path),
            )
        scores = scores_of(found, logits.head)
        return FloorLine(scores=scores, base_ppl=found.base_ppl.value, basis=self.inputs.basis)

    def measure(self, task: Task, logits: SavedLogits, floor: FloorLine) -> KldLine:
        """Measure one task; if the engine fails, undo all changes and raise a `GGUFToolError` that names the task."""
        carrier, raw = self.measure_types(dict.fromkeys(task.tensors, task.type), logits, floor)
        scores, censored = censor(raw, floor)
        return KldLine(
            group=task.group,
            tensors=task.tensors,
            type=task.type,
            censored=censored,
            scores=scores,
            carrier=carrier,
            basis=self.inputs.basis,
        )

    def measure_types(
        self, types: Mapping[str, str], logits: SavedLogits, floor: FloorLine
    ) -> tuple[Carrier | None, Scores]:
        """Measure the model with tensors at `types`, by their names; scores are as the engine prints them.

        If the engine fails, undoes all changes and raises `GGUFToolError`.
        """
        typed = [self.inputs.maker.make(name, _type_id(alias)) for name, alias in types.items()]
        try:
            carrier, path = self._variant(typed)
            found = compare_logits(self._run, path, logits.path)
        finally:
            self.restore()
        if not same_perplexity(found.base_ppl.value, floor.base_ppl):
            raise ExecuteError(
                f"the saved logits have a perplexity of {found.base_ppl.value:g}, but that of the floor is "
                f"{floor.base_ppl:g}: they belong to another model",
                source=str(self._run.engine.path),
            )
        return carrier, scores_of(found, logits.head)

    def verify(self) -> None:
        """Raise `ExecuteError` if the scratch copy is not the reference."""
        if self._scratch is not None:
            self._scratch.verify()

    def restore(self) -> None:
        """Undo what the last measurement changed."""
        if self._scratch is not None:
            self._scratch.restore()
        with contextlib.suppress(FileNotFoundError):
            unlink(self._swapped)

    @property
    def _swapped(self) -> Path:
        return self.folder / "swapped.gguf"

    def _variant(self, typed: list[TypedTensor]) -> tuple[Carrier | None, Path]:
        """Make the file with the tensors at their type: the scratch copy, or a whole model with them swapped in."""
        scratch = self._scratch
        if scratch is None:
            scratch = Scratch(self.inputs.model, self.folder)
            scratch.make()
            self._scratch = scratch
        threads = len(self._run.cores) or None
        try:
            carried = [scratch.write(self.inputs.maker, one, threads) for one in typed]
        except NoCarrierError:
            scratch.restore()
            types = {self.inputs.model.tensors[one.tensor.name].info.type for one in typed}
            if all(TYPES[kind].is_plain_float for kind in types):
                raise
            self._swap(typed)
            return None, self._swapped
        worst, one = max(zip(carried, typed, strict=True), key=lambda pair: pair[0].carrier_error)
        own = self.inputs.model.tensors[one.tensor.name].info.type
        return Carrier(type=type_alias(own), error=worst.carrier_error), scratch.path

    def _swap(self, typed: list[TypedTensor]) -> None:
        """Write the model with the tensors stored in the type itself, for an engine that has a kernel for it."""
        model, made = self.inputs.model, {one.tensor.name: one for one in typed}
        steps = []
        for name, tensor in model.tensors.items():
            one = made.get(name)
            if one is None:
                steps.append(TensorStep(tensor=tensor, origin=TensorOrigin.COPIED, model=model))
            elif one.maker is not None:
                steps.append(TensorStep(tensor=one.typed, origin=TensorOrigin.REUSED, model=one.maker))
            else:
                steps.append(TensorStep(tensor=one.typed, origin=TensorOrigin.QUANTIZED, model=model))
        reuse = tuple({id(one.maker): one.maker for one in typed if one.maker is not None}.values())
        decision = Decision(source=model, reuse=reuse, steps=tuple(steps), remarks=())
        plan = plan_decision(decision, self._swapped, QuantizeOptions(requantize=True))
        execute(plan, Options(sync=False, resume=False, force=True))


def _type_id(alias: str) -> int:
    traits = find_type(alias)
    assert traits is not None
    return traits.id


def scores_of(found: Comparison, head: LogitsHead) -> Scores:
    """The scores of a comparison, as lines record them."""
    return Scores(
        kld=found.kld.value,
        kld_se=found.kld.error,
        same_top=found.same_top.value,
        same_top_se=found.same_top.error,
        ppl=found.ppl.value,
        ppl_se=found.ppl.error,
        ppl_ratio=found.ppl_ratio.value,
        ppl_ratio_se=found.ppl_ratio.error,
        tokens=head.chunks * scored_tokens(head.context),
        chunks=head.chunks,
        by_chunk=by_chunk(found, head.chunks),
    )


def by_chunk(found: Comparison, chunks: int) -> tuple[float, ...] | None:
    """The divergence of each chunk, from differences of the running mean; None if its decimals are too few for that.

    Five decimals are off by half of the last one; times the number of chunks, that may be a tenth of the mean.
    """
    running = found.running
    if len(running) != chunks or (2 * chunks - 1) * 0.5e-5 > 0.1 * found.kld.value:
        return None
    sums = [mean * number for number, mean in enumerate((*running[:-1], found.kld.value), 1)]
    return tuple(round(here - before, 6) for here, before in zip(sums, (0.0, *sums), strict=False))


def censor(scores: Scores, floor: FloorLine) -> tuple[Scores, bool]:
    """Replace a divergence that cannot be told from the floor by an upper bound; return also whether that was done."""
    ground = max(floor.scores.kld, 0.0)
    least = max(LEAST_KLD, round(ERRORS * scores.kld_se, 6))
    if scores.kld - ground >= least:
        return scores, False
    return replace(scores, kld=round(ground + least, 6), by_chunk=None), True
