"""Stand-ins for programs that load models: they pass the two trials, and do as told with the model itself."""

from __future__ import annotations

import sys
from pathlib import Path

REFUSAL = "error loading model: unknown model architecture: 'gguftool-none'"
_TRIALS = f"""#!/bin/sh
case "$*" in
    *--help*) echo '-m --model FILE  -no-cnv'; exit 0;;
    *--version*) echo 'version: 123 (abcdef)' >&2; exit 0;;
    *good.gguf*) exit 0;;
    *bad.gguf*) echo "{REFUSAL}" >&2; exit 1;;
esac
"""


def engine_script(folder: Path, body: str, name: str = "llama-completion") -> Path:
    """A shell script that does `body` with the model, in which ``$2`` is the model's path."""
    return _program(folder / name, _TRIALS + body + "\n")


def engine_python(folder: Path, body: str, name: str = "llama-completion", *, wrapped: bool = False) -> Path:
    """The same with a body in Python, where ``model`` is the model's path.

    With `wrapped`, a shell stays around it.
    """
    (folder / "body.py").write_text(f"import sys, time, mmap\nmodel = sys.argv[2]\n{body}\n")
    call = f'"{sys.executable}" "{folder / "body.py"}" "$@"'
    return _program(folder / name, _TRIALS + (f"{call}; exit $?\n" if wrapped else f"exec {call}\n"))


def _program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path
