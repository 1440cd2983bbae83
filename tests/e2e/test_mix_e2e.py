"""Mixes of real models in every form that they come in: each tensor is its source's, and real llama.cpp runs them."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import gguftool as api
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.ggml import TYPES
from tests.support.paths import FIXTURES

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Greedy = Callable[[Path], str]
Run = Callable[..., str]

ENGINES = FIXTURES / "engines"
# Models made of tiny-qwen3moe-Q4_K for these tests: the name, and the type of all matrices.
MADE = {"tiny-qwen3moe-Q8_0": "q8_0", "tiny-qwen3moe-BF16": "bf16"}
# Models that a mix takes from, and the recipe: matrices by rule, norms and routers as all inputs have them.
MIXES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "llama": (
        ("tiny-llama-Q8_0", "tiny-llama-Q4_K", "tiny-llama-BF16", "tiny-llama-Q6_K", "tiny-llama-IQ4_XS"),
        "token_embd=bf16\n^output\\.weight$=q6_K\nattn_[qk]=q8_0\nattn=iq4_xs\nffn_down=q6_K\n.*=q4_K\n",
    ),
    "llama-two": (("tiny-llama-IQ4_XS", "tiny-llama-BF16"), "blk\\.0\\.=bf16\n.*=iq4-xs=locked\n"),
    "moe": (
        ("tiny-qwen3moe-Q4_K", "tiny-qwen3moe-Q8_0", "tiny-qwen3moe-BF16"),
        "exps=q4_K\nattn_(q|output)=bf16\n.*=q8_0\n",
    ),
    "llama-ik": (
        ("tiny-llama-IQ4_KS", "tiny-llama-IQ5_K", "tiny-llama-Q8_0"),
        "attn=q8_0\nffn_(up|gate)=iq4_ks\n.*=iq5_k\n",
    ),
    "moe-ik": (("tiny-qwen3moe-IQ4_KS", "tiny-qwen3moe-Q8_0"), "exps=iq4_ks\n.*=q8_0\n"),
}


Models = Mapping[str, Path]


@pytest.fixture(scope="module")
def models(tool: Run, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Every small model by its name."""
    made, source = tmp_path_factory.mktemp("made"), ENGINES / "tiny-qwen3moe-Q4_K.gguf"
    for name, kind in MADE.items():
        options = ("--tensor", f".*={kind}", "--allow-requantize", "--no-sync")
        tool("quantize", source, *options, "-o", made / f"{name}.gguf")
    return {path.stem: path for folder in (ENGINES, made) for path in sorted(folder.glob("*.gguf"))}


