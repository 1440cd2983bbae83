"""Starting up: processor time of short commands against another checkout.

    python -m benchmarks.startup OTHER_CHECKOUT [FOLDER]

Both checkouts run with this interpreter, and with byte code cached in FOLDER (default: a temporary one).
Prints each ratio with its bar; the exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
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


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    with scratch(sys.argv[2:]) as folder:
        verdicts = []
        for verdict in starting(Path(sys.argv[1]), folder):
            print(verdict, flush=True)
            verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
