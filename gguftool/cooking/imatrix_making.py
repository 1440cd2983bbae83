"""`imatrix make`: an importance matrix by an installed llama-imatrix, part by part, so that a killed run can resume.

Each run of the tool collects over some chunks of the text and adds them to the previous file, in a folder next to the
output.  The folder is locked while it is used.  Names of files contain the number of chunks and a digest of model,
text, engine and options: other files are not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gguftool.cooking.measuring.work_folder import locked_folder, remove_folder, work_folder_of
from gguftool.engines.llama_imatrix import ImatrixTool, Stretch, collect_chunks, find_imatrix_tool
from gguftool.engines.llama_perplexity import engine_build
from gguftool.engines.probe import require_linux
from gguftool.errors import PlanError
from gguftool.format.imatrix import ImatrixKind
from gguftool.model.companions import read_imatrix
from gguftool.model.opening import StrPath, open_model
from gguftool.record import record
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.source import whole
from gguftool.surgery.convert_imatrix import plan_convert_imatrix

_BATCH = 2048  # tokens that the tools compute at once by default
_DIGEST = 16  # hex digits in the names of parts


@record
class ImatrixJob:
    """The imatrix to make: of `model`, by the text in `text`, with the llama-imatrix `engine`, as a file of `kind`.

    `context`: tokens of a chunk.  `chunks`: how many; None for the whole text, in one run that cannot resume.
    `every`: chunks of one run of the tool.  `arguments`: more options for the engine.
    """

    model: StrPath
    text: StrPath
    engine: str
    kind: ImatrixKind = ImatrixKind.GGUF
    context: int = 512
    chunks: int | None = None
    every: int = 50
    arguments: tuple[str, ...] = ()


@record
class MakeHooks:
    """Callbacks: `progress` gets the number of chunks done, and at most how many there will be; `note` a remark."""

    progress: Callable[[int, int], None] = lambda done, total: None
    note: Callable[[str], None] = lambda text: None


@contextlib.contextmanager
def made_imatrix(job: ImatrixJob, output: StrPath, hooks: MakeHooks | None = None) -> Iterator[Plan]:
    """Make the imatrix and yield the plan that writes it to `output`; without an error, remove the parts at the end.

    Raises `PlanError` for an unsuitable model or program, `ExecuteError` if the tool fails or another run makes the
    same file.
    """
    output, hooks = Path(output), hooks or MakeHooks()
    require_linux(job.engine)
    model, folder = _local_model(job.model), work_folder_of(output)
    with locked_folder(folder):
        tool = ImatrixTool(engine=find_imatrix_tool(job.engine, folder), context=job.context, arguments=job.arguments)
        made = _collected(job, tool, Path(model), folder, hooks)
        yield _plan(made, job, output)
        remove_folder(folder)


def _local_model(spec: StrPath) -> str:
    """The file from which the engine opens the model."""
    model = open_model(spec)
    if any(source.is_remote for source in model.sources) or not model.is_complete:
        raise PlanError("the engine reads whole local models; fetch it first", source=model.name)
    return os.path.abspath(model.files[0].source.name)


def _collected(job: ImatrixJob, tool: ImatrixTool, model: Path, folder: Path, hooks: MakeHooks) -> Path:
    """Collect over all chunks, from where an earlier run stopped; return the file of all."""
    name, suffix = _identity(job, tool, model), ".gguf" if tool.writes_gguf else ".dat"
    done, total, every = _done_before(folder, name, suffix), job.chunks or 0, job.every
    if not tool.writes_gguf and total > every:
        hooks.note("this llama-imatrix loses the weight of what it collected before, so it is one run over all chunks")
        every = total
    while job.chunks is None or done < job.chunks:
        hooks.progress(done, total)
        wanted = None if job.chunks is None else min(every, job.chunks - done)
        before, begun = folder / f"{name}-{done}{suffix}", folder / f"begun{suffix}"
        begun.unlink(missing_ok=True)
        stretch = Stretch(first=done, chunks=wanted, before=before if done else None)
        found = collect_chunks(tool, model, Path(job.text).absolute(), begun, stretch)
        if not found:
            hooks.note(f"the text ends within two chunks after chunk {done:,}; {total:,} were requested")
            break
        done += found
        begun.replace(folder / f"{name}-{done}{suffix}")
        before.unlink(missing_ok=True)
        if wanted is None or found < wanted:
            break
    hooks.progress(done, done)
    return folder / f"{name}-{done}{suffix}"


def _done_before(folder: Path, name: str, suffix: str) -> int:
    """The number of chunks in the file of an earlier run."""
    numbers = (path.name.removeprefix(f"{name}-").removesuffix(suffix) for path in folder.glob(f"{name}-*{suffix}"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _identity(job: ImatrixJob, tool: ImatrixTool, model: Path) -> str:
    """A digest of everything that changes the contents of a part."""
    digest = hashlib.sha256()
    sources = open_model(model).sources
    for text in (*(source.identity for source in sources), engine_build(tool.engine), str(job.context), *job.arguments):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    with open(job.text, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()[:_DIGEST]


def _plan(made: Path, job: ImatrixJob, output: Path) -> Plan:
    """Plan `output`: the file that was made, or its other format; a legacy file counts batches."""
    source = open_local(made)
    imatrix = read_imatrix(source)
    if imatrix.kind is not job.kind:
        tokens = min(job.context, _BATCH) if job.kind is ImatrixKind.GGUF else None
        return plan_convert_imatrix(source, imatrix, job.kind, output, tokens)
    copy = Copy(extent=whole(source), offset=0)
    return Plan(outputs=(OutputFile(path=output, head=b"", copies=(copy,), size=source.size),), inputs=(source,))
