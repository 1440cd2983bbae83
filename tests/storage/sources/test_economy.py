"""What remote files cost, counted by a real nginx: requests and bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.mix_models import quant
from tests.support.nginx import Logged, Nginx

MIB = 1 << 20
Serve = Callable[[Path], Nginx]


def ranged(log: list[Logged]) -> list[Logged]:
    """The requests that got data; fails where one came without a range, or went to nowhere."""
    assert {line.method for line in log} == {"GET"}
    assert all(line.range.startswith("bytes=") and line.status == 206 for line in log), log
    assert all(line.accept_encoding in {"identity", ""} for line in log)
    return log


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A model with 262,144 tokens, scores and token types, as large as those of today; and the length of its head."""
    count = 262_144
    tokens = [f"token{index:x}" for index in range(count)]
    merges = [f"{left} {right}" for left, right in zip(tokens[::2], tokens[1::2], strict=True)]
    kvs = (
        b.KV("general.architecture", b.STR, "gemma3"),
        b.KV("tokenizer.ggml.tokens", b.ARR, b.Array(b.STR, tokens)),
        b.KV("tokenizer.ggml.scores", b.ARR, b.Array(b.F32, [-1.0 * index for index in range(count)])),
        b.KV("tokenizer.ggml.token_type", b.ARR, b.Array(b.I32, [1] * count)),
        b.KV("tokenizer.ggml.merges", b.ARR, b.Array(b.STR, merges)),
        b.KV("gemma3.block_count", b.U32, 4),
    )
    last = b.Tensor("output.weight", (256, 262_144), b.TYPES["F32"][0])  # 256 MiB that nobody may fetch
    tensors = (*b.llama_tensors(layers=4), last)
    path = tmp_path_factory.mktemp("vocabulary") / "model.gguf"
    with path.open("wb") as file:
        file.write(b.gguf(kvs, tensors))
        file.truncate(file.tell() + 256 * MIB)
    return path, len(b.head(kvs, tensors))


@pytest.mark.parametrize("command", ["dump", "report", "check"])
def test_a_head_costs_four_requests_at_most(nginx: Serve, vocabulary: tuple[Path, int], command: str) -> None:
    path, head = vocabulary
    assert head > 8 * MIB
    server = nginx(path.parent)
    done = run_gguftool(command, server.url(path.name))
    assert done.returncode in ({0, 1} if command == "check" else {0}), done.stderr
    log = ranged(server.log())
    print(f"{command}: head of {head:,} bytes: {len(log)} requests, {server.sent:,} bytes")
    assert len(log) <= 4, [(line.range, line.body) for line in log]
    assert server.sent <= 1.5 * head + MIB


def test_a_head_of_many_keys_is_not_fetched_key_by_key(nginx: Serve, tmp_path: Path) -> None:
    """Nothing tells how long keys to come are: reads grow all the same."""
    kvs = [b.KV(f"key.number.{number}", b.STR, "v" * 100) for number in range(40_000)]
    (tmp_path / "keys.gguf").write_bytes(b.gguf([b.KV("general.architecture", b.STR, "x"), *kvs], b.llama_tensors()))
    server = nginx(tmp_path)
    assert run_gguftool("dump", "--no-kv", server.url("keys.gguf")).returncode == 0
    assert len(ranged(server.log())) <= 8


def test_a_small_head_costs_one_request(nginx: Serve, tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b.small_model() + bytes(4 * MIB))
    server = nginx(tmp_path)
    assert run_gguftool("dump", server.url("small.gguf")).returncode == 0
    assert [line.body for line in ranged(server.log())] == [MIB]


@pytest.mark.parametrize(("name", "most"), [("blk.{}.w", 8 << 10), ("blk.{}." + "w" * 20_000, 64 << 10)])
def test_heads_of_later_shards_are_asked_for_by_what_the_first_of_them_needed(
    nginx: Serve, tmp_path: Path, name: str, most: int
) -> None:
    shards = [(b.tensor(name.format(number), "F32", (32_768,)),) for number in range(30)]
    for path, data in b.shard_set("set", shards).items():
        (tmp_path / path).write_bytes(data)
    server = nginx(tmp_path)
    done = run_gguftool("dump", server.url(b.shard_name("set", 1, 30)))
    assert done.returncode == 0, done.stderr
    later = [line for line in ranged(server.log()) if "00001-of" not in line.path]
    assert len({line.path for line in later}) == len(later) == 29, [line.path for line in later]
    assert sorted(line.body for line in later)[-2] <= most


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A sparse model of 250 MB, a local one of the same shapes, and the bytes of one tensor of the first."""
    folder = tmp_path_factory.mktemp("large")
    shapes = {"token_embd.weight": (256, 600), "output.weight": (256, 600)}
    local = Path(quant(folder / "local.gguf", "Q4_K", shapes=shapes))
    tensors = (
        b.tensor("token_embd.weight", "Q8_0", (256, 600), 0),
        b.tensor("output.weight", "Q8_0", (256, 600), 250_000_000 // 32 * 32),
    )
    kvs = (*b.llama_kvs(), b.KV("general.file_type", b.U32, 7))
    start = b.head(kvs, tensors)
    remote = folder / "served" / "large.gguf"
    remote.parent.mkdir()
    with remote.open("wb") as file:
        file.write(start)
        for tensor in tensors:
            file.seek(b.round_up(len(start), 32) + (tensor.offset or 0))
            file.write(tensor.data)
    assert remote.stat().st_size > 250_000_000
    return remote, local, len(tensors[1].data)


def test_a_swap_moves_the_tensor_and_the_head(nginx: Serve, large: tuple[Path, Path, int], tmp_path: Path) -> None:
    remote, local, tensor = large
    server = nginx(remote.parent)
    out = tmp_path / "out.gguf"
    done = run_gguftool("swap", local, "--from", server.url(remote.name), "--tensor", "output.weight", "-o", out)
    assert done.returncode == 0, done.stderr
    assert b.filler("output.weight", tensor) in out.read_bytes()
    log = ranged(server.log())
    print(f"swap of {tensor:,} bytes: {len(log)} requests, {server.sent:,} bytes")
    assert server.sent == MIB + tensor
    assert len(log) == 2


def test_a_dry_run_moves_the_head_only(nginx: Serve, large: tuple[Path, Path, int], tmp_path: Path) -> None:
    remote, local, _ = large
    server = nginx(remote.parent)
    arguments = ("--tensor", "output.weight", "-o", tmp_path / "out.gguf", "--dry-run")
    assert run_gguftool("swap", local, "--from", server.url(remote.name), *arguments).returncode == 0
    assert server.sent == MIB


def test_a_server_without_etags_or_ranges(nginx: Serve, tmp_path: Path) -> None:
    """nginx itself, told to be so: the first is read by size and date, the second refused at once."""
    (tmp_path / "model.gguf").write_bytes(b.small_model() + bytes(4 * MIB))
    server = nginx(tmp_path)
    assert run_gguftool("dump", server.url("no-etag/model.gguf")).returncode == 0
    refused = run_gguftool("dump", server.url("no-ranges/model.gguf"))
    assert refused.returncode == 2
    assert b"no ranges" in refused.stderr
