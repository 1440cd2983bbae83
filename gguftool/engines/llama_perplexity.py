"""Run an installed llama-perplexity of either engine: save the logits of a model, compare another with them.

A text is cut into chunks of the context's length, and the second half of each chunk is scored. The tool saves the log
probabilities of all tokens of the vocabulary at these positions, in 16 bits each, and compares a model with them later.
It prints a table by chunk, with running means in five decimals, and then statistics over all tokens in six; the latter
only for 100 tokens or more. Errors are standard errors over tokens. Its exit status is 0 even after most failures, so
only its output counts.

Sources: llama.cpp tools/perplexity/perplexity.cpp, ik_llama.cpp examples/perplexity/perplexity.cpp (perplexity,
kl_divergence), which print the same except for the line with the perplexity of saved logits. llama.cpp logs in a thread
that it does not wait for at its end (common/log.cpp, common_log_main), so the last lines of a good run may be lost:
this happens to one in ten runs of a second. Then it is run again.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

from gguftool.engines.child import Ending, Limits, Stop, run_child
from gguftool.engines.probe import Kind, LoadEngine, find_engine
from gguftool.errors import ExecuteError, FormatError, PlanError, printable
from gguftool.record import record

LEAST_TOKENS = 100  # scored; for fewer the tool prints no statistics
_MAGIC = b"_logits_"
_HEAD = struct.Struct("<8sIii")  # magic, context, vocabulary, chunks
_UNLIMITED = 1 << 62  # bytes: the memory that a model needs is not limited
_STEP = 1 << 20
_TRIES = 8

_NUMBER = r"([-+]?(?:\d+(?:\.\d*)?|nan|inf))"
_PAIR = rf"{_NUMBER}\s*(?:±|\+/-)\s*{_NUMBER}"
_BASE = re.compile(rf"Final estimate: PPL(?: over \d+ chunks for n_ctx=\d+)? = {_PAIR}")  # ik_llama.cpp says how many
_ROW = re.compile(rf"^\s*(\d+)\s+{_PAIR}\s+{_PAIR}\s+{_PAIR}\s+{_PAIR} %\s+{_PAIR} %\s*$", re.M)
_STATISTICS = {
    "ppl": re.compile(rf"Mean PPL\(Q\)\s+: +{_PAIR}"),
    "base_ppl": re.compile(rf"Mean PPL\(base\)\s+: +{_PAIR}"),
    "ppl_ratio": re.compile(rf"Mean PPL\(Q\)/PPL\(base\)\s+: +{_PAIR}"),
    "kld": re.compile(rf"Mean +KLD: +{_PAIR}"),
    "same_top": re.compile(rf"Same top p: +{_PAIR} %"),
}
_BEGUN = re.compile(r"\b(?:computing|calculating perplexity) over \d+ chunks")
# Its output when it continues with something else than requested, or stops with exit status 0.
_COMPLAINT = re.compile(
    r"\b(?:perplexity|kl_divergence) ?: ((?:inconsistent vocabulary|you need at least|the data file you provided"
    r"|failed |[^\n]*has been computed with|[^\n]*does not look like)[^\n]*)"
)


@record
class Estimate:
    """A number with its standard error."""

    value: float
    error: float


@record
class Comparison:
    """A model against the saved logits of another: KL divergence in nats, rate of the same top token, perplexities.

    `running`: the running mean of the KL divergence after each chunk, in five decimals.
    """

    kld: Estimate
    same_top: Estimate
    ppl: Estimate
    base_ppl: Estimate
    ppl_ratio: Estimate
    running: tuple[float, ...]


@record
class LogitsHead:
    """The head of a file of saved logits: tokens of a chunk, tokens of the vocabulary, chunks."""

    context: int
    vocabulary: int
    chunks: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        columns = 2 * ((self.vocabulary + 1) // 2) + 4
        return _HEAD.size + self.chunks * (4 * self.context + 2 * scored_tokens(self.context) * columns)


@record
class PerplexityRun:
    """The options of all runs of one engine.

    `context`: tokens of a chunk. `chunks`: the largest number of chunks. `arguments`: more options for the engine, such
    as ``-ngl 99``. `cores`: the processor cores to run on, default: all. `seconds`: the time limit of one run.
    """

    engine: LoadEngine
    context: int
    chunks: int
    arguments: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    seconds: float = 7 * 86400.0
    stopped: Callable[[], bool] = lambda: False


class StoppedError(Exception):
    """The caller stopped the run."""


def find_perplexity(name: str, folder: Path) -> LoadEngine:
    """Find the llama-perplexity `name`, a path or a command; raises `PlanError` if it is not such a program."""
    engine = find_engine(name, folder)
    if engine.kind is not Kind.PERPLEXITY:
        raise PlanError(
            f"is {engine.kind.value}; name llama-perplexity of the same build, which can measure", source=name
        )
    return engine


def engine_build(engine: LoadEngine) -> str:
    """The engine's name and version, with a digest of its program."""
    assert engine.path is not None
    digest = hashlib.sha256()
    with open(engine.path, "rb") as file:
        while data := file.read(_STEP):
            digest.update(data)
    version = f" {engine.version}" if engine.version else ""
    return f"{engine.engine}{version} sha256:{digest.hexdigest()[:16]}"


def scored_tokens(context: int) -> int:
    """Tokens of a chunk that are scored: those of its second half, each by the logits at the token before."""
    return context - 1 - context // 2


def save_logits(run: PerplexityRun, model: Path, text: Path, logits: Path) -> Estimate:
    """Save the logits of `model` on `text` in the file `logits`; return the perplexity.

    Raises an `ExecuteError` that describes a failure of the engine.
    """
    words = [*_common(run, model), "-f", str(text), "--kl-divergence-base", str(logits)]
    output = _whole_output(run, words, logits.parent, _BASE)
    found = _BASE.search(output)
    if found is None:
        raise ExecuteError(_unexpected(output, "no perplexity"), source=words[0])
    return _estimate(found.groups(), "perplexity", words[0])


