"""The reference's logits: saved once, kept between runs, and used only if this run would save the same.

A note next to the file records what they were made from, and the file's sha256: the engine would accept logits of
another model with the same vocabulary, and every number would be wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from gguftool.cooking.measure_lines import Basis
from gguftool.engines.llama_perplexity import (
    Estimate,
    LogitsHead,
    PerplexityRun,
    read_logits_head,
    save_logits,
)
from gguftool.errors import ExecuteError, FormatError
from gguftool.record import record
from gguftool.storage.sources.digest import digest
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import whole
from gguftool.storage.system.names import open_file, replace_file, unlink

_FILE, _PART, _NOTE = "logits", "logits.part", "logits.json"
_MAX_NOTE = 1 << 16
_SAME_PPL = 1e-3  # relative; saved logits have 16 bits


@record
class SavedLogits:
    """The file, its parsed head, and the seconds that the engine took to make it."""

    path: Path
    head: LogitsHead
    seconds: float


def kept_logits(folder: Path, basis: Basis) -> SavedLogits | None:
    """The logits that an earlier run of the same `basis` left in `folder`, if they are complete."""
    try:
        with open(folder / _NOTE, "rb") as file:
            note = json.loads(file.read(_MAX_NOTE))
        path = folder / _FILE
        if note["basis"] != _made_of(basis) or note["sha256"] != digest([whole(open_source(str(path)))]):
            return None
        return SavedLogits(path=path, head=read_logits_head(path), seconds=float(note["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, FormatError):
        return None


def make_logits(
    run: PerplexityRun, model: Path, text: Path, folder: Path, basis: Basis, vocabulary: int | None
) -> SavedLogits:
    """Let the engine save the logits of `model` in `folder`.

    Raises `ExecuteError` if it does not, or saves something else: another context, or another `vocabulary`.
    """
    remove_logits(folder)
    part, start = folder / _PART, time.monotonic()
    ppl = save_logits(run, model, text, part)
    seconds = time.monotonic() - start
    try:
        head = read_logits_head(part)
    except (OSError, FormatError) as error:
        raise ExecuteError(f"saved logits that cannot be read: {error}", source=str(run.engine.path)) from error
    _check(run, head, ppl, vocabulary)
    note = {"basis": _made_of(basis), "sha256": digest([whole(open_source(str(part)))]), "seconds": round(seconds, 3)}
    replace_file(part, folder / _FILE)
    data = json.dumps(note).encode()
    fd = open_file(folder / _NOTE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, data)  # if it is torn, it is not JSON, and the logits are made again
    finally:
        os.close(fd)
    return SavedLogits(path=folder / _FILE, head=head, seconds=seconds)


def remove_logits(folder: Path) -> None:
    """Remove the files that earlier runs saved in `folder`, the note first."""
    for name in (_NOTE, _FILE, _PART):
        with contextlib.suppress(FileNotFoundError):
            unlink(folder / name)


def same_perplexity(one: float, other: float) -> bool:
    """Whether two perplexities belong to the same logits, up to the rounding of saved ones."""
    return abs(one - other) <= _SAME_PPL * other


def _made_of(basis: Basis) -> dict[str, object]:
    """The fields that logits depend on."""
    return {name: value for name, value in asdict(basis).items() if name not in ("imatrix", "gguftool")}


def _check(run: PerplexityRun, head: LogitsHead, ppl: Estimate, vocabulary: int | None) -> None:
    found = f"saved {head.chunks} chunks of {head.context} tokens with a vocabulary of {head.vocabulary:,}"
    if head.context != run.context or head.chunks > run.chunks or vocabulary not in (None, head.vocabulary):
        expected = f"{run.chunks} of {run.context}" + (f" and {vocabulary:,}" if vocabulary is not None else "")
        raise ExecuteError(
            f"{found}; expected {expected}: these are logits of another model", source=str(run.engine.path)
        )
    if ppl.value < 1:
        raise ExecuteError(
            f"printed a perplexity of {ppl.value:g}, but the smallest possible is 1", source=str(run.engine.path)
        )
