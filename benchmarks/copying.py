"""How fast gguftool moves bytes, as ratios to `cp` of the same bytes on the same file system.

Every case runs its command and its yardstick in turn, outputs removed and the disk made quiet before each, and the
medians are compared:

    python benchmarks/copying.py --folder /some/ext4/folder --size 4GiB --rounds 5
    sudo python benchmarks/copying.py --only reflink      # XFS and btrfs in loop-mounted images

Prints one line a case: the ratio, the bound it is held to, and both medians; exits 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from gguftool.format.header import KV, Header, TensorInfo, ValueType, make_kv, serialize  # noqa: E402
from gguftool.render.units import parse_size  # noqa: E402

MIB = 1 << 20
F16 = 1
Command = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Two medians in seconds and the bound on their ratio."""

    name: str
    ours: float
    yardstick: float
    bound: float

    @property
    def ratio(self) -> float:
        return self.ours / self.yardstick

    def line(self) -> str:
        verdict = "ok  " if self.ratio <= self.bound else "MISS"
        return (
            f"{verdict} {self.name:44} {self.ratio:6.3f} (at most {self.bound:.2f}): "
            f"{self.ours:.3f} s against {self.yardstick:.3f} s"
        )


# --- models ---


def write_model(path: Path, n_tensors: int, tensor_bytes: int, *, kvs: Sequence[KV] = (), seed: int = 0) -> None:
    """Write a model of F16 tensors whose bytes do not repeat within a file system's block."""
    entries = (
        make_kv("general.architecture", ValueType.STRING, "llama"),
        make_kv("tokenizer.chat_template", ValueType.STRING, "{{ messages }}"),
        *kvs,
    )
    row = tensor_bytes // 2 // 64
    infos = tuple(
        TensorInfo(name=f"blk.{index}.ffn_down.weight", dims=(64, row), type=F16, offset=index * tensor_bytes)
        for index in range(n_tensors)
    )
    block = os.urandom(tensor_bytes - 1) + bytes([seed])
    with path.open("wb") as file:
        file.write(serialize(Header(kvs=entries, tensors=infos)))
        for index in range(n_tensors):
            file.write(block[index % 4096 :] + block[: index % 4096])


# --- running ---


def gguftool(*args: object) -> None:
    command = [sys.executable, "-m", "gguftool", *map(str, args)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)})


def cp(sources: Sequence[Path], target: Path, *, sync: bool) -> None:
    """`cp` without reflinks, then `sync` of what it wrote: its file, or the file system of a folder of many."""
    subprocess.run(["cp", "--reflink=never", *map(str, sources), str(target)], check=True)
    if sync:
        subprocess.run(["sync", *(["-f"] if target.is_dir() else []), str(target)], check=True)


def seconds(command: Command, folder: Path) -> float:
    """Time one run that starts with nothing in `folder` and no dirty page."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    start = time.perf_counter()
    command()
    return time.perf_counter() - start


def compare(
    name: str, bound: float, ours: Command, yardstick: Command, folder: Path, rounds: int, minus: float = 0.0
) -> Result:
    """Run both in turn `rounds` times; `minus` seconds of start-up are taken off ours."""
    pairs = [(seconds(ours, folder), seconds(yardstick, folder)) for _ in range(rounds)]
    shutil.rmtree(folder, ignore_errors=True)
    median = statistics.median
    result = Result(
        name=name,
        ours=max(0.0, median(pair[0] for pair in pairs) - minus),
        yardstick=median(pair[1] for pair in pairs),
        bound=bound,
    )
    print(result.line(), flush=True)
    return result


def start_up(rounds: int) -> float:
    """Seconds that `gguftool --version` takes."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        gguftool("--version")
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# --- cases: copying ---


def copying(folder: Path, size: int, rounds: int, bounds: Sequence[tuple[bool, float]]) -> Iterator[Result]:
    """Split to 1,000 tensors and merge, for each of `bounds` (durable or not, the ratio)."""
    model, shards, out = folder / "model.gguf", folder / "shards", folder / "out"
    write_model(model, 1000, size // 1000 // 128 * 128)
    kind = file_system(folder)
    shards.mkdir()
    gguftool("split", model, shards / "m", "--no-sync")
    files = sorted(shards.iterdir())
    for sync, bound in bounds:
        flags = () if sync else ("--no-sync",)
        against = "cp + sync" if sync else "cp"
        yield compare(
            f"{kind}: split to 1,000 tensors / {against}",
            bound,
            lambda: gguftool("split", model, out / "m", *flags),
            lambda: cp(files, out, sync=sync),
            out,
            rounds,
        )
        yield compare(
            f"{kind}: split to 1,000 tensors / {against} of model",
            bound,
            lambda: gguftool("split", model, out / "m", *flags),
            lambda: cp([model], out / "m.gguf", sync=sync),
            out,
            rounds,
        )
        yield compare(
            f"{kind}: merge of 1,000 shards / {against}",
            bound,
            lambda: gguftool("merge", shards, "-o", out / "m.gguf", *flags),
            lambda: cp([model], out / "m.gguf", sync=sync),
            out,
            rounds,
        )


def file_system(folder: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], check=True, capture_output=True, text=True)
    return done.stdout.strip().replace("ext2/ext3", "ext4")


if __name__ == "__main__":
    import tempfile
    folder=Path(sys.argv[1]); size=parse_size(sys.argv[2]); rounds=int(sys.argv[3])
    b=[(True,1.05),(False,1.0)]
    print("start-up", start_up(3))
    with tempfile.TemporaryDirectory(dir=folder) as t:
        list(copying(Path(t), size, rounds, b))
