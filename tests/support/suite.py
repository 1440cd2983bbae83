"""Quants in the layout of GGUF-Tool-Suite: a folder for each type, one tensor in each shard, a map beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguftool.analysis.verify import hash_files
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.surgery.tensors_map import plan_tensors_map
from tests.support.mix_models import per_tensor
from tests.support.packing import pack

TEMPLATE = "M-ME-{QTYPE}-SPECIAL_SPLIT"
TYPES = ("Q4_K", "Q8_0", "BF16")


def make_suite(folder: Path, types: Sequence[str] = TYPES, *, packed: Sequence[str] = ()) -> str:
    """Write a quant of each of `types` into `folder`; return the name that stands for all of them."""
    for kind in types:
        place = folder / TEMPLATE.replace("{QTYPE}", kind)
        per_tensor(place, f"M-ME-{kind}-SPECIAL_TENSOR", kind)
        model = open_model(place)
        hashes = {one.name: one.sha256 for one in hash_files(model)}
        execute(plan_tensors_map(model, hashes, place / "tensors.map"), Options(sync=False))
        if kind in packed:
            for path in sorted(place.glob("*.gguf"))[1:]:
                pack(path, how="bzip2" if path.name[-18] in "13579" else "zstd")
    return str(folder / TEMPLATE)
