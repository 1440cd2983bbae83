"""Hashing: against a bare hashlib loop, two cores against one, while copying against afterwards.

Also: split against llama-gguf-split, if that is installed.

    python -m benchmarks.hashing [FOLDER]

FOLDER holds at most 3 GiB. The model is in the page cache, so hashing is measured and not the disk. Prints each ratio
with its bar; the exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.core import scratch
from benchmarks.measure import MIB, PYTHON, Verdict, alternate, peak_of, run, wall
from benchmarks.models import big_model

ROUNDS = 7
# Both print the seconds without imports. The bare loop is the speed of hashlib on one core.
_BARE = """
import hashlib, sys, time
start = time.perf_counter()
digest, buffer = hashlib.sha256(), bytearray(1 << 20)
with open(sys.argv[1], "rb", buffering=0) as file:
    while count := file.readinto(buffer):
        digest.update(memoryview(buffer)[:count])
print(time.perf_counter() - start)
"""
_FILE = """
import sys, time
from gguftool.analysis.verify import hash_files
from gguftool.model.opening import open_model
start = time.perf_counter()
hash_files(open_model(sys.argv[1]), 1)
print(time.perf_counter() - start)
"""
# Only the tensors: the digest over all data goes in order on one core, and the command makes it beside these.
_TENSORS = """
import sys, time
from gguftool.model.opening import open_model
from gguftool.storage.sources.digest import digest_all
start = time.perf_counter()
model = open_model(sys.argv[1])
digest_all([[tensor.extent] for tensor in model.tensors.values()], int(sys.argv[2]))
print(time.perf_counter() - start)
"""
# The limit of this machine: the time for 1 GiB of zeros from memory, shared among the threads.
_NOTHING_BUT_SHA256 = """
import hashlib, sys, threading, time
data, threads = bytes(1 << 20), int(sys.argv[2])
def work():
    digest = hashlib.sha256()
    for _ in range(1024 // threads):
        digest.update(data)
start = time.perf_counter()
crew = [threading.Thread(target=work) for _ in range(threads)]
for thread in crew: thread.start()
for thread in crew: thread.join()
print(time.perf_counter() - start)
"""
_GGUFTOOL = (PYTHON, "-m", "gguftool")


def hashing(folder: Path) -> Iterator[Verdict]:
    """Time the work of the hash command on one core and on two, and measure its memory."""
    model = folder / "model.gguf"
    big_model(model, n_tensors=128, tensor_bytes=8 * MIB)

    def timed(program: str, *arguments: object) -> float:
        return float(run((PYTHON, "-c", program, model, *map(str, arguments))))

    timed(_BARE)  # warms the page cache
    bare, ours, detail = alternate(lambda: timed(_BARE), lambda: timed(_FILE), rounds=ROUNDS)
    yield Verdict(
        what="hash of a 1 GiB file on one core, by the speed of a bare hashlib loop",
        value=bare / ours,
        bar=0.9,
        unit=" times",
        detail=f"median {bare:.2f} s against {ours:.2f} s; {detail}",
        at_least=True,
    )
    alone, both, _ = alternate(
        lambda: timed(_NOTHING_BUT_SHA256, 1), lambda: timed(_NOTHING_BUT_SHA256, 2), rounds=ROUNDS
    )
    one, two, detail = alternate(lambda: timed(_TENSORS, 1), lambda: timed(_TENSORS, 2), rounds=ROUNDS)
    yield Verdict(
        what="hash of 128 equal tensors on two cores, by the speed of one",
        value=one / two,
        bar=1.7,
        unit=" times",
        detail=f"two threads of nothing but sha256 gain {alone / both:.2f} times here now; "
        f"median {one:.2f} s against {two:.2f} s; {detail}",
        at_least=True,
    )
    for arguments in (("hash", model), ("merge", model, "-o", folder / "out.gguf", "--hash", "--no-sync")):
        peak = peak_of((*_GGUFTOOL, *arguments))
        yield Verdict(
            what=f"peak memory of {arguments[0]}{' --hash' * (len(arguments) > 2)}",
            value=peak / MIB,
            bar=80,
            unit=" MiB",
            detail="interpreter included",
        )
    (folder / "out.gguf").unlink()


def while_copying(folder: Path) -> Iterator[Verdict]:
    """``merge --hash`` against merge, ``hash --files`` and ``hash`` of the output."""
    model, out = folder / "model.gguf", folder / "out.gguf"
    for flags, durable in (((), ", durable"), (("--no-sync",), ", --no-sync")):

        def together(flags: tuple[str, ...] = flags) -> None:
            run((*_GGUFTOOL, "merge", model, "-o", out, "--hash", *flags))

        def one_by_one(flags: tuple[str, ...] = flags) -> None:
            run((*_GGUFTOOL, "merge", model, "-o", out, *flags))
            run((*_GGUFTOOL, "hash", out, "--files"))
            run((*_GGUFTOOL, "hash", out))

        def timed(action: object) -> float:
            out.unlink(missing_ok=True)
            run(("sync", "-f", folder))
            return wall(action)  # type: ignore[arg-type]

        ours, other, detail = alternate(lambda: timed(together), lambda: timed(one_by_one), rounds=5)
        yield Verdict(
            what=f"merge --hash of 1 GiB{durable}, in times of merge and hash afterwards",
            value=ours / other,
            bar=1.0,
            unit="x",
            detail=f"median {ours:.2f} s against {other:.2f} s; {detail}",
        )


def against_gguf_split(folder: Path) -> Iterator[Verdict]:
    """``split`` against llama-gguf-split, if it is installed; neither waits for the disk."""
    model, out = folder / "model.gguf", folder / "shards"
    theirs = shutil.which("llama-gguf-split")
    if theirs is None:
        print("skipped: llama-gguf-split is not in the PATH (llama.cpp's tools/gguf-split)", flush=True)
        return

    def timed(*command: object) -> float:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        run(("sync", "-f", folder))
        return wall(lambda: run(tuple(map(str, command))))

    ours, other, detail = alternate(
        lambda: timed(*_GGUFTOOL, "split", model, out / "m", "--no-sync"),
        lambda: timed(theirs, "--split", "--split-max-tensors", 1, model, out / "m"),
        rounds=5,
    )
    yield Verdict(
        what="split into 129 shards, in times of llama-gguf-split",
        value=ours / other,
        bar=1.0,
        unit="x",
        detail=f"median {ours:.2f} s against {other:.2f} s; {detail}",
    )


def main() -> int:
    with scratch(sys.argv[1:]) as folder:
        verdicts = []
        for benchmark in (hashing, while_copying, against_gguf_split):
            for verdict in benchmark(folder):
                print(verdict, flush=True)
                verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