def _forms(name: str, models: Models, tmp_path: Path, tool: Run) -> Iterator[list[Path]]:
    """The inputs of mix `name`: whole files, sets of one tensor a shard, and large shards in one folder."""
    wholes = [models[model] for model in MIXES[name][0]]
    yield wholes
    sets = []
    for path in wholes:
        tool("split", path, tmp_path / path.stem / path.stem, "--no-sync", "--map")
        sets.append(tmp_path / path.stem)
    yield sets
    for path in wholes:
        third = str(path.stat().st_size // 3)
        tool("split", path, tmp_path / "pool" / path.stem, "--max-size", third, "--tensor-first-split", "--no-sync")
    yield [tmp_path / "pool"]


def _check_tensors(mix: Path, sources: list[Path]) -> set[str]:
    """Assert that every tensor has the bytes of the source that has its type; return the engines that load all."""
    opened = [api.open_model(str(source)) for source in sources]
    engines = {"llama.cpp", "ik_llama.cpp"}
    found = api.open_model(mix)
    assert list(found.tensors) == list(opened[0].tensors)
    for name, tensor in found.tensors.items():
        donors = [model.tensors[name] for model in opened if model.tensors[name].info.type == tensor.info.type]
        assert tensor.extent.read() in [donor.extent.read() for donor in donors], name
        engines &= set(TYPES[tensor.info.type].engines)
    return engines


@pytest.mark.parametrize("name", MIXES)
def test_mixes_hold_what_their_sources_hold_and_run(
    name: str, models: Models, tmp_path: Path, tool: Run, greedy: Greedy
) -> None:
    sources, recipe = [models[model] for model in MIXES[name][0]], MIXES[name][1]
    (tmp_path / "mix.recipe").write_text(recipe)
    outputs = []
    for number, inputs in enumerate(_forms(name, models, tmp_path, tool)):
        output = tmp_path / f"mix-{number}.gguf"
        donor = ("--kv-from", sources[0])
        tool("merge", *inputs, "--recipe", tmp_path / "mix.recipe", "-o", output, *donor, "--no-sync")
        outputs.append(output)
    engines = _check_tensors(outputs[0], sources)
    types = {tensor.info.type for tensor in api.open_model(outputs[0]).tensors.values()}
    assert len(types) >= 3
    assert all(filecmp.cmp(outputs[0], other, shallow=False) for other in outputs[1:])
    assert (LLAMA_CPP in engines) is not name.endswith("-ik")
    if LLAMA_CPP in engines:
        assert greedy(outputs[0])


@pytest.mark.parametrize("name", [name for name in MIXES if not name.endswith("-ik")])
def test_a_mix_in_large_shards_says_what_the_mix_in_one_file_says(
    name: str, models: Models, tmp_path: Path, tool: Run, greedy: Greedy
) -> None:
    names, recipe = MIXES[name]
    (tmp_path / "mix.recipe").write_text(recipe)
    arguments = (*(models[model] for model in names), "--recipe", tmp_path / "mix.recipe", "--no-sync")
    tool("merge", *arguments, "-o", tmp_path / "one.gguf")
    tool("merge", *arguments, "-o", tmp_path / "set" / "mix", "--max-size", "400K")
    shards = sorted((tmp_path / "set").iterdir())
    assert len(shards) > 2
    assert greedy(shards[0]) == greedy(tmp_path / "one.gguf")


def test_sets_of_the_engines_own_gguf_split_mix(tmp_path: Path, tool: Run, greedy: Greedy) -> None:
    """Shard 2 of the one engine's set need not hold the tensor that shard 2 of the other's holds."""
    sets = [ENGINES / "sets" / "mainline-Q4_K", ENGINES / "sets" / "ik-IQ4_KS"]
    (tmp_path / "ik.recipe").write_text("attn=iq4_ks\n.*=q4_K\n")
    tool("merge", *sets, "--recipe", tmp_path / "ik.recipe", "-o", tmp_path / "ik.gguf", "--no-sync")
    assert _check_tensors(tmp_path / "ik.gguf", sets) == {"ik_llama.cpp"}

    (tmp_path / "ml.recipe").write_text("attn=q8_0\n.*=q4_K\n")
    sources = [sets[0], ENGINES / "tiny-llama-Q8_0.gguf"]
    tool("merge", *sources, "--recipe", tmp_path / "ml.recipe", "-o", tmp_path / "ml.gguf", "--no-sync")
    assert LLAMA_CPP in _check_tensors(tmp_path / "ml.gguf", sources)
    assert greedy(tmp_path / "ml.gguf")


def test_an_engines_set_merges_into_the_model_that_it_was_split_from(tmp_path: Path, tool: Run) -> None:
    for folder, whole in (("mainline-Q4_K", "tiny-llama-Q4_K"), ("ik-IQ4_KS", "tiny-llama-IQ4_KS")):
        tool("merge", ENGINES / "sets" / folder, "-o", tmp_path / "out.gguf", "--no-sync", "--force")
        merged, original = api.open_model(tmp_path / "out.gguf"), api.open_model(ENGINES / f"{whole}.gguf")
        assert {name: tensor.extent.read() for name, tensor in merged.tensors.items()} == {
            name: tensor.extent.read() for name, tensor in original.tensors.items()
        }


def test_a_swapped_tensor_is_run(tmp_path: Path, tool: Run, greedy: Greedy) -> None:
    source, donor, output = ENGINES / "tiny-llama-Q4_K.gguf", ENGINES / "tiny-llama-Q8_0.gguf", tmp_path / "out.gguf"
    tool("export", donor, "--tensor", "ffn_down", "--dtype", "f16", "-o", tmp_path / "x.safetensors", "--no-sync")
    tool("swap", source, "--from", tmp_path / "x.safetensors", "--tensor", "ffn_down", "-o", output, "--no-sync")
    types = {name: TYPES[tensor.info.type].name for name, tensor in api.open_model(output).tensors.items()}
    assert {kind for name, kind in types.items() if "ffn_down" in name} == {"F16"}
    assert greedy(output)


@pytest.mark.parametrize("name", sorted([*(path.stem for path in ENGINES.glob("*.gguf")), *MADE]))
def test_an_extracted_recipe_applied_to_the_pool_of_all_gives_the_model_back(
    name: str, models: Models, tmp_path: Path, tool: Run
) -> None:
    from gguftool.analysis.recipe_compact import extract
    from gguftool.format.recipe import render_recipe

    model, recipe, output = models[name], tmp_path / "mix.recipe", tmp_path / "out.gguf"
    recipe.write_text(render_recipe(extract(api.open_model(model))))
    others = [path for path in models.values() if path != model]
    for pool in ([*others, model], [model, *others]):
        tool("merge", *pool, "--recipe", recipe, "--kv-from", model, "-o", output, "--no-sync", "--force")
        assert filecmp.cmp(model, output, shallow=False)


def test_there_are_models_to_extract_from(models: Models) -> None:
    assert len(models) >= 11
