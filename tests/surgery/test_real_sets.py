"""Files and sets that the engines' own tools wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.model.layout import OutputOptions
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.surgery.merge import plan_merge
from gguftool.surgery.split import SplitOptions, plan_split
from tests.support.paths import FIXTURES

MODELS = [*sorted(FIXTURES.glob("engines/*.gguf")), *sorted(FIXTURES.glob("engines/zoo/*.gguf"))]
SETS = {"ik-IQ4_KS": "tiny-llama-IQ4_KS.gguf", "mainline-Q4_K": "tiny-llama-Q4_K.gguf"}
OPTIONS = [
    SplitOptions(),
    SplitOptions(max_tensors=7, tensor_first=True),
    SplitOptions(output=OutputOptions(max_size=100_000), bundle_small=4000),
]


def test_the_reference_models_are_there() -> None:
    assert len(MODELS) == 9 + 4


@pytest.mark.parametrize("options", OPTIONS, ids=["per tensor", "7 tensors", "100 kB"])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_real_models_come_back_byte_for_byte(path: Path, options: SplitOptions, tmp_path: Path) -> None:
    quick = Options(sync=False)
    split = plan_split(open_model(path), str(tmp_path / "shards" / "m"), options)
    execute(split, quick)
    execute(plan_merge([open_model(tmp_path / "shards")], tmp_path / "out.gguf"), quick)
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()
    limit = options.output.max_size
    assert limit is None or all(len(o.copies) <= 1 for o in split.outputs if o.size > limit)


@pytest.mark.parametrize("name", SETS)
def test_sets_of_the_engines_merge_to_the_model_they_came_from(name: str, tmp_path: Path) -> None:
    original = open_model(FIXTURES / "engines" / SETS[name])
    shards = open_model(FIXTURES / "engines" / "sets" / name)
    assert shards.is_complete
    execute(plan_merge([shards], tmp_path / "out.gguf"))
    merged = open_model(tmp_path / "out.gguf")
    # llama-gguf-split leaves the metadata as it was and the tensors in its own order.
    assert {kv.key: kv for kv in merged.kvs} == {kv.key: kv for kv in original.kvs}
    assert list(merged.tensors) == list(shards.tensors)
    assert sorted(merged.tensors) == sorted(original.tensors)
    for tensor_name, tensor in original.tensors.items():
        other = merged.tensors[tensor_name]
        assert (other.info.type, other.info.dims) == (tensor.info.type, tensor.info.dims)
        assert other.extent.read() == tensor.extent.read()
