"""The real llama.cpp, asked in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.engine_child import run_engine
from tests.support.engine_tools import tool

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPT = "Once upon a time"
N_TOKENS = 16
TIMEOUT = 120  # seconds for one run of the engine or the tool; the slowest seen took 2

_SCRIPT = Path(__file__).with_name("greedy.py")


class EngineError(Exception):
    """The engine did not load or run the model."""


def greedy(path: Path) -> str:
    """Return the text with which the model at `path` greedily continues the prompt."""
    command = [sys.executable, str(_SCRIPT), str(path), PROMPT, str(N_TOKENS)]
    done = run_engine(command, TIMEOUT)
    if done.returncode != 0:
        # The log may come after the traceback: its thread writes when it gets to run.
        raise EngineError(f"exit status {done.returncode}: {done.stderr[-8000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- what tiny models predict -----------------------------------------------------------------------------------------

SAME = 1e-5  # how far log probabilities of the same model may lie apart: sums in another order differ in the last bits

_PREDICT = Path(__file__).with_name("predict.py")


@dataclass(frozen=True)
class Prediction:
    """A greedy text, its tokens, and for each of them the log probability of every token of the vocabulary.

    A model that drafts has no log probabilities, but numbers of tokens that were drafted and of those that were right.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]
    drafted: int
    accepted: int

    def distance(self, other: Prediction) -> float:
        """The largest difference of two log probabilities; infinite where texts or vocabularies differ."""
        if (self.text, self.tokens) != (other.text, other.tokens):
            return math.inf
        pairs = list(zip(self.logprobs, other.logprobs, strict=True))
        if any(mine.keys() != yours.keys() for mine, yours in pairs):
            return math.inf
        return max(abs(mine[token] - yours[token]) for mine, yours in pairs for token in mine)


def predict(*models: Path, mtp: bool = False, draft: Path | None = None) -> list[Prediction]:
    """Ask llama.cpp what each of `models` predicts, all in one process; raise `EngineError` if one does not run.

    `mtp`: with the MTP layer of the model as its draft; `draft`: with this model of EAGLE-3, or its MTP layer.
    """
    how = f"::{'mtp' if mtp else 'eagle3'}={draft or ''}" if mtp or draft else ""
    command = [sys.executable, str(_PREDICT), str(N_TOKENS), PROMPT, *(f"{path}{how}" for path in models)]
    done = run_engine(command, TIMEOUT)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for path, answer in zip(models, answers, strict=False):
        if "refused" in answer:
            raise EngineError(f"{path}: {answer['refused']}\n{done.stderr[-8000:]}")
    if len(answers) < len(models):
        raise EngineError(f"{models[len(answers)]}: exit status {done.returncode}: {done.stderr[-8000:]}")
    return [_prediction(answer) for answer in answers]


def _prediction(answer: dict[str, Any]) -> Prediction:
    logprobs = tuple({int(token): value for token, value in step.items()} for step in answer["logprobs"])
    return Prediction(answer["text"], tuple(answer["tokens"]), logprobs, answer["drafted"], answer["accepted"])


# --- llama.cpp's own tools, of another release than xllamacpp ---------------------------------------------------------

# Words of letters that the tiny models have as tokens, the same on every machine.
CORPUS = " ".join(f"{'etaoinshr'[number % 9]}{number * number * 2654435761 % 999983:x}" for number in range(400))


def run_tool(name: str, *words: object, folder: Path) -> str:
    """Run one of llama.cpp's programs in `folder`, and return all that it prints; skip the test if it is not built."""
    done = subprocess.run(
        [str(tool(name)), *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
        errors="replace",
    )
    if done.returncode != 0:
        raise EngineError(f"{name}: exit status {done.returncode}: {done.stdout[-8000:]}")
    return done.stdout


STEP = 16 / 65535  # the largest distance of two neighbouring log probabilities in the file of llama-perplexity


def logprobs_in_batches(path: Path) -> NDArray[Any]:
    """The log probabilities that llama-perplexity writes of the corpus, a row a token; batches of 64 tokens.

    Each row of the file is a scale, a minimum, and 16 bits for each token of the vocabulary.  What the program prints
    is not read: its last lines are lost at times.
    """
    import numpy as np

    (path.parent / "corpus.txt").write_text(CORPUS)
    options = ("-c", 64, "--chunks", 4, "-t", 1, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
    file = path.with_suffix(".logits")
    words = ("-m", path, "-f", "corpus.txt", "--kl-divergence-base", file, *options)
    run_tool("llama-perplexity", *words, folder=path.parent)
    data = file.read_bytes()
    n_ctx, n_vocab, n_chunk = np.frombuffer(data, np.int32, 3, offset=8)
    rows = np.frombuffer(data, np.uint16, offset=8 + 4 * (3 + n_ctx * n_chunk)).reshape(-1, 4 + (n_vocab + 1) // 2 * 2)
    scale, least = rows[:, :4].copy().view(np.float32).T
    return scale[:, None] * rows[:, 4 : 4 + n_vocab] + least[:, None]
