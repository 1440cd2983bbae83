"""Files of views: identities byte for byte, what is copied from where, and what cannot be laid out."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.surgery.alter.views import plan_views
from tests.support.paths import FIXTURES

FILES = sorted(path for path in FIXTURES.glob("**/*.gguf") if "-of-" not in path.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_tensors_of_a_file_give_the_file(path: Path, tmp_path: Path) -> None:
    model, out = open_model(path), tmp_path / "out.gguf"
    if len({tensor.name for tensor in model.tensors.values()}) < len(model.files[0].header.tensors):
        pytest.skip("a file with two tensors of one name cannot be written")
    tensors = [tensor.take(1, range((*tensor.info.dims, 1)[1])) for tensor in model.tensors.values()]
    execute(plan_views(model.kvs, tensors, out, like=model))
    assert out.read_bytes() == path.read_bytes()
