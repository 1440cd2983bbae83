"""Presets, rules and importance matrices give what the real llama-quantize of llama.cpp gives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gguftool.errors import Notes
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.engine_facts.presets.names import find_preset
from gguftool.format.ftypes import all_ftypes
from gguftool.format.ggml import type_alias
from gguftool.format.recipe import Recipe, make_rule
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.model.preset import PresetMix
from gguftool.surgery.quantize.target_types import EngineRules, target_types
from tests.support import builders as b
from tests.support import preset_heads
from tests.support.command import run_gguftool
from tests.support.engine_tools import tool
from tests.support.paths import FIXTURES
from tests.support.scaled_models import GATE, UP, floats, nvfp4, with_scales

ENGINES = FIXTURES / "engines"
PRESETS = [each.name for each in all_ftypes(LLAMA_CPP) if each.tensor_type]
NO_RULES = Recipe(rules=())


def chosen_types(model: Model, preset: str, rules: Recipe = NO_RULES, **options: bool) -> dict[str, str]:
    notes = Notes()
    mix = PresetMix(preset=find_preset(preset, LLAMA_CPP), **{"imatrix": False, **options})
    types = target_types(model, rules, EngineRules(engine=LLAMA_CPP, mix=mix), notes)
    assert not notes.problems
    return {name: type_alias(kind).lower() for name, kind in types.items()}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for name, data in preset_heads.heads().items():
        (folder / f"{name}.gguf").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def moe_f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts in F16, from one that is quantized."""
    path = tmp_path_factory.mktemp("moe") / "moe-F16.gguf"
    source = ENGINES / "tiny-qwen3moe-Q4_K.gguf"
    done = run_gguftool("quantize", source, "F16", "--allow-requantize", "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def test_the_tool_offers_these_presets() -> None:
    usage = subprocess.run([tool("llama-quantize"), "--help"], capture_output=True, check=False).stdout.decode()
    offered = {line.split()[2]: line.split()[0] for line in usage.splitlines() if line.split()[1:2] == ["or"]}
    aliases = {"Q3_K", "Q4_K", "Q5_K"}
    assert offered.keys() - aliases == set(PRESETS)
    for name, number in offered.items():
        assert str(find_preset(name, LLAMA_CPP).id) == number
        assert find_preset(number, LLAMA_CPP).id == int(number)


@pytest.mark.parametrize("name", list(preset_heads.heads()))
def test_types_of_every_preset(heads: Path, name: str) -> None:
    path = heads / f"{name}.gguf"
    model = open_model(path)
    # llama-quantize stops at rows that Q1_0 does not divide.
    presets = [each for each in PRESETS if each != "Q1_0" or not name.startswith("rows")]
    assert {each: chosen_types(model, each) for each in presets} == {
        each: preset_heads.real_types(path, each) for each in presets
    }


@pytest.mark.parametrize("name", ["llama", "falcon", "qwen2moe"])
def test_types_of_every_preset_with_an_imatrix(heads: Path, tmp_path: Path, name: str) -> None:
    path, weights = heads / f"{name}.gguf", tmp_path / "some.dat"
    weights.write_bytes(preset_heads.legacy_imatrix({"blk.0.ffn_down.weight": [1.0] * 256}))
    model = open_model(path)
    assert {each: chosen_types(model, each, imatrix=True) for each in PRESETS} == {
        each: preset_heads.real_types(path, each, "--imatrix", weights) for each in PRESETS
    }


@pytest.mark.parametrize("name", ["llama-gqa", "mixtral"])
def test_rules_win_over_the_preset_and_are_not_counted(heads: Path, name: str) -> None:
    path = heads / f"{name}.gguf"
    model = open_model(path)
    rules = Recipe(rules=(make_rule("blk.[0-3].attn_v", "q8_0"), make_rule("^output", "q4_0")))
    words = ("--tensor-type", "blk.[0-3].attn_v=q8_0", "--tensor-type", "^output=q4_0")
    for preset in ("Q4_K_M", "Q3_K_M", "Q2_K_S", "IQ2_M"):
        assert chosen_types(model, preset, rules) == preset_heads.real_types(path, preset, *words)


@pytest.mark.parametrize("name", ["llama", "rows-of-96"])
def test_a_pure_preset_has_one_type(heads: Path, name: str) -> None:
    path = heads / f"{name}.gguf"
    for preset in ("Q4_K_M", "Q6_K", "MXFP4_MOE"):
        assert chosen_types(open_model(path), preset, pure=True) == preset_heads.real_types(path, preset, "--pure")


# --- bytes ---


def quantized(source: Path, folder: Path, preset: str, *options: object) -> tuple[Model, Model]:
    """What gguftool and llama-quantize make of `source`."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    done = run_gguftool("quantize", source, preset, *options, "--no-sync", "--force", "-o", ours)
    assert done.returncode == 0, done.stderr
    words = [str(tool("llama-quantize")), *map(str, options), str(source), str(theirs), preset, "2"]
    run = subprocess.run(words, capture_output=True, check=False)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-1000:]
    return open_model(ours), open_model(theirs)


def assert_same(ours: Model, theirs: Model) -> None:
    assert {kv.key: (kv.type, bytes(kv.raw)) for kv in ours.kvs} == {
        kv.key: (kv.type, bytes(kv.raw)) for kv in theirs.kvs
    }
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        other = theirs.tensors[name]
        assert (tensor.info.type, tensor.info.shape) == (other.info.type, other.info.shape), name
        assert tensor.extent.read() == other.extent.read(), name


@pytest.mark.parametrize("preset", ["Q4_K_M", "Q8_0", "Q3_K_L", "IQ4_XS", "Q5_1", "F16", "TQ2_0", "MXFP4_MOE"])
def test_bytes_and_metadata(tmp_path: Path, preset: str) -> None:
    assert_same(*quantized(ENGINES / "tiny-llama-BF16.gguf", tmp_path, preset))


@pytest.mark.parametrize("preset", ["Q4_K_M", "Q2_K", "MXFP4_MOE"])
def test_bytes_and_metadata_with_experts(tmp_path: Path, moe_f16: Path, preset: str) -> None:
    assert_same(*quantized(moe_f16, tmp_path, preset))


@pytest.fixture(scope="module")
def imatrices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One importance matrix in both formats, made by llama-imatrix."""
    folder = tmp_path_factory.mktemp("imatrix")
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    made = {}
    for form, name in (("gguf", "imatrix.gguf"), ("dat", "imatrix.dat")):
        words = ["-m", ENGINES / "tiny-llama-BF16.gguf", "-f", text, "-o", folder / name, "--output-format", form]
        words += ["-c", 32, "-b", 32, "--chunks", 4, "-t", 2, "-ngl", 0]
        run = subprocess.run([str(tool("llama-imatrix")), *map(str, words)], capture_output=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        made[form] = folder / name
    return made


@pytest.mark.parametrize("form", ["gguf", "dat"])
@pytest.mark.parametrize("preset", ["Q4_K_M", "IQ2_XS", "Q4_0"])
def test_bytes_and_metadata_with_an_imatrix(tmp_path: Path, imatrices: dict[str, Path], form: str, preset: str) -> None:
    source = ENGINES / "tiny-llama-BF16.gguf"
    assert_same(*quantized(source, tmp_path, preset, "--imatrix", imatrices[form]))


@pytest.mark.parametrize(("form", "name"), [("gguf", "c.dat"), ("dat", "c.gguf")])
def test_a_converted_imatrix_weighs_the_same(tmp_path: Path, imatrices: dict[str, Path], form: str, name: str) -> None:
    converted = tmp_path / name
    done = run_gguftool("imatrix", "convert", imatrices[form], "-o", converted)
    assert done.returncode == 0, done.stderr
    ours, theirs = quantized(ENGINES / "tiny-llama-BF16.gguf", tmp_path, "IQ3_S", "--imatrix", converted)
    assert_same(ours, theirs)


def test_low_presets_need_an_imatrix(tmp_path: Path) -> None:
    source = ENGINES / "tiny-llama-BF16.gguf"
    for preset in ("IQ2_XS", "Q2_K_S"):
        done = run_gguftool("quantize", source, preset, "-o", tmp_path / "o.gguf")
        assert done.returncode == 2
        assert b"needs an imatrix" in done.stderr
        words = [str(tool("llama-quantize")), str(source), str(tmp_path / "t.gguf"), preset]
        assert subprocess.run(words, capture_output=True, check=False).returncode != 0


def test_driven_by_gguftool_it_makes_the_same_bytes(tmp_path: Path) -> None:
    source = ENGINES / "tiny-llama-BF16.gguf"
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    done = run_gguftool("quantize", source, "Q4_K_M", "--llama-quantize", tool("llama-quantize"), "-o", ours)
    assert done.returncode == 0, done.stderr
    subprocess.run([tool("llama-quantize"), source, theirs, "Q4_K_M"], capture_output=True, check=True)
    assert_same(open_model(ours), open_model(theirs))


@pytest.mark.parametrize("form", ["tensor-type", "tensor-type-file"])
def test_a_converted_recipe_gives_the_types_that_were_predicted(heads: Path, tmp_path: Path, form: str) -> None:
    path, recipe = heads / "qwen2moe.gguf", tmp_path / "mix.recipe"
    recipe.write_text("blk\\.[0-7]\\..*_exps=q4_K\nattn=q6_K\n.*=q4_K\n")
    done = run_gguftool("recipe", "convert", recipe, "--to", form)
    assert done.returncode == 0, done.stderr
    if form == "tensor-type-file":
        (tmp_path / "types.txt").write_bytes(done.stdout)
        words: list[object] = ["--tensor-type-file", tmp_path / "types.txt"]
    else:
        words = [word.strip("'") for word in done.stdout.decode().split()]
    wanted = preset_heads.real_types(path, "Q8_0", *words)
    assert wanted["output.weight"] == "q4_k"  # an explicit rule is a rule
    shown = run_gguftool("quantize", path, "--recipe", recipe, "-o", tmp_path / "o.gguf", "--no-sync")
    assert shown.returncode == 0, shown.stderr
    made = open_model(tmp_path / "o.gguf")
    assert {name: type_alias(each.info.type).lower() for name, each in made.tensors.items()} == wanted
    checked = run_gguftool("recipe", "check", recipe, "--model", path, "--json")
    assert sum(each.nbytes for each in made.tensors.values()) == _predicted(checked.stdout)


def _predicted(report: bytes) -> int:
    import json

    return int(json.loads(report)["nbytes"])


def test_the_tool_gets_weights_with_their_scales_multiplied_in(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    weights = [*with_scales(nvfp4(GATE), 7.0), *with_scales(floats(UP), 4.0)]
    source.write_bytes(b.gguf(preset_heads.model_kvs("llama", layers=1), (floats("token_embd.weight"), *weights)))
    made = []
    for name, options in (("own", ()), ("tool", ("--llama-quantize", tool("llama-quantize")))):
        output = tmp_path / f"{name}.gguf"
        rules = ("--tensor", "ffn=q4_K", "--allow-requantize")
        done = run_gguftool("quantize", source, *rules, *options, "-o", output)
        assert done.returncode == 0, done.stderr
        made.append(output.read_bytes())
    assert made[0] == made[1]
    assert list(open_model(output).tensors) == ["token_embd.weight", GATE, UP]
