"""A name with {QTYPE} stands for a repository a type: only the shards that the recipe takes are opened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gguftool.cooking.making.gather import gather, is_template, open_cook_inputs
from gguftool.errors import GGUFToolError, PlanError
from gguftool.format.recipe import parse_recipe
from tests.support.mix_models import NORMS, SHAPES, quant
from tests.support.suite import TEMPLATE, make_suite

RECIPE = parse_recipe("norm=f32\nattn_q=q4_K\nffn=bf16\n.*=q8_0")


def _folder(template: str, kind: str) -> Path:
    return Path(template.replace("{QTYPE}", kind))


def test_each_tensor_is_opened_once_and_in_its_type(tmp_path: Path) -> None:
    gathered = gather(make_suite(tmp_path), RECIPE)
    found = {name: tensor for one in gathered.inputs for name, tensor in one.model.tensors.items()}
    assert sum(len(one.model.tensors) for one in gathered.inputs) == len(SHAPES)
    kinds = {name: tensor.type_name for name, tensor in found.items()}
    assert kinds == {
        name: "F32" if name in NORMS else "Q4_K" if "attn_q." in name else "BF16" if "ffn" in name else "Q8_0"
        for name in SHAPES
    }
    assert {entry.tensor for entry in gathered.entries.values()} == set(SHAPES)


def test_the_small_letters_of_a_template_are_small(tmp_path: Path) -> None:
    make_suite(tmp_path, ("Q8_0",))
    (tmp_path / TEMPLATE.replace("{QTYPE}", "Q8_0")).rename(tmp_path / "quants-q8_0")
    assert is_template(str(tmp_path / "quants-{qtype}"))
    (one,) = gather(str(tmp_path / "quants-{qtype}"), parse_recipe(".*=q8_0")).inputs
    assert one.given == ("q8_0",)


def test_what_no_rule_matches_comes_along_if_all_have_it_in_one_type(tmp_path: Path) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    gathered = gather(template, parse_recipe("attn=q4_K\n(ffn|embd|^output\\.weight)=q8_0"))
    assert sum(len(one.model.tensors) for one in gathered.inputs) == len(SHAPES)
    with pytest.raises(PlanError, match="no rule matches it, and the maps have it in several types") as caught:
        gather(template, parse_recipe("attn=q4_K\nffn=q8_0"))
    assert "token_embd.weight" in str(caught.value)


def test_a_folder_without_a_map_counts_with_all_that_it_has(tmp_path: Path) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    shutil.rmtree(_folder(template, "Q8_0"))
    quant(_folder(template, "Q8_0") / "whole.gguf", "Q8_0")
    gathered = gather(template, RECIPE)
    assert [len(one.model.tensors) for one in gathered.inputs] == [3, len(SHAPES)]  # two norms and attn_q


def test_no_repository_at_all_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no type of the recipe has a repository: f32: .*q4_K: "):
        gather(str(tmp_path / TEMPLATE), RECIPE)


def test_a_type_without_a_repository_is_left_to_other_inputs(tmp_path: Path) -> None:
    template = make_suite(tmp_path, ("Q4_K", "Q8_0"))
    other = quant(tmp_path / "other.gguf", "BF16")
    inputs, (gathered,) = open_cook_inputs([template, other], RECIPE)
    assert len(inputs) == len(gathered.inputs) + 1
    assert "blk.0.ffn_down.weight" not in {name for one in gathered.inputs for name in one.model.tensors}


def test_maps_of_two_models_are_refused(tmp_path: Path) -> None:
    template = make_suite(tmp_path)
    path = _folder(template, "Q8_0") / "tensors.map"
    path.write_text(path.read_text().replace("blk.0.ffn_down", "blk.1.ffn_down"))
    with pytest.raises(PlanError, match=r"belong to different models: only one of them lists blk\.0\.ffn_down"):
        gather(template, RECIPE)


@pytest.mark.parametrize(
    "name", ["../../secret-00002-of-00008.gguf", "/etc/passwd", "a\\b-00002-of-00008.gguf", "x.gguf"]
)
def test_a_map_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    template = make_suite(tmp_path, ("Q8_0",))
    path = _folder(template, "Q8_0") / "tensors.map"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([name + lines[0][lines[0].index(":") :], *lines[1:]]))
    with pytest.raises(GGUFToolError, match="is not the name of a shard"):
        gather(template, parse_recipe(".*=q8_0"))
