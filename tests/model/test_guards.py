"""What loads and computes something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.model.guards import is_tied, semantic_guards
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from tests.support import builders as b


def head(architecture: str = "deepseek2", layers: int = 3, mtp: int | None = None) -> tuple[KV, ...]:
    kvs = [
        make_kv("general.architecture", ValueType.STRING, architecture),
        make_kv(f"{architecture}.block_count", ValueType.UINT32, layers),
    ]
    if mtp is not None:
        kvs.append(make_kv(f"{architecture}.nextn_predict_layers", ValueType.UINT32, mtp))
    return tuple(kvs)


def model_of(path: Path, *tensors: b.Tensor) -> Model:
    path.write_bytes(b.gguf([b.KV("general.architecture", b.STR, "llama")], tensors))
    return open_model(path)


def tied(path: Path, change_at: int | None = None, rows: int = 9000) -> Model:
    """A model with an output as large as its embedding; one byte of it differs."""
    embedding = b.tensor("token_embd.weight", "F32", (32, rows))
    data = bytearray(embedding.data)
    if change_at is not None:
        data[change_at] ^= 1
    output = b.Tensor(name="output.weight", dims=embedding.dims, type=embedding.type, data=bytes(data))
    return model_of(path, embedding, output)


@pytest.mark.parametrize(("change_at", "same"), [(None, True), (0, False), (-1, False), (1 << 20, False)])
def test_an_output_is_tied_if_every_byte_is_that_of_the_embedding(
    tmp_path: Path, change_at: int | None, same: bool
) -> None:
    assert is_tied(tied(tmp_path / "m.gguf", change_at)) is same


def test_an_output_of_another_type_or_none_is_not_tied(tmp_path: Path) -> None:
    embedding = b.tensor("token_embd.weight", "F32", (32, 4))
    assert not is_tied(model_of(tmp_path / "a.gguf", embedding))
    assert not is_tied(model_of(tmp_path / "b.gguf", embedding, b.tensor("output.weight", "F16", (32, 4))))


def test_an_output_that_differs_must_not_be_dropped(tmp_path: Path) -> None:
    model = tied(tmp_path / "m.gguf", 5, rows=4)
    without = ["token_embd.weight"]
    found = semantic_guards(model, head("llama", 1), without, [LLAMA_CPP]).refusals
    assert "engines would use token_embd.weight instead" in found[0]
    found = semantic_guards(model, head("qwen2moe", 1), without, [LLAMA_CPP]).refusals
    assert "llama.cpp would not load the file" in found[0]
    assert semantic_guards(model, head("llama", 1), list(model.tensors), [LLAMA_CPP]).refusals == ()
    assert semantic_guards(tied(tmp_path / "t.gguf", rows=4), head("llama", 1), without, [LLAMA_CPP]).refusals == ()


TRUNK = ["token_embd.weight", "blk.0.attn_norm.weight", "blk.1.attn_norm.weight"]
MTP = ["blk.2.attn_norm.weight", "blk.2.nextn.eh_proj.weight"]


@pytest.mark.parametrize(
    ("kvs", "names", "said"),
    [
        (head(mtp=1), TRUNK + MTP, ""),
        (head(layers=2, mtp=0), TRUNK, ""),
        (head(layers=2), TRUNK, ""),
        (head(layers=2, mtp=1), TRUNK, "blk.1 would be skipped as one"),
        (head(layers=2, mtp=0), TRUNK + MTP, "blk.2.nextn.* are tensors of an MTP layer"),
        (head(mtp=1), ["token_embd.weight", *MTP], ""),
        (head(mtp=1), ["token_embd.weight"], ""),
    ],
)
def test_mtp_layers_are_there_if_and_only_if_they_are_counted(
    tmp_path: Path, kvs: tuple[KV, ...], names: list[str], said: str
) -> None:
    model = model_of(tmp_path / "m.gguf", b.tensor("token_embd.weight", "F32", (32, 4)))
    found = semantic_guards(model, kvs, names, [LLAMA_CPP]).refusals
    assert bool(found) is bool(said)
    assert said in "".join(found)
