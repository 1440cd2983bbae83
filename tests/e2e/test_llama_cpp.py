"""What is written loads in real llama.cpp, and says the same as the original."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path

import pytest

import gguftool as api
from tests.e2e.engine import EngineError

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Greedy = Callable[[Path], str]
Run = Callable[..., str]

SPLITS = {
    "default": (),
    "bundle-small": ("--bundle-small", "16K"),
    "max-size": ("--max-size", "{third}"),
    "max-tensors": ("--max-tensors", "9", "--tensor-first-split"),
}


@pytest.mark.parametrize("options", SPLITS.values(), ids=SPLITS.keys())
def test_shards_and_merged_file_say_the_same_as_the_original(
    model: Path, options: tuple[str, ...], tmp_path: Path, tool: Run, greedy: Greedy, original_text: Greedy
) -> None:
    prefix, merged = tmp_path / "set" / "shard", tmp_path / "merged.gguf"
    third = str(model.stat().st_size // 3)
    tool("split", model, prefix, *(option.format(third=third) for option in options), "--no-sync")
    shards = sorted(prefix.parent.iterdir())
    assert len(shards) > 2
    assert greedy(shards[0]) == original_text(model)

    tool("merge", shards[-1], "-o", merged, "--no-sync")
    assert filecmp.cmp(model, merged, shallow=False)
    assert greedy(merged) == original_text(model)


def test_a_set_lies_in_its_files_as_asked(model: Path, tmp_path: Path, tool: Run) -> None:
    n_tensors = len(api.open_model(model).tensors)
    tool("split", model, tmp_path / "one", "--no-sync")
    assert len(list(tmp_path.glob("one-*.gguf"))) == n_tensors + 1

    limit = model.stat().st_size // 3
    tool("split", model, tmp_path / "size", "--max-size", limit, "--no-sync")
    too_large = [path for path in tmp_path.glob("size-*.gguf") if path.stat().st_size > limit]
    assert all(len(api.open_model(path, this_file_only=True).tensors) <= 1 for path in too_large)
    assert len(list(tmp_path.glob("size-*.gguf"))) < n_tensors

    tool("split", model, tmp_path / "bundle", "--bundle-small", "16K", "--no-sync")
    first = min(tmp_path.glob("bundle-*.gguf"))
    bundled = api.open_model(first, this_file_only=True).tensors.values()
    assert bundled
    assert all(tensor.nbytes < 16_000 for tensor in bundled)


def test_the_loader_refuses_bad_files(model: Path, tmp_path: Path, tool: Run, greedy: Greedy) -> None:
    """Were the loader content with anything, the tests above would prove nothing."""
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(model.read_bytes()[: model.stat().st_size * 9 // 10])
    with pytest.raises(EngineError, match="RuntimeError"):
        greedy(truncated)

    tool("split", model, tmp_path / "shard", "--no-sync")
    shards = sorted(tmp_path.glob("shard-*.gguf"))
    shards[1].unlink()
    with pytest.raises(EngineError, match="RuntimeError"):
        greedy(shards[0])


def test_changed_data_changes_the_text(model: Path, tmp_path: Path, greedy: Greedy, original_text: Greedy) -> None:
    """Were the tokens the same whatever the tensors hold, comparing them would prove nothing."""
    opened = api.open_model(model)
    extent = opened.tensors["token_embd.weight"].extent
    data = bytearray(model.read_bytes())
    half = extent.length // 2 // 4096 * 4096
    swapped = data[extent.offset + half : extent.offset + 2 * half] + data[extent.offset : extent.offset + half]
    data[extent.offset : extent.offset + 2 * half] = swapped
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    assert greedy(other) != original_text(model)
