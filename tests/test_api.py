"""The public API: which names there are, that they load when used, and that type checkers see them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gguftool
import gguftool.analysis
import gguftool.errors
import gguftool.render
import gguftool.surgery
from gguftool.storage.sources.local import open_local
from tests.docs.test_pages import JSON_RUNS
from tests.support import builders as b
from tests.support.command import environment, run_gguftool
from tests.support.paths import FIXTURES, REPO

DEMO = FIXTURES / "demo.gguf"
IMATRIX = FIXTURES / "demo.imatrix.dat"
SET = FIXTURES / "shards-00001-of-00003.gguf"


# --- names -----------------------------------------------------------------------------------------------------------


def _imported_for_type_checkers() -> dict[str, tuple[str, str]]:
    """Public name -> module and name there, of the imports under ``if TYPE_CHECKING``."""
    tree = ast.parse(Path(gguftool.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in imports for alias in node.names}


def test_all_is_a_literal_that_lists_each_name_once() -> None:
    tree = ast.parse(Path(gguftool.__file__).read_text(encoding="utf-8"))
    (value,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert ast.literal_eval(value) == gguftool.__all__
    assert len(set(gguftool.__all__)) == len(gguftool.__all__)
    assert dir(gguftool) == sorted(gguftool.__all__)


def test_each_name_is_the_object_that_type_checkers_see() -> None:
    imported = _imported_for_type_checkers()
    assert {*imported, "__version__"} == set(gguftool.__all__)
    for public, (module, name) in imported.items():
        assert getattr(gguftool, public) is getattr(importlib.import_module(module), name), public


def test_no_name_hides_a_folder_or_module_of_the_package() -> None:
    assert {module.name for module in pkgutil.iter_modules(gguftool.__path__)} & set(gguftool.__all__) == set()


def test_importing_the_package_loads_nothing_else_and_names_load_what_they_need() -> None:
    program = """
