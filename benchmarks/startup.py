"""Starting up: processor time of short commands against programs of other packages, and against another checkout.

    python -m benchmarks.startup [OTHER_CHECKOUT [FOLDER]]

The programs are gguf-dump of the package gguf and gguf-inspect of libgguf, as far as they are installed for this
interpreter. Both checkouts run with it too, and with byte code cached in FOLDER (default: a temporary one).
Prints each ratio with its bar; the exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from benchmarks.core import scratch
from benchmarks.measure import PYTHON, REPO, Verdict, alternate, cpu_of

_ROUNDS = 15
_DEMO = REPO / "fixtures" / "demo.gguf"
_BARS: tuple[tuple[str, float], ...] = (
    ("--version", 0.6),
    (f"dump {_DEMO}", 0.75),
    ("merge --help", 0.75),
    (f"swap m.gguf --from {_DEMO} --tensor blk -o o.gguf --force", 0.9),
)
# Our command, the program that does as much or less, and how much of its processor time ours may take.
_AGAINST: tuple[tuple[str, str, float], ...] = (
    (f"dump {_DEMO}", f"gguf-dump --no-tensors {_DEMO}", 0.5),
    (f"info {_DEMO}", f"gguf-inspect {_DEMO}", 1.2),
)


def environment_of(checkout: Path, folder: Path) -> dict[str, str]:
    """The environment in which `checkout` is imported and its byte code cached in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(folder / "pycache")}


def starting(other: Path, folder: Path, rounds: int = _ROUNDS) -> Iterator[Verdict]:
    """Run each command with this checkout and with `other` in turn, after one run of each that fills the caches."""
    shutil.copy(_DEMO, folder / "m.gguf")
    environments = [environment_of(checkout, folder) for checkout in (REPO, other.resolve())]
    for line, bar in _BARS:
        command = (PYTHON, "-m", "gguftool", *line.split())
        ours, theirs = (partial(cpu_of, command, folder, environment) for environment in environments)
        ours(), theirs()
        mine, before, detail = alternate(ours, theirs, rounds)
        yield Verdict(
            what=f"gguftool {line.replace(str(_DEMO), 'fixtures/demo.gguf')}, in processor time of the other checkout",
            value=mine / before,
            bar=bar,
            unit="x",
            detail=f"median {mine * 1000:.1f} ms against {before * 1000:.1f} ms; {detail}",
        )


def beside_others(folder: Path, rounds: int = _ROUNDS) -> Iterator[Verdict]:
    """Run `dump` and `info` in turn with programs of other packages; those that are not installed are left out."""
    environment = environment_of(REPO, folder)
    for line, other, bar in _AGAINST:
        name, *words = other.split()
        program = shutil.which(name, path=str(Path(PYTHON).parent))
        if program is None:
            continue
        ours = partial(cpu_of, (PYTHON, "-m", "gguftool", *line.split()), folder, environment)
        theirs = partial(cpu_of, (program, *words), folder, environment)
        ours(), theirs()
        mine, before, detail = alternate(ours, theirs, rounds)
        yield Verdict(
            what=f"gguftool {line.replace(str(_DEMO), 'fixtures/demo.gguf')}, in processor time of {name}",
            value=mine / before,
            bar=bar,
            unit="x",
            detail=f"median {mine * 1000:.1f} ms against {before * 1000:.1f} ms; {detail}",
        )


def main() -> int:
    with scratch(sys.argv[2:]) as folder:
        verdicts = []
        for verdict in chain(beside_others(folder), *(starting(Path(other), folder) for other in sys.argv[1:2])):
            print(verdict, flush=True)
            verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
