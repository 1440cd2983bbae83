"""The core: opening a model, starting up, merging.

    python -m benchmarks.core [FOLDER]

FOLDER holds the outputs, at most 6 GiB (default: a temporary folder); they are removed at the end. Prints each ratio
with its bar; the exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import MIB, PYTHON, Verdict, alternate, peak_of, run, wall
from benchmarks.models import big_model, vocabulary_model

# Each prints the seconds for opening, without imports: counting those would favour us.
_OPEN_OURS = """
import sys, time
from gguftool.model.opening import open_model
start = time.perf_counter()
model = open_model(sys.argv[1])
seconds = time.perf_counter() - start
assert model.get("tokenizer.ggml.tokens").count == 262144 and len(model.tensors) == 9
print(seconds)
"""
_OPEN_GGUF_PY = """
import sys, time
from gguf import GGUFReader
start = time.perf_counter()
reader = GGUFReader(sys.argv[1])
seconds = time.perf_counter() - start
assert len(reader.tensors) == 9
print(seconds)
"""
_GGUFTOOL = (PYTHON, "-m", "gguftool")


def opening(folder: Path) -> Iterator[Verdict]:
    """A 262,144-token vocabulary: our open against gguf.GGUFReader, and our peak memory."""
    path = folder / "vocabulary.gguf"
    vocabulary_model(path)
    ours, theirs = ((PYTHON, "-c", program, path) for program in (_OPEN_OURS, _OPEN_GGUF_PY))
    mine, other, detail = alternate(lambda: float(run(ours)), lambda: float(run(theirs)), rounds=5)
    peak, other_peak = peak_of(ours), peak_of(theirs)
    path.unlink()
    yield Verdict(
        what="opening a 262,144-token model, times faster than gguf.GGUFReader",
        value=other / mine,
        bar=100,
        unit="x",
        detail=f"median {mine * 1000:.1f} ms against {other:.2f} s; {detail}",
        at_least=True,
    )
    yield Verdict(
        what="peak memory of the process that opens it",
        value=peak / MIB,
        bar=64,
        unit=" MiB",
        detail=f"interpreter included; of the one with gguf.GGUFReader {other_peak / MIB:.0f} MiB",
    )


def start_up(_folder: Path) -> Iterator[Verdict]:
    """``gguftool --help`` against ``python -c pass``."""
    mine, other, detail = alternate(
        lambda: wall(lambda: run((*_GGUFTOOL, "--help"))), lambda: wall(lambda: run((PYTHON, "-c", "pass"))), rounds=21
    )
    yield Verdict(
        what="gguftool --help, in times of python -c pass",
        value=mine / other,
        bar=12,
        unit="x",
        detail=f"median {mine * 1000:.1f} ms against {other * 1000:.1f} ms; {detail}",
    )


def merging(folder: Path) -> Iterator[Verdict]:
    """2 GiB in 65 shards: merge (which makes its output durable) against cp and sync of a file of the same bytes."""
    whole, prefix, out = folder / "whole.gguf", folder / "shards" / "m", folder / "out.gguf"
    big_model(whole, n_tensors=64, tensor_bytes=32 * MIB)
    run((*_GGUFTOOL, "split", whole, prefix))
    first = min(prefix.parent.iterdir())

    def merge() -> None:
        run((*_GGUFTOOL, "merge", first, "-o", out))

    def copy() -> None:
        run(("cp", "--reflink=never", whole, out))
        run(("sync", out))

    def timed(action: object) -> float:
        out.unlink(missing_ok=True)
        run(("sync", "-f", folder))  # so that earlier writes do not count
        return wall(merge if action == "merge" else copy)

    timed("merge")  # warms the page cache with the shards
    run(("cmp", whole, out))
    timed("copy")  # and with the whole
    mine, other, detail = alternate(lambda: timed("merge"), lambda: timed("copy"), rounds=5)
    shutil.rmtree(prefix.parent)
    whole.unlink()
    out.unlink()
    yield Verdict(
        what="merge of 65 shards of 2 GiB, in times of cp and sync",
        value=mine / other,
        bar=1.3,
        unit="x",
        detail=f"median {mine:.2f} s against {other:.2f} s; {detail}",
    )


def memory(folder: Path) -> Iterator[Verdict]:
    """Peak memory of a merge whose largest tensor is 1 GiB."""
    whole, prefix, out = folder / "whole.gguf", folder / "shards" / "m", folder / "out.gguf"
    big_model(whole, n_tensors=1, tensor_bytes=1024 * MIB)
    run((*_GGUFTOOL, "split", whole, prefix, "--no-sync"))
    first = min(prefix.parent.iterdir())
    peak = peak_of((*_GGUFTOOL, "merge", first, "-o", out, "--no-sync"))
    run(("cmp", whole, out))
    out.unlink()
    yield Verdict(
        what="peak memory of a merge with a 1 GiB tensor",
        value=peak / MIB,
        bar=80,
        unit=" MiB",
        detail="interpreter included",
    )
    shutil.rmtree(prefix.parent)
    whole.unlink()


@contextlib.contextmanager
def scratch(arguments: list[str]) -> Iterator[Path]:
    """Make a new folder, in the one that the command line names or in the system's; remove it at the end."""
    if arguments:
        Path(arguments[0]).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as name:
        yield Path(name)


def main() -> int:
    with scratch(sys.argv[1:]) as folder:
        verdicts = []
        for benchmark in (opening, start_up, memory, merging):
            for verdict in benchmark(folder):
                print(verdict, flush=True)
                verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
