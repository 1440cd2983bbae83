"""Quantize: a whole model against llama-quantize, one tensor, two cores against one, the memory for a large tensor.

    python -m benchmarks.quantize [FOLDER]

FOLDER holds the outputs, at most 6 GiB (default: a temporary folder); they are removed at the end. SmolLM2 is looked up
as in the end-to-end tests (its wheel in .cache, or $GGUFTOOL_SMOLLM2). The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import os
import random
import struct
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from benchmarks.core import scratch
from benchmarks.measure import MIB, PYTHON, REPO, Verdict, alternate, cpu_of, peak_of, run, wall
from benchmarks.models import tensor_model

ROUNDS = 5
TENSOR, TYPE = "blk.3.ffn_down.weight", "q4_K"  # 1,536 x 576, Q4_1 in the model
_GGUFTOOL = (PYTHON, "-m", "gguftool", "quantize")

# The memory of a process before it works: interpreter, numpy, both libraries, and parsing this command line.
_START = """
import sys
import numpy, gguf.quants, libgguf
from gguftool.cli.app import app
from gguftool.errors import SourceError
import gguftool.storage.execute.executor, gguftool.surgery.quantize.plan
try:
    app([*sys.argv[1:], "-o", "no.gguf"], standalone_mode=False)
except SourceError:
    sys.exit()
