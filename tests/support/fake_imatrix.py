"""A stand-in for ik_llama.cpp's llama-imatrix: the legacy format alone, and an `--output-format` that is another's."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

ENTRY, WIDTH = "blk.0.attn_k.weight", 256
_HELP = "--in-file FNAME\n--output-frequency N\n--run-time-repack\n--output-format FORMAT  table, jsonl, or csv\n"


def make_fake_ik(folder: Path) -> Path:
    """Make the program in `folder`."""
    path = folder / "llama-imatrix"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{Path(__file__).resolve()}" "$@"\n')
    path.chmod(0o755)
    return path


def respond(words: list[str]) -> tuple[int, str]:
    """Do what the program does with `words`: its exit status, and what it prints."""
    if "--help" in words:
        return 0, _HELP
    if "--version" in words:
        return 0, "version: 4840 (8337e4cd3)\n"
    if "--output-format" in words:
        return 1, "error: invalid parameter for argument: --output-format\n"
    chunks = int(words[words.index("--chunks") + 1])
    name = ENTRY.encode()
    values = struct.pack(f"<{WIDTH}f", *(chunks * (1 + at) for at in range(WIDTH)))
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", chunks, WIDTH) + values
    text = b"text.txt"
    Path(words[words.index("-o") + 1]).write_bytes(
        struct.pack("<i", 1) + entry + struct.pack("<ii", chunks, len(text)) + text
    )
    return 0, f"compute_imatrix: computing over {chunks} chunks with batch_size 64\n"


if __name__ == "__main__":
    status, printed = respond(sys.argv[1:])
    sys.stdout.write(printed)
    sys.stdout.flush()
    os._exit(status)
