"""A mix planned for two devices runs in the real llama.cpp with the arguments printed, and its log agrees."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.engine_tools import tool
from tests.support.paths import FIXTURES
from tests.support.text_command import run_text

pytestmark = pytest.mark.e2e

SOURCE = str(FIXTURES / "engines" / "tiny-qwen3moe-Q4_K.gguf")
MIB = 1 << 20


@pytest.mark.parametrize(("ctx", "ubatch", "kv"), [(512, 128, "f16"), (300, 64, "q8_0")])
def test_two_devices_run_with_the_arguments_printed(tmp_path: Path, ctx: int, ubatch: int, kv: str) -> None:
    program = tool("llama-completion")
    recipe, out = str(tmp_path / "mix.recipe"), str(tmp_path / "mix.gguf")
    devices = ("--device", "GPU=6M:attn|norm|output|gate_inp", "--device", "CPU=8M")
    context = ("--ctx", str(ctx), "--ubatch", str(ubatch), "--kv-type", kv)
    planned = run_text("plan", SOURCE, *devices, *context, "--types", "q4_K,q6_K,q8_0", "-o", recipe, "--json")
    assert planned.returncode == 0, planned.stderr
    mix = json.loads(planned.stdout)
    made = run_text("quantize", SOURCE, "--recipe", recipe, "--allow-requantize", "-o", out)
    assert made.returncode == 0, made.stderr
    # This llama.cpp has no GPU: its rules are tried with main memory in its place.
    words = shlex.split(mix["arguments"].replace("CUDA0", "CPU"))
    assert words.count("-ot") == 2
    command = [str(program), "-m", out, *words, "-no-cnv", "-n", "4", "-p", "hi", "--no-warmup", "-t", "2", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    log = done.stdout + done.stderr
    gpu = mix["devices"][0]
    assert gpu["kv_cache"] == pytest.approx(_logged(log, "KV buffer size"), abs=0.01 * MIB)
    assert gpu["compute"] >= _logged(log, "compute buffer size")
    assert re.search(r"tensor blk\.0\.ffn_up_exps\.weight .*buffer type overridden to CPU", log)


def _logged(log: str, what: str) -> float:
    """The largest size of that name in the log, in bytes."""
    return max(float(text) for text in re.findall(rf"{what} = +([0-9.]+) MiB", log)) * MIB