def compare_logits(run: PerplexityRun, model: Path, logits: Path) -> Comparison:
    """Compare `model` with the saved `logits`; raises an `ExecuteError` that describes a failure of the engine."""
    words = [*_common(run, model), "--kl-divergence", "--kl-divergence-base", str(logits)]
    return parse_comparison(_whole_output(run, words, logits.parent, _STATISTICS["same_top"]), words[0])


def read_logits_head(path: Path) -> LogitsHead:
    """Read the head of saved logits, and compare it with the file's size; raises `FormatError`."""
    with open(path, "rb") as file:
        data = file.read(_HEAD.size)
        size = file.seek(0, 2)
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise FormatError("is not a file of saved logits, which begins with '_logits_'", source=str(path))
    _, context, vocabulary, chunks = _HEAD.unpack(data)
    head = LogitsHead(context=context, vocabulary=vocabulary, chunks=chunks)
    if min(context, vocabulary, chunks) < 1 or head.nbytes != size:
        raise FormatError(
            f"has {size:,} bytes, but {chunks:,} chunks of {context:,} tokens with a vocabulary of {vocabulary:,} take "
            f"{head.nbytes:,}: incomplete, or damaged",
            source=str(path),
        )
    return head


def parse_comparison(output: str, program: str) -> Comparison:
    """Parse the output of a comparison; raises `ExecuteError` for anything else, and for NaN and infinities."""
    found: dict[str, Estimate] = {}
    for name, pattern in _STATISTICS.items():
        match = pattern.search(output)
        if match is None:
            raise ExecuteError(_unexpected(output, f"no '{name}' statistics"), source=program)
        found[name] = _estimate(match.groups(), name, program)
    rows = [(int(row[0]), float(row[5])) for row in _ROW.findall(output)]
    if [number for number, _ in rows] != list(range(1, len(rows) + 1)) or not all(math.isfinite(x) for _, x in rows):
        rows = []  # perhaps log lines are between them; the statistics are enough
    share = found["same_top"]
    found["same_top"] = Estimate(value=share.value / 100, error=share.error / 100)
    problem = _impossible(found)
    if problem:
        raise ExecuteError(f"printed {problem}", source=program)
    return Comparison(running=tuple(mean for _, mean in rows), **found)


def _impossible(found: dict[str, Estimate]) -> str:
    """Describe an impossible result; empty if there is none."""
    if found["kld"].value < -1e-3:  # saved logits are rounded, so that a mean may be a little below zero
        return f"a KL divergence of {found['kld'].value:g}, which is never negative"
    if not 0 <= found["same_top"].value <= 1:
        return f"{100 * found['same_top'].value:g} % as the share of equal top tokens"
    if min(found["ppl"].value, found["base_ppl"].value, found["ppl_ratio"].value) <= 0:
        return "a perplexity that is not positive"
    return ""


def _estimate(texts: tuple[str, ...], name: str, program: str) -> Estimate:
    value, error = map(float, texts)
    if name == "ppl_ratio" and math.isnan(error):
        error = 0.0  # the root of a difference that is zero except for rounding: the models are the same
    if not (math.isfinite(value) and math.isfinite(error)):
        raise ExecuteError(
            f"printed {name} = {texts[0]} ± {texts[1]}: the model computes NaN or infinities with this tensor",
            source=program,
        )
    return Estimate(value=value, error=error)


def _common(run: PerplexityRun, model: Path) -> list[str]:
    assert run.engine.path is not None
    words = [str(run.engine.path), "-m", str(model), "-c", str(run.context), "--chunks", str(run.chunks)]
    if run.cores:
        words += ["-t", str(len(run.cores))]
    for option in (("--no-warmup",), ("--offline",), ("--log-colors", "off")):
        if option[0] in run.engine.options:
            words += option
    return words + list(run.arguments)


def _whole_output(run: PerplexityRun, words: list[str], folder: Path, end: re.Pattern[str]) -> str:
    """Run the engine again, at most `_TRIES` times, if it began to compute but its output lacks the `end`."""
    for _ in range(_TRIES):
        output = _output(run, words, folder)
        if end.search(output) or not _BEGUN.search(output):
            break
    return output


def _output(run: PerplexityRun, words: list[str], folder: Path) -> str:
    """Run the engine to its end and return its output."""
    limits = Limits(seconds=run.seconds, anonymous=_UNLIMITED, cores=run.cores)
    ending = run_child(words, folder, limits, is_ready=lambda _: run.stopped())
    if ending.stop is Stop.READY:
        raise StoppedError
    output = ending.log.text()
    if ending.stop is not Stop.ITSELF or ending.status:
        raise ExecuteError(_ended(ending, run), source=words[0])
    complaint = _COMPLAINT.search(output)
    if complaint:
        raise ExecuteError(f"complains: {printable(complaint[1])}", source=words[0])
    return output


def _ended(ending: Ending, run: PerplexityRun) -> str:
    if ending.stop is Stop.TIME:
        return f"was stopped after {run.seconds:,.0f} s; --timeout gives it more"
    how = f"ended with {ending.status}" if ending.status > 0 else f"was stopped by signal {-ending.status}"
    why = "; ".join(ending.log.errors()) or ending.log.last_line()
    return f"{how}; it said: {why or 'nothing'}"


def _unexpected(output: str, lacking: str) -> str:
    """The message about output that lacks the requested numbers."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = printable(lines[-1]) if lines else "nothing"
    return f"printed {lacking}; its last line: {last}"
