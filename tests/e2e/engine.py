"""The real llama.cpp, asked in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.engine_tools import tool

PROMPT = "Once upon a time"
N_TOKENS = 16
TIMEOUT = 120  # seconds for one run of the engine or the tool; the slowest seen took 2

_SCRIPT = Path(__file__).with_name("greedy.py")


class EngineError(Exception):
    """The engine did not load or run the model."""


def greedy(path: Path) -> str:
    """Return the text with which the model at `path` greedily continues the prompt."""
    command = [sys.executable, str(_SCRIPT), str(path), PROMPT, str(N_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, errors="replace")
    if done.returncode != 0:
        # The log may come after the traceback: its thread writes when it gets to run.
        raise EngineError(f"exit status {done.returncode}: {done.stderr[-8000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- what tiny models predict -----------------------------------------------------------------------------------------

SAME = 1e-5  # how far log probabilities of the same model may lie apart: sums in another order differ in the last bits

_PREDICT = Path(__file__).with_name("predict.py")


@dataclass(frozen=True)
class Prediction:
    """A greedy text, its tokens, and for each of them the log probability of every token of the vocabulary."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]
    drafted: int

    def distance(self, other: Prediction) -> float:
        """The largest difference of two log probabilities; infinite where texts or vocabularies differ."""
        if (self.text, self.tokens) != (other.text, other.tokens):
            return math.inf
        pairs = list(zip(self.logprobs, other.logprobs, strict=True))
        if any(mine.keys() != yours.keys() for mine, yours in pairs):
            return math.inf
        return max(abs(mine[token] - yours[token]) for mine, yours in pairs for token in mine)


def predict(*models: Path, mtp: bool = False) -> list[Prediction]:
    """Ask llama.cpp what each of `models` predicts, all in one process; raise `EngineError` if one does not run."""
    words = [f"{path}:mtp" if mtp else str(path) for path in models]
    command = [sys.executable, str(_PREDICT), str(N_TOKENS), PROMPT, *words]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        errors="replace",
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # or a debugger starts where it aborts
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for path, answer in zip(models, answers, strict=False):
        if "refused" in answer:
            raise EngineError(f"{path}: {answer['refused']}\n{done.stderr[-8000:]}")
    if len(answers) < len(models):
        raise EngineError(f"{models[len(answers)]}: exit status {done.returncode}: {done.stderr[-8000:]}")
    return [_prediction(answer) for answer in answers]


def _prediction(answer: dict[str, Any]) -> Prediction:
    logprobs = tuple({int(token): value for token, value in step.items()} for step in answer["logprobs"])
    return Prediction(answer["text"], tuple(answer["tokens"]), logprobs, answer["drafted"])


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


def perplexity(path: Path) -> float:
    """The perplexity of the corpus in llama-perplexity, over chunks of 64 tokens."""
    (path.parent / "corpus.txt").write_text(CORPUS)
    options = ("-c", 64, "--chunks", 4, "-t", 1, "-fa", "off", "-ctk", "f32", "-ctv", "f32")
    log = run_tool("llama-perplexity", "-m", path, "-f", "corpus.txt", *options, folder=path.parent)
    return float(log.partition("Final estimate: PPL = ")[2].split()[0])
