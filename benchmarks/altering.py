"""Prune experts: 128 to 96 in each layer, in no order, so that nearly every expert is an extent of its own.

Planned once with views alone, as a library does, and once with `plan_alter`, the whole of what the command plans: it
also rewrites the metadata and judges the head for both engines.

    python -m benchmarks.altering [FOLDER]

FOLDER holds a sparse model of 48 layers (19.4 GB that take no room) for the plan, and one of 4 layers (1.6 GB), its
output and a copy of that for the writing (default: a temporary folder); they are removed at the end. The exit status is
1 if a bar is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.core import scratch
from benchmarks.measure import MIB, PYTHON, Verdict, alternate, peak_of, run, wall
from benchmarks.models import moe_model

ROUNDS = 5
WRITTEN_LAYERS = 4

# Prints the seconds for opening, taking and planning, without imports, and the number of experts' extents.
_PRUNE = """
import random, sys, time
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.surgery.alter.views import plan_views
model_path, out, count, write = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "write"
start = time.perf_counter()
model, tensors = open_model(model_path), []
order = random.Random(1).sample(range(128), count)
for name, tensor in model.tensors.items():
    axis = 2 if "_exps." in name else 1 if "_gate_inp." in name else None
    tensors.append(tensor if axis is None else tensor.take(axis, order))
plan = plan_views(model.kvs, tensors, out, like=model)
seconds = time.perf_counter() - start
experts = sum(len(tensor.extents) for tensor in tensors if "_exps." in tensor.name)
if write:
    execute(plan)
print(seconds, experts)
"""

# The same by `plan_alter`, with the number of all extents; routers have some, too. The head has too few keys for an
# engine: it is judged in full, and `anyway` lets it pass.
_ALTER = """
import random, sys, time
from gguftool.model.layout import OutputOptions
from gguftool.surgery.alter.alteration import Alteration
from gguftool.surgery.alter.plan import plan_alter
model_path, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
order = ",".join(map(str, random.Random(1).sample(range(128), count)))
start = time.perf_counter()
plan = plan_alter(model_path, Alteration(experts=order, output=OutputOptions(anyway=True)), out)
seconds = time.perf_counter() - start
print(seconds, sum(len(output.copies) for output in plan.outputs))
"""


def planning(folder: Path, rounds: int = ROUNDS) -> Iterator[Verdict]:
    """Time and memory of a plan for a head of Qwen3-30B-A3B's size."""
    path = folder / "sparse.gguf"
    moe_model(path)
    for script, kept, what in (
        (_PRUNE, 128, "reordering 128 experts"),
        (_PRUNE, 96, "pruning 128 experts to 96"),
        (_ALTER, 96, "plan_alter, pruning 128 experts to 96"),
    ):
        command = (PYTHON, "-c", script, path, folder / "out.gguf", str(kept), "plan")
        results = [run(command).split() for _ in range(rounds)]
        seconds = sorted(float(result[0]) for result in results)[rounds // 2]
        yield Verdict(
            what=f"planning: {what} in 48 layers",
            value=seconds,
            bar=2,
            unit=" s",
            detail=f"{int(results[0][1]):,} extents; median of {rounds}",
        )
        yield Verdict(
            what=f"peak memory of that process ({what})",
            value=peak_of(command) / MIB,
            bar=150,
            unit=" MiB",
            detail="interpreter included",
        )
    path.unlink()


def writing(folder: Path) -> Iterator[Verdict]:
    """The whole command against `cp` of its output, both until the disk has it."""
    path, out, copy = folder / "model.gguf", folder / "out.gguf", folder / "copy.gguf"
    moe_model(path, WRITTEN_LAYERS, noise=True)

    def prune() -> None:
        run((PYTHON, "-c", _PRUNE, path, out, "96", "write"))

    def copied() -> None:
        run(("cp", "--reflink=never", kept, copy))
        run(("sync", copy))

    def timed(action: Callable[[], None]) -> float:
        out.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
        run(("sync", "-f", folder))
        return wall(action)

    prune()
    kept = out.rename(folder / "kept.gguf")
    mine, other, detail = alternate(lambda: timed(prune), lambda: timed(copied), rounds=ROUNDS)
    yield Verdict(
        what=f"pruning 128 experts to 96 in {WRITTEN_LAYERS} layers, in times of cp and sync of the output",
        value=mine / other,
        bar=1.1,
        unit="x",
        detail=f"median {mine:.2f} s against {other:.2f} s for {kept.stat().st_size:,} bytes; {detail}",
    )


def main() -> int:
    with scratch(sys.argv[1:]) as folder:
        verdicts = []
        for part in (planning, writing):
            for verdict in part(folder):
                print(verdict, flush=True)
                verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
