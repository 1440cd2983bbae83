"""The KV cache that `info` and `plan` tell is the one that llama.cpp makes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gguftool.analysis.info import info
from gguftool.cooking.devices import Context, kv_cache_bytes
from gguftool.cooking.offers import offer_types
from gguftool.model.opening import open_model
from tests.support.engine_tools import tool
from tests.support.head_corpus import BASES

CONTEXT = 32768  # 8 MiB of 256 bytes a token: the log has two digits behind the point
NAMES = [*BASES, "gemma3 with full attention"]


def _model(name: str, folder: Path) -> Path:
    base = name.partition(" ")[0]
    head = BASES[base]().with_key(f"{base}.context_length", "u32", CONTEXT)
    if base != name:
        head = head.with_key("gemma3.attention.sliding_window_pattern", "u32", 2)
    (folder / "m.gguf").write_bytes(head.bytes())
    return folder / "m.gguf"


def _logged(model: Path, *options: str) -> float:
    """The bytes of all caches that llama.cpp makes for `model`."""
    program = tool("llama-completion")
    line = [str(program), "-m", str(model), "-c", str(CONTEXT), "-n", "1", "-p", "a", "-no-cnv", "-v", *options]
    done = subprocess.run(line, capture_output=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    log = (done.stderr + done.stdout).decode(errors="replace").rpartition("n_ctx_seq")[2]  # the last context computes
    found = [float(size) for size in re.findall(r"llama_kv_cache: size =\s+([0-9.]+) MiB", log)]
    assert found, log[-2000:]
    return sum(found) * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_as_large_as_llama_cpp_makes_it(name: str, tmp_path: Path) -> None:
    model = _model(name, tmp_path)
    assert _logged(model) == pytest.approx(info(model).memory[-1].kv_cache, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma3 with full attention"])
def test_the_cache_that_plan_reserves_follows_the_batch(name: str, tmp_path: Path) -> None:
    path = _model(name, tmp_path)
    model = open_model(path)
    offers = tuple(offer_types(tensor.name, tensor.info.dims, ["f32"]) for tensor in model.tensors.values())
    reserved = kv_cache_bytes(model, offers, Context(ctx=CONTEXT, ubatch=1024))
    assert _logged(path, "-ub", "1024", "-b", "1024") == pytest.approx(reserved, rel=0.02)
