"""Mix at the size of a published per-tensor set: 1,148 shards of 1 MB, at most 256 open files.

    python -m benchmarks.mixing [FOLDER]

FOLDER holds the outputs, at most 5 GB (default: a temporary folder); they are removed at the end. Splitting, swapping
one tensor and merging each write all bytes and make them durable; each is measured against ``cp -r`` of the same bytes
plus ``sync``. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.core import scratch
from benchmarks.measure import PYTHON, Verdict, alternate, run, wall
from benchmarks.models import big_model

SHARDS = 1148
TENSOR_BYTES = 1 << 20
OPEN_FILES = 256
BAR = 3.0
ROUNDS = 5

_GGUFTOOL = (PYTHON, "-m", "gguftool")


class Bench:
    """The model as one file and as shards, a donor with one tensor, and the output paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole, self.shards = folder / "whole.gguf", folder / "shards"
        self.donor, self.out, self.copy = folder / "donor.gguf", folder / "out", folder / "copy"

    def make(self) -> None:
        """Make the input files."""
        big_model(self.whole, n_tensors=SHARDS - 1, tensor_bytes=TENSOR_BYTES)
        big_model(self.donor, n_tensors=1, tensor_bytes=TENSOR_BYTES)
        run((*_GGUFTOOL, "split", self.whole, self.shards / "m"))

    def split(self) -> None:
        """Split the one file."""
        run((*_GGUFTOOL, "split", self.whole, self.out / "m"))

    def swap(self) -> None:
        """Swap one tensor of the set, which writes a new set."""
        name = "blk.0.ffn_up.weight"
        run((*_GGUFTOOL, "swap", self.shards, "--from", self.donor, "--tensor", name, "-o", self.out / "m"))

    def merge(self) -> None:
        """Merge the set."""
        run((*_GGUFTOOL, "merge", self.shards, "-o", self.out / "m.gguf"))

    def copied(self, what: Path) -> None:
        """Copy a file or folder and wait for the disk, as the tool does."""
        run(("cp", "-r", "--reflink=never", what, self.copy))
        run(("sync", "-f", self.copy))

    def timed(self, action: Callable[[], None]) -> float:
        """The seconds that `action` takes on a disk with no other pending writes."""
        for path in (self.out, self.copy):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        run(("sync", "-f", self.folder))
        return wall(action)

    def check(self) -> None:
        """Assert that the measured commands work: split and merge restore the file, swap keeps the other tensors."""
        self.timed(self.merge)
        run(("cmp", self.whole, self.out / "m.gguf"))
        self.timed(self.split)
        run(("diff", "-r", self.shards, self.out))
        self.timed(self.swap)
        same = sum((self.out / path.name).read_bytes() == path.read_bytes() for path in self.shards.iterdir())
        if same < SHARDS - 2:  # shard 1 and the tensor's
            raise RuntimeError(f"swap left {same} of {SHARDS} shards as they were")


def mixing(folder: Path) -> Iterator[Verdict]:
    """Split, swap one tensor and merge, each against a copy of the same output."""
    bench = Bench(folder)
    bench.make()
    bench.check()  # and warms the page cache
    for name, action, bytes_of in (
        ("split into", bench.split, bench.shards),
        ("swap of one tensor in", bench.swap, bench.shards),
        ("merge of", bench.merge, bench.shards),
    ):
        mine, other, detail = alternate(
            lambda action=action: bench.timed(action),  # type: ignore[misc]
            lambda what=bytes_of: bench.timed(lambda: bench.copied(what)),  # type: ignore[misc]
            rounds=ROUNDS,
        )
        yield Verdict(
            what=f"{name} {SHARDS:,} shards of 1 MB, in times of cp -r and sync",
            value=mine / other,
            bar=BAR,
            unit="x",
            detail=f"median {mine:.2f} s against {other:.2f} s, at most {OPEN_FILES} open files; {detail}",
        )


def main() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, min(hard, OPEN_FILES)))  # commands inherit it
    with scratch(sys.argv[1:]) as folder:
        verdicts = []
        for verdict in mixing(folder):
            print(verdict, flush=True)
            verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
