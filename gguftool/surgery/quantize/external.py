"""Tensors made by an installed llama-quantize: the way to the types that no library here makes.

It is given a small GGUF with the model's metadata and only the tensors that are wanted, and one rule for each type;
what it writes is read back as sources for the plan.  Tensors are renamed after their type, ``iq4_ks.000017.weight``: so
a rule a type is enough, and neither engine takes them for a part of attention that it counts.  Embeddings and the
output keep their names, by which engines know them.  An imatrix is cut to these tensors, as exact weights in the legacy
format, which every release of both engines reads.

Sources: llama.cpp tools/quantize/quantize.cpp, ik_llama.cpp examples/quantize/quantize.cpp (options; only tensors of a
quantized default type heed the rules, hence Q8_0), their llama-quantize sources (what is looked at in names).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, FormatError, PlanError, listed, printable
from gguftool.format.engine_facts.embeddings import OUTPUT, TOKENS
from gguftool.format.ggml import IK, TYPES, type_alias
from gguftool.format.imatrix import Imatrix, ImatrixEntry, ImatrixKind
from gguftool.format.imatrix_write import serialize_legacy
from gguftool.format.pattern import literal
from gguftool.format.recipe import spelling
from gguftool.model.layout import Dialect, gguf_file
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import open_model
from gguftool.record import record, replace
from gguftool.storage.execute.executor import Options, execute
from gguftool.storage.plan import OutputFile, Plan
from gguftool.surgery.metadata import without_layout_keys
from gguftool.surgery.quantize.maker import MakeOptions
from gguftool.surgery.quantize.plan import Decision, Step

_DEFAULT = "Q8_0"  # of what no rule matches, which is nothing; it has to be quantized, or rules are not heeded
_KEPT_NAMES = frozenset({OUTPUT, *TOKENS})
_LOG_TAIL = 6  # lines of its output that an error shows
_LOG_BYTES = 4096  # of these lines
_LOG_LINE = 300  # characters of one


@record
class LlamaQuantize:
    """An installed llama-quantize; `identity` changes where the program does."""

    path: Path
    identity: str


@record
class Job:
    """What is to be run: `tool` by the rules of `make`, for `output`, with `threads` (None: as many as there are)."""

    tool: Path
    make: MakeOptions
    output: Path
    threads: int | None = None


def find_llama_quantize(name: str) -> LlamaQuantize:
    """Return the program called `name`, a path or a command; `PlanError` where there is none that can be run."""
    found = shutil.which(name)
    if found is None:
        raise PlanError("no such program, or it may not be run; build it with llama.cpp or ik_llama.cpp", source=name)
    path = Path(found).resolve()
    status = path.stat()
    return LlamaQuantize(path=path, identity=f"{path} {status.st_size} {status.st_mtime_ns}")


@contextlib.contextmanager
def made_externally(decision: Decision, job: Job, note: Callable[[str], None]) -> Iterator[Mapping[str, Tensor]]:
    """Make what `decision` awaits, and yield the tensors by name; they are gone when the context ends.

    They lie in a temporary folder beside the output. Raises `ExecuteError` where the program fails, `PlanError` where
    it made something else than was asked for.
    """
    with tempfile.TemporaryDirectory(prefix=".gguftool-", dir=_existing(job.output.parent)) as folder:
        place = Path(folder)
        steps = {_new_name(index, step): step for index, step in enumerate(decision.awaited)}
        execute(_small_plan(decision.source, steps, place, job.make), Options(sync=False, resume=False))
        note(f"{job.tool.name} makes {len(steps):,} tensor(s)")
        _run(command(job, list(steps.values()), place), place)
        made = _opened(place / "made.gguf", job.tool)
        yield {step.tensor.info.name: _checked(made, name, step) for name, step in steps.items()}


def _opened(path: Path, tool: Path) -> Model:
    try:
        return open_model(path)
    except FormatError as error:  # names a file that is gone when this is read
        raise ExecuteError(f"what it wrote is no sound GGUF: {error}", source=str(tool)) from error


def command(job: Job, steps: Sequence[Step], folder: Path) -> list[str]:
    """Return the command line that makes `steps` in `folder`."""
    words = [str(job.tool)]
    if job.make.requantize:
        words.append("--allow-requantize")
    if any(step.entry is not None for step in steps):
        words += ["--imatrix", str(folder / "weights.dat")]
    rules = list(dict.fromkeys(_rule(step, job.make.engine) for step in steps))
    if job.make.engine in IK:
        words += ["--custom-q", ",".join(rules)]
    else:
        words += [word for rule in rules for word in ("--tensor-type", rule)]
    threads = job.threads or os.cpu_count() or 1
    return [*words, str(folder / "source.gguf"), str(folder / "made.gguf"), _DEFAULT, str(threads)]


def _rule(step: Step, engine: str) -> str:
    name, kind = step.tensor.info.name, step.tensor.info.type
    start = literal(name) + "$" if name in _KEPT_NAMES else TYPES[kind].name.lower() + r"\."
    return f"^{start}={spelling(kind, engine)}"


def _new_name(index: int, step: Step) -> str:
    name = step.tensor.info.name
    return name if name in _KEPT_NAMES else f"{TYPES[step.tensor.info.type].name.lower()}.{index:06}.weight"


def _existing(folder: Path) -> Path:
    """Return `folder`, or the nearest above it that is there: the rest is made with the output."""
    folder = folder.absolute()
    return next((each for each in (folder, *folder.parents) if each.is_dir()), folder)


def _small_plan(source: Model, steps: Mapping[str, Step], folder: Path, make: MakeOptions) -> Plan:
    """Plan the GGUF with the tensors as they are in `source`, under their new names, and the imatrix cut to them."""
    tensors = [source.tensors[step.tensor.info.name] for step in steps.values()]
    renamed = [
        replace(tensor, info=replace(tensor.info, name=name)) for name, tensor in zip(steps, tensors, strict=True)
    ]
    dialect = Dialect(version=3, byte_order=source.byte_order, alignment=source.alignment)
    kvs = without_layout_keys(source.kvs)
    outputs = [gguf_file(folder / "source.gguf", kvs, renamed, dialect)]
    entries = {name: _entry(name, step) for name, step in steps.items() if step.entry is not None}
    if entries and make.weights is not None:
        given = make.weights.imatrix
        cut = Imatrix(
            entries=entries,
            datasets=given.datasets,
            chunk_count=given.chunk_count or 1,
            kind=ImatrixKind.LEGACY,
        )
        data = serialize_legacy(cut)
        outputs.append(OutputFile(path=folder / "weights.dat", head=data, copies=(), size=len(data)))
    return Plan(outputs=tuple(outputs), inputs=source.sources)


def _entry(name: str, step: Step) -> ImatrixEntry:
    """Return the weights of a tensor as an entry whose sums they are, so that nothing is divided again."""
    import numpy as np

    if step.entry is None:
        raise LookupError(name)
    weights = step.entry.weights_for(step.tensor.info.dims).reshape(1, -1)
    return ImatrixEntry(name=name, sums=weights, counts=np.ones(1, dtype=np.float32))


def _run(words: Sequence[str], folder: Path) -> None:
    log = folder / "log.txt"
    with open(log, "wb") as out:
        try:
            # In a session of its own, as it may be a script: what that started has to end with it.
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise ExecuteError(f"cannot be run: {error.strerror}", source=words[0]) from error
        with _ended_with_us(process):
            code = process.wait()
    if code:
        how = f"ended with {code}" if code > 0 else f"was stopped by signal {-code}"
        raise ExecuteError(f"{how}; it said last: {_tail(log) or 'nothing'}", source=words[0])
    if not (folder / "made.gguf").is_file():
        raise ExecuteError("ended well but wrote nothing", source=words[0])


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End `process` and all that it started where the context ends by an exception, such as Ctrl-C."""
    try:
        yield
    except BaseException:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        raise


def _tail(log: Path) -> str:
    """Return the last lines of what may be gigabytes."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        lines = file.read(_LOG_BYTES).decode("utf-8", "replace").splitlines()
    return " | ".join([printable(line.strip(), _LOG_LINE) for line in lines if line.strip()][-_LOG_TAIL:])


def _checked(made: Model, name: str, step: Step) -> Tensor:
    """Return the tensor that was made for `step`, under its own name; `PlanError` where it is something else."""
    wanted, found = step.tensor.info, made.tensors.get(name)
    if found is None or found.info.type != wanted.type or found.info.shape != wanted.shape:
        got = "nothing" if found is None else f"{type_alias(found.info.type)} {listed([str(found.info.dims)])}"
        raise PlanError(
            f"made {got} of '{printable(wanted.name)}', asked for was {type_alias(wanted.type)} {wanted.dims}; "
            "is --engine the one that this program is of?",
            source="llama-quantize",
        )
    return replace(found, info=replace(found.info, name=wanted.name, dims=wanted.dims))