import __future__, importlib, sys, typing
before = set(sys.modules)
import gguftool
print(*sorted(set(sys.modules) - before))
gguftool.PlanError
print(*sorted(set(sys.modules) & {"numpy", "gguf", "json", "gguftool.model.model", "gguftool.errors"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=environment()
    )
    assert done.stdout.splitlines() == ["gguftool", "gguftool.errors"]


def test_a_name_is_looked_up_once() -> None:
    assert gguftool.open_model is gguftool.open_model
    assert vars(gguftool)["open_model"] is gguftool.open_model


def test_a_misspelt_name_is_an_attribute_error_that_the_interpreter_can_explain() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import gguftool; gguftool.plan_spilt"],
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert "AttributeError: module 'gguftool' has no attribute 'plan_spilt'" in done.stderr
    assert "Did you mean: 'plan_split'?" in done.stderr


# --- nothing is forgotten --------------------------------------------------------------------------------------------


def _modules_of(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def _defined(*packages: ModuleType) -> dict[str, Any]:
    """``module.name`` -> every public function and class that the modules of `packages` define."""
    return {
        f"{module.__name__}.{name}": value
        for package in packages
        for module in _modules_of(package)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def _exported() -> list[Any]:
    return [getattr(gguftool, name) for name in gguftool.__all__]


def _missing(wanted: dict[str, Any]) -> list[str]:
    exported = _exported()
    return [name for name, value in wanted.items() if not any(value is other for other in exported)]


def test_every_plan_is_public() -> None:
    plans = {
        name: value for name, value in _defined(gguftool.surgery).items() if name.rpartition(".")[2].startswith("plan_")
    }
    assert len(plans) >= 13
    assert _missing(plans) == []


def test_every_options_class_is_public() -> None:
    defined = _defined(gguftool.surgery, gguftool.analysis)
    options = {name: value for name, value in defined.items() if name.endswith("Options")}
    assert len(options) >= 8
    assert _missing(options) == []


def test_every_report_and_each_function_that_makes_one_is_public() -> None:
    printed = {path.rpartition(".")[2] for path in JSON_RUNS.values()}
    defined = _defined(gguftool.surgery, gguftool.analysis, gguftool.render)
    reports = {name: value for name, value in defined.items() if name.rpartition(".")[2] in printed}
    makers = {
        name: value
        for name, value in defined.items()
        if inspect.isfunction(value) and set(re.findall(r"\w+", _annotation(value, "return"))) & printed
    }
    assert {"Dump", "HeaderDiff", "ImatrixReport", "RecipeReport"} <= {name.rpartition(".")[2] for name in reports}
    assert len(makers) >= 10
    assert _missing(reports | makers) == []


def test_every_error_is_public() -> None:
    errors = {name: value for name, value in vars(gguftool.errors).items() if _is_error(value)}
    assert len(errors) == 6
    assert _missing(errors) == []


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception) and value.__module__ == "gguftool.errors"


def test_everything_public_that_can_be_called_says_what_it_does() -> None:
    called = [value for value in _exported() if inspect.isfunction(value) or inspect.isclass(value)]
    assert [value for value in called if not (value.__doc__ or "").strip()] == []


# --- paths and models ------------------------------------------------------------------------------------------------


def _annotation(function: Any, name: str) -> str:
    return str(function.__annotations__.get(name, ""))


def _functions() -> dict[str, Any]:
    found = {name: getattr(gguftool, name) for name in gguftool.__all__}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


def test_functions_that_take_a_model_or_a_path_take_a_str_too() -> None:
    alone = re.compile(r"\b(Model|Path)\b")
    strict = [
        f"{name}({parameter}: {annotation})"
        for name, function in _functions().items()
        for parameter, annotation in function.__annotations__.items()
        if parameter != "return" and alone.search(str(annotation))
    ]
    assert strict == []


RECIPE = gguftool.parse_recipe("attn_v=q8_0\n")
Take = Callable[[Any, Path], Any]


# Public function -> how to call it with a model (a `Model`, a `str` or a `Path`) and a path of an output.
TAKES: dict[str, Take] = {
    "check_imatrix": lambda model, out: gguftool.check_imatrix(gguftool.open_imatrix(IMATRIX), model, "i"),
    "check_model": lambda model, out: gguftool.check_model(model),
    "check_recipe": lambda model, out: gguftool.check_recipe(RECIPE, model),
    "decide_quantize": lambda model, out: [
        (step.tensor, step.origin)
        for step in gguftool.decide_quantize(model, RECIPE, gguftool.QuantizeOptions(reuse=(model,))).steps
        if step.origin.value != "quantized"
    ],
    "describe_imatrix": lambda model, out: gguftool.describe_imatrix("i", gguftool.open_imatrix(IMATRIX), model=model),
    "diff": lambda model, out: gguftool.diff(model, model, gguftool.DiffOptions(layout=True)),
    "distribution": lambda model, out: gguftool.distribution(model),
    "dump": lambda model, out: gguftool.dump(model),
    "info": lambda model, out: gguftool.info(model),
    "explore_mix": lambda model, out: (
        gguftool.explore_mix(
            model, gguftool.MixOptions(target=gguftool.MixTarget(bits=6.0), types=("q4_0", "q8_0"))
        ).mix
    ),
    "extract_recipe": lambda model, out: gguftool.extract_recipe(model),
    "find_damage": lambda model, out: gguftool.find_damage(_source(model), model),
    "hash_files": lambda model, out: gguftool.hash_files(model),
    "hash_tensors": lambda model, out: gguftool.hash_tensors(model),
    "imatrix_coverage": lambda model, out: gguftool.imatrix_coverage(model, gguftool.open_imatrix(IMATRIX)),
    "metadata_rows": lambda model, out: gguftool.metadata_rows(model),
    "open_cook_inputs": lambda model, out: [one.model.name for one in gguftool.open_cook_inputs(model, RECIPE)[0]],
    "open_models": lambda model, out: gguftool.open_models(model)[0].tensors,
    "plan_alter": lambda model, out: gguftool.plan_alter(model, gguftool.Alteration(layers="1,0"), out),
    "plan_alter_imatrix": lambda model, out: gguftool.plan_alter_imatrix(
        IMATRIX, gguftool.open_imatrix(IMATRIX), gguftool.Alteration(layers="1,0"), f"{out}.dat", model=model
    ),
    "plan_cook": lambda model, out: (
        gguftool.plan_cook(RECIPE, model, out, quantize=gguftool.QuantizeOptions(requantize=True)).plan
    ),
    "plan_edit": lambda model, out: gguftool.plan_edit(model, gguftool.Edits(remove=("general.name",)), out),
    "plan_export": lambda model, out: gguftool.plan_export(model, "output.weight", out),
    "plan_fetch": gguftool.plan_fetch,
    "plan_fetch_files": gguftool.plan_fetch_files,
    "plan_merge": lambda model, out: gguftool.plan_merge(model, out, gguftool.MergeOptions(kv_from=model)),
    "plan_mix": lambda model, out: gguftool.plan_mix(
        model, gguftool.MixOptions(target=gguftool.MixTarget(bits=6.0), types=("q4_0", "q8_0"))
    ),
    "plan_quantize": lambda model, out: gguftool.plan_quantize(model, RECIPE, out),
    "plan_repair": lambda model, out: gguftool.plan_repair(
        _source(model), model, gguftool.find_damage(_source(model), model), out
    ),
    "plan_split": gguftool.plan_split,
    "plan_swap": lambda model, out: gguftool.plan_swap(model, model, ["output.weight"], out),
    "plan_tensors_map_of_split": lambda model, out: gguftool.plan_tensors_map_of_split(
        model, gguftool.plan_split(model, out), ["0" * 64] * 22
    ),
    "plan_views": lambda model, out: gguftool.plan_views((), (), out, like=model),
    "report": lambda model, out: (gguftool.report(model), gguftool.report([model])),
    "transfer_recipe": lambda model, out: gguftool.transfer_recipe(model, model),
    "verify_manifest": lambda model, out: gguftool.verify_manifest(_manifest(out), model),
}


def _source(model: Any) -> Any:
    return model.files[0].source if isinstance(model, gguftool.Model) else model


def _manifest(out: Any) -> Any:
    found = Path(out).with_name("sums")
    lines = (f"{one.sha256}  sha256  {one.name}\n" for one in gguftool.hash_tensors(DEMO))
    found.write_text("".join(lines), encoding="utf-8")
    return type(out)(found)


def test_every_function_that_takes_a_model_is_tried_with_each_kind_of_it() -> None:
    taking = {
        name
        for name, function in _functions().items()
        if any("ModelLike" in str(annotation) for annotation in function.__annotations__.values())
    }
    assert taking - {"plan_tensors_map"} == set(TAKES)  # a map is of a set: below


def _comparable(result: Any) -> Any:
    if isinstance(result, gguftool.Plan):
        return result.fingerprint, result.remarks, [output.path for output in result.outputs]
    return dict(result) if not isinstance(result, tuple) and hasattr(result, "keys") else result


@pytest.mark.parametrize("name", TAKES)
def test_a_str_a_path_and_an_open_model_give_the_same(name: str, tmp_path: Path) -> None:
    take, out = TAKES[name], tmp_path / "out.gguf"
    expected = _comparable(take(gguftool.open_model(DEMO), out))
    assert _comparable(take(str(DEMO), str(out))) == expected
    assert _comparable(take(DEMO, out)) == expected


def test_a_map_of_a_set_takes_them_too(tmp_path: Path) -> None:
    for path, data in b.shard_set(str(tmp_path / "m"), [[], *([tensor] for tensor in b.llama_tensors())]).items():
        Path(path).write_bytes(data)
    first = tmp_path / "m-00001-of-00007.gguf"
    model = gguftool.open_model(first)
    sha256 = {file.source.name: "0" * 64 for file in model.files}
    expected = _comparable(gguftool.plan_tensors_map(model, sha256, tmp_path / "tensors.map"))
    assert _comparable(gguftool.plan_tensors_map(first, sha256, tmp_path / "tensors.map")) == expected
    assert _comparable(gguftool.plan_tensors_map(str(first), sha256, str(tmp_path / "tensors.map"))) == expected


def test_an_imatrix_is_converted_from_a_path(tmp_path: Path) -> None:
    imatrix, kind = gguftool.open_imatrix(str(IMATRIX)), gguftool.ImatrixKind.GGUF
    plans = [
        gguftool.plan_convert_imatrix(source, imatrix, kind, out)
        for source, out in (
            (IMATRIX, tmp_path / "i.gguf"),
            (str(IMATRIX), str(tmp_path / "i.gguf")),
            (open_local(IMATRIX), tmp_path / "i.gguf"),
        )
    ]
    assert len({plan.fingerprint for plan in plans}) == 1


def test_models_and_paths_are_opened_in_the_order_of_naming() -> None:
    demo, v1 = gguftool.open_model(DEMO), FIXTURES / "v1.gguf"
    shards = sorted(FIXTURES.glob("shards-*.gguf"))
    opened = gguftool.open_models(v1, demo, *shards)
    assert [Path(model.name).name for model in opened] == ["v1.gguf", "demo.gguf", SET.name]
    assert opened[1] is demo
    assert len(opened[2].files) == len(shards) == 3


def test_merge_takes_shards_one_by_one_models_and_labels(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    whole = gguftool.plan_merge([str(SET)], out)
    assert _comparable(gguftool.plan_merge(sorted(FIXTURES.glob("shards-*.gguf")), out)) == _comparable(whole)
    recipe = gguftool.parse_recipe("token_embd=@big\n.*=@small\n")
    options = gguftool.MergeOptions(recipe=recipe)
    small = FIXTURES / "mix" / "tiny-Q4_0.gguf"
    mixed = gguftool.plan_merge([f"big={FIXTURES / 'mix' / 'tiny-Q8_0.gguf'}", f"small={small}"], out, options)
    labelled = gguftool.Input(model=gguftool.open_model(small), given=("small",))
    again = gguftool.plan_merge([f"big={FIXTURES / 'mix' / 'tiny-Q8_0.gguf'}", labelled], out, options)
    assert mixed.fingerprint == again.fingerprint
    assert mixed.fingerprint != whole.fingerprint


def test_what_takes_a_file_that_is_no_model_takes_a_path(tmp_path: Path) -> None:
    assert gguftool.recover_model(DEMO) == gguftool.recover_model(str(DEMO)) == ()
    assert [one.model.name for one in gguftool.open_inputs([DEMO, f"label={SET}"])] == [str(DEMO), str(SET)]
    assert gguftool.open_donor(DEMO).tensors.keys() == gguftool.open_model(DEMO).tensors.keys()
    line = f"m-00002-of-00002.gguf:{'0' * 64}:t:shape=(32,):dtype=f32:elements=32:bytes=128\n"
    (tmp_path / "tensors.map").write_text(line, encoding="utf-8")
    (entry,) = gguftool.read_tensors_map(tmp_path / "tensors.map")
    assert (entry.tensor, entry.nbytes) == ("t", 128)


def test_one_pattern_may_stand_alone(tmp_path: Path) -> None:
    one = gguftool.plan_export(DEMO, "attn_q", tmp_path / "a")
    assert one.fingerprint == gguftool.plan_export(DEMO, ["attn_q"], tmp_path / "a").fingerprint


def test_a_set_is_not_repaired_as_if_it_were_one_file(tmp_path: Path) -> None:
    with pytest.raises(gguftool.PlanError, match="has 3 files"):
        gguftool.find_damage(SET, gguftool.open_model(SET))
    assert gguftool.find_damage(SET, SET).ranges == ()  # by its path it is the one file


def test_a_path_that_is_not_there_is_a_source_error(tmp_path: Path) -> None:
    for call in (gguftool.dump, gguftool.extract_recipe, lambda path: gguftool.plan_split(path, "x")):
        with pytest.raises(gguftool.SourceError, match=r"none\.gguf"):
            call(tmp_path / "none.gguf")


def test_reports_are_rendered_as_the_command_line_does() -> None:
    report = gguftool.report(str(DEMO))
    full = "--full-paths"
    ways = {"TEXT": [], "JSON": ["--json", full], "MARKDOWN": ["--markdown"], "CSV": ["--csv", full]}
    for name, options in ways.items():
        rendered = gguftool.render_report(report, gguftool.Format[name])
        if name == "MARKDOWN":  # the command leaves out folders
            rendered = rendered.replace(str(DEMO), DEMO.name)
        assert rendered.encode() == run_gguftool("report", DEMO, *options).stdout
    with pytest.raises(TypeError, match="no html of Dump"):
        gguftool.render_report(gguftool.dump(DEMO), gguftool.Format.HTML)


# --- type checkers ---------------------------------------------------------------------------------------------------

PROGRAM = """
import gguftool

model = gguftool.open_model("model.gguf")
gguftool.execute(gguftool.plan_split(model, "shards/model"))
"""


def _mypy(folder: Path, program: str, *options: str) -> str:
    pytest.importorskip("mypy", reason="mypy is not installed: pip install mypy")
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", *options, str(file)]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False,
        env=environment() | {"MYPY_CACHE_DIR": str(folder / "cache"), "MYPYPATH": str(REPO)},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("gguftool.plan_spilt", 'Module has no attribute "plan_spilt"'),
        ("from gguftool import plan_spilt", '"gguftool" has no attribute "plan_spilt"'),
    ],
)
def test_a_misspelt_name_is_an_error_for_mypy(wrong: str, message: str, tmp_path: Path) -> None:
    options = (
        "--follow-imports=skip",
        "gguftool/__init__.py",
    )  # the names alone: what they mean takes ten times as long
    assert _mypy(tmp_path, PROGRAM, *options) == ""
    assert message in _mypy(tmp_path, PROGRAM + wrong, *options)


@pytest.mark.slow
def test_mypy_sees_signatures_through_the_package(tmp_path: Path) -> None:
    wrong = (
        "gguftool.plan_split(model, 7)\nreveal_type(gguftool.check_model(model))\nreveal_type(model['general.name'])"
    )
    found = _mypy(tmp_path, PROGRAM + wrong, "--follow-imports=silent")
    assert 'Argument 2 to "plan_split" has incompatible type "int"; expected "str | PathLike[str]"' in found
    assert 'Revealed type is "gguftool.analysis.lint.check.CheckReport"' in found
    assert 'Revealed type is "Any"' in found
    assert found.count("error:") == 1
