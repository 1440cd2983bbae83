"""An imatrix altered as its model, in both formats."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import gguftool
from gguftool.errors import PlanError
from gguftool.format.imatrix import Imatrix, ImatrixEntry, ImatrixKind, parse_imatrix
from gguftool.format.imatrix_write import serialize_gguf, serialize_legacy
from gguftool.surgery.alter.alteration import Alteration
from gguftool.surgery.alter.imatrix import plan_alter_imatrix
from tests.support.mix_models import write
from tests.support.shuffled_models import ShuffledModel

KINDS = list(ImatrixKind)
SUFFIX = {ImatrixKind.LEGACY: ".dat", ImatrixKind.GGUF: ".gguf"}


def model(folder: Path, name: str = "qwen3moe") -> Path:
    path = folder / "model.gguf"
    path.write_bytes(ShuffledModel(name, ("Q4_K", "Q8_0"), -1, "<").data())
    return path


def imatrix(path: Path, kind: ImatrixKind) -> Imatrix:
    """An entry for each matrix of the model at `path`, of different numbers in every row; read back from a file."""
    import numpy as np

    entries = {}
    for index, (name, tensor) in enumerate(gguftool.open_model(path).tensors.items()):
        if name.startswith("blk.") and len(tensor.info.dims) > 1:
            rows = tensor.info.dims[2] if len(tensor.info.dims) > 2 else 1
            sums = np.arange(1, rows * tensor.info.dims[0] + 1, dtype=np.float32).reshape(rows, -1) + index
            entries[name] = ImatrixEntry(name=name, sums=sums, counts=np.ones(rows, np.float32))
    made = Imatrix(entries=entries, datasets=("text",), chunk_count=1, chunk_size=512)
    data = serialize_gguf(made) if kind is ImatrixKind.GGUF else serialize_legacy(made)
    source = path.with_name(f"i{SUFFIX[kind]}")
    source.write_bytes(data)
    return parse_imatrix(data, "i")


def altered(path: Path, given: Imatrix, donors: dict[str, Imatrix] | None = None, **operations: Any) -> Imatrix:
    output = path.with_name(f"out{SUFFIX[given.kind]}")
    output.unlink(missing_ok=True)
    source = path.with_name(f"i{SUFFIX[given.kind]}")
    write(plan_alter_imatrix(source, given, Alteration(**operations), output, model=path, donors=donors))
    return parse_imatrix(output.read_bytes(), "out")


def same(one: ImatrixEntry, other: ImatrixEntry, rows: Iterable[int] | None = None, count: int = 1) -> bool:
    """Whether `other` has the weights of `one`, or of those of its `count` matrices that `rows` names."""
    import numpy as np

    weights = one.weights().reshape(count, -1)
    chosen = weights if rows is None else weights[list(rows)]
    return bool(np.array_equal(chosen.ravel(), other.weights().ravel()))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_renumbered_and_repeated(tmp_path: Path, kind: ImatrixKind) -> None:
    path = model(tmp_path)
    old = imatrix(path, kind)
    made = altered(path, old, layers="2,0,2")
    assert len(made.entries) == len(old.entries)
    for new, number in enumerate((2, 0, 2)):
        assert same(old.entries[f"blk.{number}.attn_q.weight"], made.entries[f"blk.{new}.attn_q.weight"])
    assert (made.datasets, made.kind) == (old.datasets, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_selected_by_layer(tmp_path: Path, kind: ImatrixKind) -> None:
    path = model(tmp_path)
    old = imatrix(path, kind)
    ids = {0: [7, 1], 1: [0, 3], 2: [2, 2]}
    made = altered(path, old, layers="1,0", experts=ids)
    for new, number in enumerate((1, 0)):
        name = "ffn_down_exps.weight"
        assert same(old.entries[f"blk.{number}.{name}"], made.entries[f"blk.{new}.{name}"], ids[number], 8)
        assert same(old.entries[f"blk.{number}.ffn_gate_inp.weight"], made.entries[f"blk.{new}.ffn_gate_inp.weight"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operations", [{"layers": "0-"}, {"experts": "0-"}])
def test_all_of_it_is_the_same_file(tmp_path: Path, kind: ImatrixKind, operations: dict[str, str]) -> None:
    path = model(tmp_path)
    altered(path, imatrix(path, kind), **operations)
    assert path.with_name(f"out{SUFFIX[kind]}").read_bytes() == path.with_name(f"i{SUFFIX[kind]}").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_of_fused_tensors_have_entries(tmp_path: Path, kind: ImatrixKind) -> None:
    path = model(tmp_path)
    old = imatrix(path, kind)
    made = altered(path, old, fuse=("qkv", "gate_up"))
    assert same(old.entries["blk.1.attn_q.weight"], made.entries["blk.1.attn_qkv.weight"])
    assert same(old.entries["blk.1.ffn_gate_exps.weight"], made.entries["blk.1.ffn_gate_up_exps.weight"])
    assert "blk.1.attn_k.weight" in made.entries
    path.with_name(f"i{SUFFIX[kind]}").write_bytes(path.with_name(f"out{SUFFIX[kind]}").read_bytes())
    fused = altered(path, made, drop=("attn_[qkv].weight",), unfuse=("qkv",))
    assert same(made.entries["blk.2.attn_qkv.weight"], fused.entries["blk.2.attn_v.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_experts_one_by_one_and_together_again(tmp_path: Path, kind: ImatrixKind) -> None:
    path = model(tmp_path)
    old = imatrix(path, kind)
    apart = altered(path, old, unfuse=("experts",))
    assert same(old.entries["blk.0.ffn_up_exps.weight"], apart.entries["blk.0.ffn_up.5.weight"], [5], 8)
    back = altered(path, apart, fuse=("experts",))
    assert all(same(entry, back.entries[name]) for name, entry in old.entries.items())


def test_an_expert_without_an_entry_has_no_data(tmp_path: Path) -> None:
    path = model(tmp_path)
    apart = altered(path, imatrix(path, ImatrixKind.GGUF), unfuse=("experts",), drop=("nothing-like-it",))
    entries = {name: entry for name, entry in apart.entries.items() if name != "blk.0.ffn_up.3.weight"}
    less = Imatrix(entries=entries, datasets=apart.datasets, chunk_count=1, chunk_size=512, kind=apart.kind)
    made = altered(path, less, fuse=("experts",)).entries["blk.0.ffn_up_exps.weight"]
    assert [index for index, count in enumerate(made.counts) if not count] == [3]


def test_layers_for_mtp_are_dropped_and_kept_at_the_end(tmp_path: Path) -> None:
    path = model(tmp_path, "qwen35")
    old = imatrix(path, ImatrixKind.GGUF)
    assert not any(name.startswith("blk.8.") for name in altered(path, old, drop=(":mtp",)).entries)
    made = altered(path, old, layers="0-3")
    assert same(old.entries["blk.8.nextn.eh_proj.weight"], made.entries["blk.4.nextn.eh_proj.weight"])


@pytest.mark.parametrize(("number", "width"), [(999_999, 8), (4095, 1 << 20)])
def test_a_few_experts_do_not_make_an_entry_of_any_size(tmp_path: Path, number: int, width: int) -> None:
    import numpy as np

    entries = {
        name: ImatrixEntry(name=name, sums=np.ones((1, size), np.float32), counts=np.ones(1, np.float32))
        for name, size in (
            (f"blk.0.ffn_up.{number}.weight", width),
            *((f"blk.0.ffn_up.{n}.weight", 1) for n in range(300)),
        )
    }
    given = Imatrix(entries=entries, datasets=("text",), chunk_count=1, chunk_size=512)
    (tmp_path / "i.gguf").write_bytes(b"")
    with pytest.raises(
        PlanError, match=f"only 1 of {number + 1:,} experts have an entry for 'blk.0.ffn_up_exps.weight'"
    ):
        plan_alter_imatrix(tmp_path / "i.gguf", given, Alteration(fuse=("experts",)), tmp_path / "o.gguf")


def test_layers_of_another_model_have_its_entries(tmp_path: Path) -> None:
    path = model(tmp_path)
    old = imatrix(path, ImatrixKind.GGUF)
    theirs = altered(path, old, layers="2,1,0")
    made = altered(path, old, {"b": theirs, "a": old}, layers="a:0,b:0,1", experts={0: range(8)})
    assert same(old.entries["blk.2.attn_k.weight"], made.entries["blk.1.attn_k.weight"])
    assert same(old.entries["blk.1.attn_k.weight"], made.entries["blk.2.attn_k.weight"])


def test_names_follow(tmp_path: Path) -> None:
    path = model(tmp_path)
    old = imatrix(path, ImatrixKind.GGUF)
    made = altered(path, old, rename=((r"attn_output", "attn_o"),))
    assert same(old.entries["blk.0.attn_output.weight"], made.entries["blk.0.attn_o.weight"])


def test_what_cannot_be(tmp_path: Path) -> None:
    path = model(tmp_path)
    legacy = imatrix(path, ImatrixKind.LEGACY)
    for operations, said in (
        ({"layers": "3"}, "--layers 3: there are 3"),
        ({"layers": "b:1"}, "no imatrix is labelled b"),
        ({"experts": "9"}, "--experts 9: there are 8"),
        ({"experts": {0: [0]}}, "no ids for layer 1"),
        ({"experts": {0: [9], 1: [0], 2: [0]}}, "has 8 experts; number 9 does not exist"),
        ({"keep": ("nothing",)}, "--keep leaves no entry"),
        ({"fuse": ("x",)}, "--fuse x"),
    ):
        with pytest.raises(PlanError, match=said):
            altered(path, legacy, **operations)
    with pytest.raises(PlanError, match="give --model MODEL"):
        plan_alter_imatrix(tmp_path / "i.dat", legacy, Alteration(experts="0-3"), tmp_path / "o.dat")
    with pytest.raises(PlanError, match="imatrix convert changes the format"):
        plan_alter_imatrix(tmp_path / "i.dat", legacy, Alteration(layers="0"), tmp_path / "o.gguf", model=path)


def test_without_a_model_layers_are_counted_by_the_entries(tmp_path: Path) -> None:
    path = model(tmp_path)
    given = imatrix(path, ImatrixKind.GGUF)
    plan = plan_alter_imatrix(tmp_path / "i.gguf", given, Alteration(layers="1-", experts="4-"), tmp_path / "o.gguf")
    write(plan)
    made = parse_imatrix((tmp_path / "o.gguf").read_bytes(), "o")
    assert same(given.entries["blk.2.ffn_up_exps.weight"], made.entries["blk.1.ffn_up_exps.weight"], range(4, 8), 8)
