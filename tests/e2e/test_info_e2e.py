"""The KV cache that `info` tells is the one that llama.cpp makes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gguftool.analysis.info import info
from tests.support.engine_tools import tool
from tests.support.head_corpus import BASES

CONTEXT = 32768  # 8 MiB of 256 bytes a token: the log has two digits behind the point


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BASES, "gemma3 with full attention"])
def test_the_cache_is_as_large_as_llama_cpp_makes_it(name: str, tmp_path: Path) -> None:
    program = tool("llama-completion")
    base = name.partition(" ")[0]
    head = BASES[base]().with_key(f"{base}.context_length", "u32", CONTEXT)
    if base != name:
        head = head.with_key("gemma3.attention.sliding_window_pattern", "u32", 2)
    (tmp_path / "m.gguf").write_bytes(head.bytes())
    line = [str(program), "-m", str(tmp_path / "m.gguf"), "-c", str(CONTEXT), "-n", "1", "-p", "a", "-no-cnv", "-v"]
    done = subprocess.run(line, capture_output=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    log = (done.stderr + done.stdout).decode(errors="replace").rpartition("n_ctx_seq")[2]  # the last context computes
    found = [float(size) for size in re.findall(r"llama_kv_cache: size =\s+([0-9.]+) MiB", log)]
    assert found, log[-2000:]
    assert sum(found) == pytest.approx(info(tmp_path / "m.gguf").memory[-1].kv_cache / 2**20, rel=0.02)
