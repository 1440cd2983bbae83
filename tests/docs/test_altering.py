"""docs/altering.md shows what its commands print, on models made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gguftool
from gguftool.format.imatrix import Imatrix, ImatrixEntry
from gguftool.format.imatrix_write import serialize_gguf
from tests.support.mix_models import write
from tests.support.pages import blocks, run_page
from tests.support.paths import REPO
from tests.support.shuffled_models import ShuffledModel

PAGE = REPO / "docs" / "altering.md"
KEPT = {layer: [0, 1, 3, 4, 6, 7] for layer in range(3)}


def _model(name: str) -> bytes:
    return ShuffledModel(name=name, kinds=("Q4_K", "Q8_0"), shuffle=-1, byte_order="<").data()


def _imatrix(model: Path) -> bytes:
    """An imatrix that has an entry for each matrix of experts."""
    import numpy as np

    tensors = gguftool.open_model(model).tensors
    entries = {
        name: ImatrixEntry(
            name=name,
            sums=np.full((tensor.info.dims[2], tensor.info.dims[0]), 2, np.float32),
            counts=np.ones(tensor.info.dims[2], np.float32),
        )
        for name, tensor in tensors.items()
        if len(tensor.info.dims) > 2
    }
    return serialize_gguf(Imatrix(entries=entries, datasets=("calibration.txt",), chunk_count=1, chunk_size=512))


def make_files(folder: Path) -> None:
    """Write the files that the page's commands start from."""
    for name, tiny in (("Qwen3.5", "qwen35"), ("moe", "qwen3moe"), ("Llama", "llama")):
        (folder / f"{name}-Q4_K.gguf").write_bytes(_model(tiny))
    merge, script = blocks(PAGE, "text")
    (folder / "merge.yml").write_text(merge, encoding="utf-8")
    (folder / "prune.alter").write_text(script, encoding="utf-8")
    (folder / "keep.json").write_text(json.dumps(KEPT), encoding="utf-8")
    (folder / "moe.imatrix.gguf").write_bytes(_imatrix(folder / "moe-Q4_K.gguf"))
    apart = gguftool.Alteration(unfuse=("experts",), output=gguftool.OutputOptions(anyway=True))
    write(gguftool.plan_alter(folder / "moe-Q4_K.gguf", apart, folder / "mixtral-2023.gguf"))


@pytest.mark.slow
def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    make_files(tmp_path)
    results = list(run_page(PAGE, tmp_path))
    assert len(results) > 15
    for command, shown, printed in results:
        assert printed == shown, f"{command} prints\n{printed}"
    assert not (tmp_path / "out.gguf").exists()
