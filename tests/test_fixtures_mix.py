"""fixtures/mix is made again byte for byte, and holds what its numbers say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from support import FIXTURES


def test_make_mix_makes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", FIXTURES / "make_mix.py", tmp_path], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in (FIXTURES / "mix").glob("*.gguf")}
    assert max(map(len, made.values())) < 64 << 10


def test_the_three_are_one_model_within_the_error_of_their_types() -> None:
    """gguf reads them and finds what ggml's quantizers would have lost, and no more."""
    import gguf
    import numpy as np

    models = {
        kind: {tensor.name: tensor for tensor in gguf.GGUFReader(FIXTURES / "mix" / f"tiny-{kind}.gguf").tensors}
        for kind in ("BF16", "Q8_0", "Q4_0")
    }

    def values(kind: str, name: str) -> Any:
        tensor = models[kind][name]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)

    for name in models["BF16"]:
        exact = values("BF16", name)
        for kind, error in (("Q8_0", 1 / 220), ("Q4_0", 1 / 7)):
            assert np.abs(values(kind, name) - exact).max() <= np.abs(exact).max() * error
