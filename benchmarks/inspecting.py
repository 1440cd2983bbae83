"""Inspect a set of 1,148 shards: report, diff and check against a bare loop over the files.

    python -m benchmarks.inspecting [FOLDER]

The bare loop opens each file and reads 4 KiB of it. Ours opens the set, makes the report and renders it as text. Each
runs in a separate process and does not count imports. FOLDER holds at most 1.2 GB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.core import scratch
from benchmarks.measure import MIB, PYTHON, Verdict, alternate, peak_of, run
from benchmarks.models import big_model

_BARE = """
import sys, time, glob
names = sorted(glob.glob(sys.argv[1] + "/*.gguf"))
assert len(names) == 1148
start = time.perf_counter()
for name in names:
    with open(name, "rb") as file:
        file.read(4096)
print(time.perf_counter() - start)
"""
_IMPORTS = "import sys, time\n"
_WAYS = {
    "report": """
from gguftool.analysis.report import report
from gguftool.model.opening import open_models
from gguftool.render.format import Format
from gguftool.render.registry import render
start = time.perf_counter()
text = render(report(open_models(sys.argv[1])), Format.TEXT)
""",
    "diff": """
from gguftool.analysis.diff.models import DiffOptions, diff_headers
from gguftool.model.opening import open_model
from gguftool.render.format import Format
from gguftool.render.registry import render
start = time.perf_counter()
model = open_model(sys.argv[1])
text = render(diff_headers(model, model, DiffOptions()), Format.TEXT)
""",
    "check": """
from gguftool.analysis.lint.check import check
from gguftool.render.findings.text import check_text
start = time.perf_counter()
text = check_text(check(sys.argv[1]))
""",
}
_PRINT = "print(time.perf_counter() - start)\nassert text\n"


def inspecting(folder: Path) -> Iterator[Verdict]:
    """Time three ways of inspecting one set, and measure the memory of each command."""
    whole, shards = folder / "model.gguf", folder / "shards"
    big_model(whole, 1147, MIB)
    run((PYTHON, "-m", "gguftool", "split", whole, shards / "m", "--no-sync"))
    whole.unlink()
    bare = (PYTHON, "-c", _BARE, shards)
    for name, program in _WAYS.items():
        ours = (PYTHON, "-c", _IMPORTS + program + _PRINT, shards)
        mine, other, detail = alternate(lambda ours=ours: float(run(ours)), lambda: float(run(bare)), rounds=5)
        yield Verdict(
            what=f"{name} of 1,148 shards, by the time of a bare loop",
            value=mine / other,
            bar=10,
            unit=" times",
            detail=detail,
        )
        arguments = f"{shards} {shards}" if name == "diff" else str(shards)
        # The exit code is 1 for findings, and 1,148 shards are a finding (ik_llama.cpp opens 64).
        peak = peak_of(("sh", "-c", f"{PYTHON} -m gguftool {name} {arguments} || [ $? -eq 1 ]"))
        yield Verdict(what=f"peak memory of {name}", value=peak / MIB, bar=100, unit=" MiB", detail="whole process")


def main() -> int:
    with scratch(sys.argv[1:]) as folder:
        verdicts = []
        for verdict in inspecting(folder):
            print(verdict, flush=True)
            verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
