"""Run an installed llama-imatrix of either engine over some chunks of a text, and add to earlier results.

A text is cut into chunks of the context's length. The tool's own files from the middle of a run cannot be resumed: it
saves when the first tensor of a chunk is done, so the other tensors lack that chunk. Here each run ends after its
chunks, and its file is complete. A legacy file cannot be resumed either: it has means of tokens and counts batches, and
the tools add these up as if they were counts of tokens (ik_llama.cpp, load_imatrix).

Sources: llama.cpp tools/imatrix/imatrix.cpp, ik_llama.cpp examples/imatrix/imatrix.cpp (collect_imatrix,
compute_imatrix, and main for --in-file).
"""

from __future__ import annotations

import re
from pathlib import Path

from gguftool.engines.child import Ending, Limits, Stop, run_child
from gguftool.engines.probe import Kind, LoadEngine, find_engine
from gguftool.errors import ExecuteError, printable
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.record import record

_UNLIMITED = 1 << 62  # bytes: the memory that a model needs is not limited
_NEVER = "1000000"  # chunks between two saves
_BEGUN = re.compile(r"\bcomputing over (\d+) chunks")
_ENDED = re.compile(r"not enough tokens left|you need at least \d+ tokens")


@record
class ImatrixTool:
    """Options of all runs: `engine`, tokens of a chunk, and more options for the engine, such as ``-ngl 99``."""

    engine: LoadEngine
    context: int = 512
    arguments: tuple[str, ...] = ()
    seconds: float = 7 * 86400.0

    @property
    def writes_gguf(self) -> bool:
        """Whether it writes the GGUF form; ik_llama.cpp does not: its option of that name is for benchmarks."""
        return self.engine.engine == LLAMA_CPP and "--output-format" in self.engine.options


def find_imatrix_tool(name: str, folder: Path) -> LoadEngine:
    """Find the llama-imatrix `name`, a path or a command; raises `PlanError` if it is not such a program."""
    return find_engine(name, folder, kinds=(Kind.IMATRIX,))


@record
class Stretch:
    """`chunks` of a text (None: all) from chunk `first` on; `before`: the file with the earlier results."""

    first: int = 0
    chunks: int | None = None
    before: Path | None = None


def collect_chunks(tool: ImatrixTool, model: Path, text: Path, output: Path, stretch: Stretch) -> int:
    """Collect over a stretch of `text`, add the earlier results, and write `output`; return the number of chunks.

    0 if the text ends earlier: the tool does not start its last two chunks. `stretch.before` is next to `output`.
    Raises an `ExecuteError` that describes a failure of the tool.
    """
    first, chunks, before = stretch.first, stretch.chunks, stretch.before
    # Only names: the tool takes a path with commas for several files.
    words = [str(tool.engine.path), "-m", str(model), "-f", str(text), "-o", output.name, "-c", str(tool.context)]
    words += ["--output-frequency", _NEVER, "--no-ppl"]
    words += ["--chunks", str(chunks)] if chunks is not None else []
    words += ["--chunk", str(first)] if first else []
    words += ["--in-file", before.name] if before is not None else []
    ending = _run(tool, [*words, *_quiet(tool), *tool.arguments], output.parent)
    log = ending.log.text()
    if first and _ENDED.search(log):
        return 0
    begun = _BEGUN.search(log)
    if ending.status or begun is None or not output.is_file():
        raise ExecuteError(_unexpected(ending), source=words[0])
    return int(begun[1])


def _quiet(tool: ImatrixTool) -> list[str]:
    wanted = (("--no-warmup",), ("--offline",), ("--log-colors", "off"))
    words = [word for option in wanted if option[0] in tool.engine.options for word in option]
    return [*words, "--output-format", "gguf"] if tool.writes_gguf else words


def _run(tool: ImatrixTool, words: list[str], folder: Path) -> Ending:
    ending = run_child(words, folder, Limits(seconds=tool.seconds, anonymous=_UNLIMITED))
    if ending.stop is Stop.TIME:
        raise ExecuteError(f"was stopped after {tool.seconds:,.0f} s", source=words[0])
    return ending


def _unexpected(ending: Ending) -> str:
    how = f"ended with {ending.status}" if ending.status >= 0 else f"was stopped by signal {-ending.status}"
    why = "; ".join(ending.log.errors()) or ending.log.last_line()
    return f"made no imatrix, and {how}; it said: {printable(why) or 'nothing'}"
