"""What is quantized here is run by the real llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguftool.model.opening import open_model
from tests.support.paths import FIXTURES

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Greedy = Callable[[Path], str]
Run = Callable[..., str]


@pytest.mark.parametrize("kind", ["q4_K", "q6_K", "q8_0", "iq4_xs"])
def test_the_engine_runs_what_was_quantized(tool: Run, greedy: Greedy, tmp_path: Path, kind: str) -> None:
    source, out = FIXTURES / "engines" / "tiny-llama-BF16.gguf", tmp_path / "o.gguf"
    tool("quantize", source, "--tensor", f".*={kind}", "-o", out)
    assert len(greedy(out)) > 0


def test_one_tensor_of_a_real_model_is_made_anew(tool: Run, greedy: Greedy, tmp_path: Path, smollm2: Path) -> None:
    """One tensor in eight bits instead of four: the text starts as before, and only that tensor differs."""
    out, name = tmp_path / "o.gguf", "blk.3.ffn_down.weight"
    tool("quantize", smollm2, "--tensor", f"{name}=q8_0", "--allow-requantize", "-o", out)
    old, new = open_model(smollm2), open_model(out)
    changed = [each for each in old.tensors if old.tensors[each].extent.read() != new.tensors[each].extent.read()]
    assert changed == [name]
    assert greedy(out)[:12] == greedy(smollm2)[:12]
    swapped = tmp_path / "swapped.gguf"
    tool("swap", smollm2, "--from", out, "--tensor", name, "-o", swapped)
    assert swapped.read_bytes() == out.read_bytes()
