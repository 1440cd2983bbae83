"""Speed of copying, as ratios to `cp` of the same bytes on the same file system.

Every case runs its command and its yardstick in turn, after removing outputs and letting the disk settle, and compares
the medians:

    python benchmarks/copying.py --folder /some/ext4/folder --size 4GiB --rounds 5
    sudo python benchmarks/copying.py --only reflink      # XFS and btrfs in loop-mounted images

Prints one line per case: the ratio, its bound, and both medians; exits 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from gguftool.format.header import Header, TensorInfo, serialize  # noqa: E402
from gguftool.format.kv import KV, ValueType, make_kv  # noqa: E402
from gguftool.render.units import parse_size  # noqa: E402

MIB = 1 << 20
TENSOR = 16 * MIB
F16 = 1
Command = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Two medians (or two sizes) and the bound on their ratio."""

    name: str
    ours: float
    yardstick: float
    bound: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """Our figure divided by the yardstick's."""
        return self.ours / self.yardstick

    def line(self) -> str:
        """One line for the terminal."""
        digits = 3 if self.unit == "s" else 0
        verdict = "ok  " if self.ratio <= self.bound else "MISS"
        return (
            f"{verdict} {self.name:44} {self.ratio:6.3f} (at most {self.bound:.2f}): "
            f"{self.ours:,.{digits}f} {self.unit} against {self.yardstick:,.{digits}f} {self.unit}"
        )


# --- models ---


def write_model(path: Path, n_tensors: int, tensor_bytes: int, *, kvs: Sequence[KV] = (), seed: int = 0) -> None:
    """Write a model of F16 tensors that all have different bytes."""
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
    """Run this checkout's command line, with compiled modules kept as in an installation."""
    subprocess.run(
        [sys.executable, "-m", "gguftool", *map(str, args)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": ""},
    )


def cp(sources: Sequence[Path], target: Path, *, sync: bool) -> None:
    """Run `cp` without reflinks, then `sync` the file, or the file system for a folder of files."""
    subprocess.run(["cp", "--reflink=never", *map(str, sources), str(target)], check=True)
    if sync:
        subprocess.run(["sync", *(["-f"] if target.is_dir() else []), str(target)], check=True)


def seconds(command: Command, folder: Path) -> float:
    """Time one run that starts with an empty `folder` and no dirty page."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()
    start = time.perf_counter()
    command()
    return time.perf_counter() - start


def compare(
    name: str, bound: float, ours: Command, yardstick: Command, folder: Path, rounds: int, minus: float = 0.0
) -> Result:
    """Run both in turn `rounds` times; subtract `minus` seconds of start-up from ours."""
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
    """The seconds that `gguftool --version` takes."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        gguftool("--version")
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# --- cases: copying ---


def copying(folder: Path, size: int, rounds: int, bounds: Sequence[tuple[bool, float]]) -> Iterator[Result]:
    """Split into 1,000 tensors and merge, for each of `bounds` (durable or not, the ratio)."""
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
            partial(gguftool, "split", model, out / "m", *flags),
            partial(cp, files, out, sync=sync),
            out,
            rounds,
        )
        yield compare(
            f"{kind}: merge of 1,000 shards / {against}",
            bound,
            partial(gguftool, "merge", shards, "-o", out / "m.gguf", *flags),
            partial(cp, [model], out / "m.gguf", sync=sync),
            out,
            rounds,
        )


# --- cases: sharing blocks ---

IMAGES = {"xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q")}


@contextlib.contextmanager
def mounted(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """Yield a folder on a fresh file system in a loop-mounted image; needs root."""
    image, mount = folder / f"{kind}.img", folder / kind
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    try:
        subprocess.run([*IMAGES[kind], str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    finally:
        image.unlink()


def new_blocks(command: Command, folder: Path) -> int:
    """The bytes that a command allocates on a file system."""
    before = free(folder)
    command()
    return before - free(folder)


def free(folder: Path) -> int:
    """The free bytes, once blocks are allocated for what was written and freed for what was deleted (slow on XFS)."""
    last, now = -1, 0
    while last != now:
        subprocess.run(["sync", "-f", str(folder)], check=True)
        time.sleep(0.5)
        space = os.statvfs(folder)
        last, now = now, space.f_bfree * space.f_frsize
    return now


def reflink(folder: Path, size: int, rounds: int) -> Iterator[Result]:
    """Swap, edit and merge with nearly all blocks shared: time against a full copy, and new blocks."""
    kind = file_system(folder)
    model, donor, template, out = folder / "model.gguf", folder / "donor.gguf", folder / "template", folder / "out"
    n_tensors = size // TENSOR
    write_model(model, n_tensors, TENSOR)
    write_model(donor, 1, TENSOR, seed=1)
    template.write_text("{{ messages }} " * 400)
    aligned = folder / "aligned"
    aligned.mkdir()
    gguftool("split", model, aligned / "m", "--align", 4096)
    edit = ("edit", model, "--set-file", f"tokenizer.chat_template={template}", "--pad")
    cases: dict[str, tuple[tuple[object, ...], int]] = {
        "swap of a 16 MiB tensor": (("swap", model, "--from", donor, "--tensor", "blk.0.ffn_down.weight"), 64 * MIB),
        "edit --pad of a chat template": (edit, 64 * MIB),
        "merge of shards split with --align 4096": (("merge", aligned), size // 20),
    }
    idle = start_up(rounds)
    for name, (args, most) in cases.items():
        yield compare(
            f"{kind}: {name}",
            0.05,
            partial(gguftool, *args, "-o", out / "m.gguf"),
            partial(cp, [model], out / "m.gguf", sync=True),
            out,
            rounds,
            minus=idle,
        )
        out.mkdir()
        taken = new_blocks(partial(gguftool, *args, "-o", out / "m.gguf"), folder)
        shutil.rmtree(out)
        result = Result(name=f"{kind}: {name}, new blocks", ours=taken, yardstick=size, bound=most / size, unit="bytes")
        print(result.line(), flush=True)
        yield result


def file_system(folder: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], check=True, capture_output=True, text=True)
    return done.stdout.strip().replace("ext2/ext3", "ext4")


# --- the whole ---


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on ext4: durable and not")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="on tmpfs: not durable")
    parser.add_argument("--size", type=parse_size, default=4 << 30, help="of the model that is split and merged")
    parser.add_argument("--shared-size", type=parse_size, default=2 << 30, help="of the model in the loop images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("ext4", "tmpfs", "reflink"))
    args = parser.parse_args()
    results: list[Result] = []
    if args.only in (None, "ext4"):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            results += copying(Path(folder), args.size, args.rounds, [(True, 1.05), (False, 1.0)])
    if args.only in (None, "tmpfs"):
        with tempfile.TemporaryDirectory(dir=args.tmpfs) as folder:
            results += copying(Path(folder), args.size, args.rounds, [(False, 1.1)])
    if args.only in (None, "reflink"):
        for kind in IMAGES:
            with (
                tempfile.TemporaryDirectory(dir=args.folder) as folder,
                mounted(Path(folder), kind, args.shared_size * 4) as mount,
            ):
                results += reflink(mount, args.shared_size, args.rounds)
    return 1 if any(result.ratio > result.bound for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
