"""Presets give what the llama-quantize of ik_llama.cpp gave when its answers were recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from gguftool.errors import Notes, PlanError
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.format.engine_facts.presets.names import find_preset, presets_of
from gguftool.format.ggml import find_type, type_alias
from gguftool.format.recipe import Recipe, make_rule
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.model.preset import PresetMix
from gguftool.surgery.quantize.target_types import EngineRules, target_types
from tests.support import builders as b
from tests.support import preset_heads
from tests.support.command import run_gguftool
from tests.support.paths import FIXTURES

RECORDED: Final[dict[str, Any]] = json.loads((FIXTURES / "engines" / "ik-presets.json").read_text(encoding="utf-8"))
NO_RULES = Recipe(rules=())
_WORD = re.compile(r"([a-z_]+)(?:\[([0-9,-]+)\])?=(\w+)")
_STOPS = "stops"


def answers(model: str, *, imatrix: bool) -> dict[str, str]:
    """The recorded answer for each preset; one with an imatrix is recorded only where it differs."""
    kinds = ("without_imatrix", "with_imatrix") if imatrix else ("without_imatrix",)
    return {
        preset: answer for kind in kinds for answer, names in RECORDED[kind][model].items() for preset in names.split()
    }


def expand(answer: str, preset: str, model: Model) -> dict[str, str]:
    """The types that a recorded `answer` gives the tensors of `model`."""
    main = find_type(find_preset(preset, IK_LLAMA_CPP).tensor_type)
    assert main is not None
    own = main.alias.lower()
    rules = {(part, layers): own if kind == "own" else kind for part, layers, kind in _WORD.findall(answer)}
    types = {}
    for name, tensor in model.tensors.items():
        found = re.fullmatch(r"(?:blk\.([0-9]+)\.)?(.+)\.weight", name)
        assert found
        layer, part = found.groups()
        types[name] = rules.get((part, ""), own)
        for (ruled, layers), kind in rules.items():
            if ruled == part and layers and int(layer) in numbers(layers):
                types[name] = kind
        if part.endswith("norm") or part == "ffn_gate_inp":
            types[name] = type_alias(tensor.info.type).lower()
    return types


def numbers(text: str) -> set[int]:
    """The numbers of ``0-3,7``."""
    ends = [[int(end) for end in each.split("-")] for each in text.split(",")]
    return {number for each in ends for number in range(each[0], each[-1] + 1)}


def chosen(model: Model, preset: str, rules: Recipe = NO_RULES, *, imatrix: bool = False) -> dict[str, str] | str:
    notes = Notes()
    mix = PresetMix(preset=find_preset(preset, IK_LLAMA_CPP), imatrix=imatrix)
    types = target_types(model, rules, EngineRules(engine=IK_LLAMA_CPP, mix=mix), notes)
    if notes.problems:
        assert all("ik_llama.cpp stops" in each for each in notes.problems)
        return _STOPS
    return {name: type_alias(kind).lower() for name, kind in types.items()}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("heads")
    models = {}
    for name, data in preset_heads.ik_heads().items():
        (folder / f"{name}.gguf").write_bytes(data)
        models[name] = open_model(folder / f"{name}.gguf")
    return models


@pytest.mark.parametrize("name", list(RECORDED["without_imatrix"]))
def test_types_of_every_preset(heads: dict[str, Model], name: str) -> None:
    recorded = answers(name, imatrix=False)
    assert recorded.keys() == presets_of(IK_LLAMA_CPP).keys()
    assert {each: chosen(heads[name], each) for each in recorded} == {
        each: answer if answer == _STOPS else expand(answer, each, heads[name]) for each, answer in recorded.items()
    }


@pytest.mark.parametrize("name", list(RECORDED["with_imatrix"]))
def test_types_of_every_preset_with_an_imatrix(heads: dict[str, Model], name: str) -> None:
    recorded = answers(name, imatrix=True)
    assert {each: chosen(heads[name], each, imatrix=True) for each in recorded} == {
        each: answer if answer == _STOPS else expand(answer, each, heads[name]) for each, answer in recorded.items()
    }


def test_rules_win_and_are_counted(heads: dict[str, Model]) -> None:
    """As under --custom-q: the third attn_v is the third, whatever a rule made of the first two."""
    rules = Recipe(rules=(make_rule(r"blk\.[01]\.attn_v", "iq6_k"), make_rule("^output", "iq5_k")))
    types = chosen(heads["llama-2-rows"], "Q3_K_M", rules)
    assert isinstance(types, dict)
    assert types["output.weight"] == "iq5_k"
    v = [types[f"blk.{layer}.attn_v.weight"] for layer in range(12)]
    assert v == ["iq6_k"] * 2 + ["q4_k"] * 10


def test_a_preset_of_ik_llama_cpp_is_written_with_its_file_type(tmp_path: Path) -> None:
    source, made = tmp_path / "source.gguf", tmp_path / "made.gguf"
    source.write_bytes(preset_heads.model("llama", 8, heads=8, shared=2, parts=preset_heads.DENSE))
    done = run_gguftool("quantize", source, "Q5_K_S", "--engine", "ik_llama.cpp", "--no-sync", "-o", made)
    assert done.returncode == 0, done.stderr
    model = open_model(made)
    assert {kv.key: kv.value() for kv in model.kvs}["general.file_type"] == 16
    assert type_alias(model.tensors["blk.3.attn_v.weight"].info.type) == "q5_K"
    done = run_gguftool("quantize", source, "Q4_K_M", "--engine", "ik_llama.cpp", "--no-sync", "-o", made, "--force")
    assert done.returncode == 0, done.stderr
    assert type_alias(open_model(made).tensors["blk.2.attn_v.weight"].info.type) == "q5_K"  # llama.cpp: q4_K


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (preset_heads.model("rwkv7", 2, parts=preset_heads.DENSE), "does not know the architecture 'rwkv7'"),
        (preset_heads.model("llama", 3, parts=("attn_v", "attn_qkv")), "6 tensors are attn_v or attn_qkv"),
        (b.gguf([b.KV("general.architecture", b.STR, "llama")], []), "no llama.block_count"),
        (
            preset_heads.model("llama", 2, parts=("attn_v",), more=[b.KV("llama.rope.dimension_count", b.U32, 8)]),
            "llama.rope.dimension_count is 8, but ik_llama.cpp expects the 32 of a head",
        ),
        (
            preset_heads.model("llama", 2, experts=4, parts=("ffn_up",)).replace(b"blk.1.ffn_up", b"dec.1.ffn_up"),
            "no layer below 2 in the name",
        ),
    ],
)
def test_where_llama_quantize_stops_or_guesses_it_is_refused(tmp_path: Path, data: bytes, wanted: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(PlanError) as caught:
        chosen(open_model(tmp_path / "m.gguf"), "Q4_K_M")
    assert wanted in str(caught.value)


@pytest.mark.parametrize(("name", "verb"), [("Q4_0_4_4", "makes"), ("Q1_0_G128", "makes"), ("MXFP4_MOE", "has")])
def test_what_ik_llama_cpp_cannot_make_is_no_preset(name: str, verb: str) -> None:
    with pytest.raises(ValueError, match=f"ik_llama.cpp {verb} no preset '{name}'; did you mean"):
        find_preset(name, IK_LLAMA_CPP)