sys.exit("the model that is not there was found")
"""

# Only libgguf, from the old bytes to the new ones; prints the seconds without imports.
_LIBGGUF = """
import sys, time
import libgguf, numpy as np
from gguftool.model.opening import open_model
tensor = open_model(sys.argv[1]).tensors[sys.argv[2]]
data = np.frombuffer(tensor.extent.read(), np.uint8).reshape(tensor.info.dims[1], -1)
kind = libgguf.GGMLQuantizationType.__members__[sys.argv[3].upper()]
start = time.perf_counter()
rows = libgguf.dequantize_rows(data, tensor.info.type)
libgguf.quantize_rows(rows, kind)
print(time.perf_counter() - start)
"""


def one_tensor(folder: Path, model: Path) -> Iterator[Verdict]:
    """Quantize one tensor of SmolLM2 into a new file, against libgguf for that tensor plus ``cp`` of the file."""
    out, copy = folder / "out.gguf", folder / "copy.gguf"
    options = ("--tensor", f"{TENSOR}={TYPE}", "--allow-requantize", "--no-sync")

    def ours() -> float:
        out.unlink(missing_ok=True)
        whole = wall(lambda: run((*_GGUFTOOL, model, *options, "-o", out)))
        return whole - wall(lambda: run((PYTHON, "-c", _START, "quantize", folder / "no-such.gguf", *options)))

    def theirs() -> float:
        copy.unlink(missing_ok=True)
        copied = wall(lambda: run(("cp", "--reflink=never", model, copy)))
        return copied + float(run((PYTHON, "-c", _LIBGGUF, model, TENSOR, TYPE)))

    ours(), theirs()  # warms the page cache
    mine, other, detail = alternate(ours, theirs, rounds=ROUNDS)
    yield Verdict(
        what=f"one tensor of SmolLM2 to {TYPE}, in times of libgguf for it and cp of the file",
        value=mine / other,
        bar=1.25,
        unit="x",
        detail=f"median {mine:.3f} s against {other:.3f} s, start-up taken off; {detail}",
    )


def two_cores(folder: Path) -> Iterator[Verdict]:
    """A tensor of 1 GiB of F32 on all cores and on one (libgguf starts threads that --jobs does not limit)."""
    model, out = folder / "large.gguf", folder / "out.gguf"
    tensor_model(model, rows=1 << 16, width=1 << 12)

    def timed(*bound: str) -> float:
        out.unlink(missing_ok=True)
        command = (*bound, *_GGUFTOOL, model, "--tensor", f".*={TYPE}", "--no-sync", "-o", out)
        return wall(lambda: run(command))

    one, two, detail = alternate(lambda: timed("taskset", "-c", "0"), timed, rounds=ROUNDS)
    model.unlink()
    yield Verdict(
        what=f"two cores on a tensor of 1 GiB to {TYPE}, by the speed of one",
        value=one / two,
        bar=1.6,
        unit="x",
        detail=f"median {one:.2f} s against {two:.2f} s on {os.cpu_count()} cores; {detail}",
        at_least=True,
    )


def memory(folder: Path) -> Iterator[Verdict]:
    """The peak memory of a process that quantizes a tensor of 4 GiB, a sparse file of zeros."""
    model, out = folder / "sparse.gguf", folder / "out.gguf"
    out.unlink(missing_ok=True)
    tensor_model(model, rows=1 << 18, width=1 << 12, noise=False)
    peak = peak_of((*_GGUFTOOL, model, "--tensor", ".*=q8_0", "--no-sync", "-o", out))
    size = out.stat().st_size
    model.unlink()
    out.unlink()
    yield Verdict(
        what="peak memory while a tensor of 4 GiB is quantized",
        value=peak / MIB,
        bar=300,
        unit=" MiB",
        detail=f"{size / MIB:,.0f} MiB of q8_0 written by {os.cpu_count()} threads",
    )


def whole_model(folder: Path, model: Path, tool: Path) -> Iterator[Verdict]:
    """Two models in F16 to one type by rule, against llama-quantize with the same rule: the same bytes."""
    small, wide = folder / "small.gguf", folder / "wide.gguf"
    run((*_GGUFTOOL, model, "--tensor", "(attn|ffn|embd).*=f16", "--allow-requantize", "--no-sync", "-o", small))
    wide.write_bytes(_wide_model())
    for what, source in (("SmolLM2", small), ("a model of width 1,024", wide)):
        options = ("--tensor", f".*={TYPE}", "--jobs", "2", "--no-sync", "--force", "-o", folder / "ours.gguf")
        ours = (*_GGUFTOOL, source, *options)
        theirs = (tool, "--tensor-type", f".*={TYPE}", source, folder / "theirs.gguf", "Q8_0", "2")
        for unit, timed in (("wall time", _wall), ("processor time", _cpu)):
            mine, other, detail = alternate(partial(timed, ours), partial(timed, theirs), rounds=ROUNDS)
            yield Verdict(
                what=f"{what} in F16 to {TYPE}, {unit} of llama-quantize",
                value=mine / other,
                bar=1.05,
                unit="x",
                detail=f"median {mine:.2f} s against {other:.2f} s; {detail}",
            )


def _wall(command: tuple[str | Path, ...]) -> float:
    return wall(lambda: run(command))


def _cpu(command: tuple[str | Path, ...]) -> float:
    return cpu_of(command, REPO, os.environ)


def _wide_model() -> bytes:
    """A llama of width 1,024 with noise in F16: 8 layers of 7 matrices."""
    from tests.support import builders as b
    from tests.support.preset_heads import DENSE, model_kvs

    noise = random.Random(1)
    matrix = b"".join(struct.pack("<e", noise.gauss(0, 0.02)) for _ in range(1 << 16)) * 16
    parts = [part for part in DENSE if part != "attn_norm"]
    names = ["token_embd.weight", *(f"blk.{layer}.{part}.weight" for layer in range(8) for part in parts)]
    tensors = [b.Tensor(name, (1024, 1024), 1, matrix) for name in names]
    return b.gguf(model_kvs("llama", layers=8, width=1024), tensors)


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.engine_tools import BUILD
    from tests.support.engine_tools import folder as tools
    from tests.support.smollm2 import SMOLLM2_COMMAND, find_smollm2

    tool = tools() / "llama-quantize"
    if not tool.is_file():
        print(f"llama-quantize is not built; from the top of the checkout: {BUILD}", file=sys.stderr)
        return 2
    model = find_smollm2()
    if model is None:
        print(f"SmolLM2 is not here; from the top of the checkout: {SMOLLM2_COMMAND}", file=sys.stderr)
        return 2
    with scratch(sys.argv[1:]) as folder:
        verdicts = []
        figures = (whole_model(folder, model, tool), one_tensor(folder, model), memory(folder), two_cores(folder))
        for verdict in chain(*figures):
            print(verdict, flush=True)
            verdicts.append(verdict)
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
