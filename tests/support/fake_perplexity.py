"""A stand-in for llama-perplexity: its numbers depend on the model's bytes, and on nothing else.

It saves logits of the right size with digests of the model's blocks in them, and its divergence grows with the blocks
that differ. So a scratch copy that is not restored, or another model's logits, changes the numbers.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from itertools import zip_longest
from pathlib import Path

BLOCK = 256
VOCABULARY = 272
MODES = ("ok", "crash", "garbage", "nan", "silent", "other", "hang", "forgetful", "lost", "ik")
_HELP = "-m --model FILE\n--kl-divergence\n--chunks N\n--no-warmup\n"


def make_fake(folder: Path, mode: str = "ok") -> Path:
    """Make the program in `folder`; it does as `mode` says when it compares, but saves logits in every mode."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama-perplexity"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{Path(__file__).resolve()}" "{mode}" "$@"\n')
    path.chmod(0o755)
    return path


def respond(mode: str, words: list[str]) -> tuple[int, str]:
    """Do what the program does with `words`: its exit status, and what it prints."""
    if "--help" in words:
        return 0, _HELP + ("--run-time-repack\n" if mode == "ik" else "")
    if "--version" in words:
        return 0, "version: 7 (fake)\n"
    model, logits = Path(_after(words, "-m")), Path(_after(words, "--kl-divergence-base"))
    context, chunks = int(_after(words, "-c")), int(_after(words, "--chunks"))
    blocks = _blocks(model)
    if "--kl-divergence" not in words:
        chunks = min(chunks, Path(_after(words, "-f")).stat().st_size // context)
        if chunks < 2:
            return 0, f"perplexity: you need at least {2 * context} tokens\n"
        _save(logits, context, chunks, blocks)
        over = f" over {chunks} chunks for n_ctx={context}" if mode == "ik" else ""
        return 0, f"Final estimate: PPL{over} = 20.0000 +/- 0.50000\n"
    return _compare(mode, logits, blocks)


def _after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def _blocks(model: Path) -> list[bytes]:
    data = model.read_bytes()
    return [hashlib.sha256(data[at : at + BLOCK]).digest()[:4] for at in range(0, len(data), BLOCK)]


def _save(logits: Path, context: int, chunks: int, blocks: list[bytes]) -> None:
    columns = 2 * ((VOCABULARY + 1) // 2) + 4
    size = 20 + chunks * (4 * context + 2 * (context - 1 - context // 2) * columns)
    head = struct.pack("<8sIii", b"_logits_", context, VOCABULARY, chunks) + struct.pack("<I", len(blocks))
    data = head + b"".join(blocks)
    assert len(data) <= size, "the text has too few chunks for this model"
    logits.write_bytes(data.ljust(size, b"\0"))


def _compare(mode: str, logits: Path, blocks: list[bytes]) -> tuple[int, str]:
    data = logits.read_bytes()
    _, _, _, chunks, count = struct.unpack_from("<8sIiiI", data)
    saved = [data[24 + 4 * at : 28 + 4 * at] for at in range(count)]
    differing = [at for at, (one, two) in enumerate(zip_longest(saved, blocks)) if one != two]
    value = sum(1e-4 + (at % 7) * 1e-6 for at in differing)
    if differing:
        if mode == "hang":
            time.sleep(60)
        if mode == "crash":
            return 134, "ggml.c:1: GGML_ASSERT(ne0 % 32 == 0) failed\n"
        if mode == "garbage":
            return 0, "\x1b[31mperplexity on Mars: 12\n"
        if mode == "silent":
            return 0, ""
        if mode == "nan":
            return 0, table("nan", chunks)
    if mode in ("forgetful", "lost") and _next_run(logits) % (3 if mode == "forgetful" else 1 << 30):
        return 0, "kl_divergence: computing over 2 chunks, n_ctx=128\n" + table("0.001", chunks)[:300]
    return 0, table(f"{value:.6f}", chunks, base="33.0" if mode == "other" and differing else "20.0")


def _next_run(logits: Path) -> int:
    """Count the comparisons with these logits."""
    counter = logits.with_name("runs")
    number = int(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text(str(number))
    return number


def table(value: str, chunks: int, base: str = "20.0") -> str:
    """What a comparison with the mean divergence `value` prints."""
    mean = float(value)
    rows = "".join(
        f"{number:4d}      20.1 ±    0.5       0.00100 ±    0.00010    {mean:10.5f} ±    0.00001"
        f"     0.100 ±  0.010 %     99.000 ±  0.500 %\n"
        for number in range(1, chunks + 1)
    )
    return (
        f"{rows}\n====== Perplexity statistics ======\n"
        f"Mean PPL(Q)                   :  20.000000 ±   0.500000\n"
        f"Mean PPL(base)                :  {base} ±   0.500000\n"
        f"Mean PPL(Q)/PPL(base)         :   1.000000 ±   0.001000\n"
        f"====== KL divergence statistics ======\n"
        f"Mean    KLD:   {value} ±   0.000001\n"
        f"Same top p: 99.000 ± 0.500 %\n"
    )


if __name__ == "__main__":
    status, text = respond(sys.argv[1], sys.argv[2:])
    sys.stdout.write(text)
    sys.stdout.flush()
    os._exit(status)
