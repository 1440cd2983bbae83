"""Scripts, and the files that lists come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.errors import PlanError
from gguftool.model.layout import OutputOptions
from gguftool.surgery.alter.alteration import Alteration, alteration_of
from gguftool.surgery.alter.files import parse_experts, parse_mergekit, parse_tokens, read_text
from gguftool.surgery.alter.script import parse_script

SCRIPT = """\
# how this model was made
take d::mtp   # the head
layers 0-3,2-

  set general.name=C#\tsharp
experts @keep.json
engine llama.cpp
"""


def test_a_script_has_the_words_of_the_command_line() -> None:
    assert parse_script(SCRIPT, "folder/reap.alter") == (
        ("take", "d::mtp"),
        ("layers", "0-3,2-"),
        ("set", "general.name=C#\tsharp"),
        ("experts", f"@{Path('folder/keep.json')}"),
        ("engine", "llama.cpp"),
    )


def test_all_lines_that_cannot_be_read_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        parse_script("--drop :mtp\nfuse\nkeep x\nmerge y\n", "s.alter")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 1", "line 2", "line 4"]
    assert "did you mean 'drop'?" in caught.value.problems[0]


def test_words_become_an_alteration() -> None:
    words = (("drop", "a"), ("drop", "b"), ("take", "d::mtp"), ("rename", "(?P<x>a)=b"), ("set", "k=u32:1"))
    made = alteration_of((*words, ("layers", "0-"), ("engine", "llama.cpp")), OutputOptions())
    assert made == Alteration(
        drop=("a", "b"),
        take=(("d", ":mtp"),),
        rename=(("(?P<x>a)", "b"),),
        set=(("k", "u32:1"),),
        layers="0-",
        engines=("llama.cpp",),
    )


def test_words_of_another_form_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        alteration_of((("take", "mtp"), ("rename", "x"), ("layers", "0"), ("layers", "1")), OutputOptions())
    assert [problem[:20] for problem in caught.value.problems] == [
        "--layers is given 2 ",
        "'mtp' is not of the ",
        "'x' is not of the fo",
    ]


def test_experts_of_a_file() -> None:
    assert parse_experts('{"0": [1, 2], "5": []}', "k") == {0: (1, 2), 5: ()}
    assert parse_experts(" [3, 1]\n", "k") == "3,1"
    assert parse_experts("0-3,\n5-\n", "k") == "0-3,5-"


@pytest.mark.parametrize(
    "text", ['{"a": [1]}', '{"0": 1}', '{"0": [1.5]}', '{"0": [true]}', "[-1]", "[", "[" * 9999, "{}"]
)
def test_what_is_no_file_of_experts(text: str) -> None:
    with pytest.raises(PlanError):
        parse_experts(text, "k")


def test_tokens_of_a_file() -> None:
    assert parse_tokens("[5, 3]", "k") == (5, 3)
    assert parse_tokens("5\n3\n", "k") == (5, 3)
    assert parse_tokens("0-9,\n12", "k") == "0-9,12"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate((32 << 20) + 1)
    with pytest.raises(PlanError, match="a list has at most"):
        read_text(str(tmp_path / "big"))


# --- mergekit --------------------------------------------------------------------------------------------------------

ONE = """\
merge_method: passthrough
dtype: float16
slices:
- sources: [{model: org/Model-A, layer_range: [0, 16]}]
- sources:
  - layer_range: [8, 24]
    model: org/Model-A
"""


def test_a_merge_of_one_model_is_about_the_input() -> None:
    spans, remarks = parse_mergekit(ONE, "merge.yml", ())
    assert spans == "0-15,8-23"
    assert remarks == ("merge.yml: only slices are read; ignored: dtype",)


def test_models_of_a_merge_are_labels_or_ends_of_names() -> None:
    text = ONE.replace("model: org/Model-A\n", "model: b\n")
    assert parse_mergekit(text, "merge.yml", ("model_a", "b"))[0] == "model_a:0-15,b:8-23"
    with pytest.raises(PlanError, match="no input is labelled 'org/Model-A': give Model-A=MODEL"):
        parse_mergekit(text, "merge.yml", ("b",))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("passthrough", "slerp", "merge_method is not passthrough"),
        ("[0, 16]}", "[0, 16]}, {model: b, layer_range: [0, 1]}", "slice 1 does not have exactly one source"),
        ("[0, 16]", "[16, 0]", "which is empty"),
        ("[0, 16]", "16", "no layer_range of two numbers"),
        ("layer_range: [0, 16]}", "layer_range: [0, 16], parameters: {scale: 2}}", "have|has parameters"),
        (ONE[ONE.index("slices") :], "slices: 3", "there are no slices"),
        (ONE, "- 1", "merge_method is not passthrough"),
        (ONE, "a: [", "is not YAML"),
        (ONE, "a: !!python/object:os.system x", "is not YAML"),
        (ONE, "[" * 1500, "is not YAML"),
        ("[0, 16]", f"[0, 0x{'f' * 5000}]", "slice 1 has a layer_range beyond 1,048,576"),
        ("[0, 16]", f"[-0x{'f' * 5000}, 1]", "slice 1 has a layer_range beyond 1,048,576"),
        ("org/Model-A, layer", "[a], layer", "slice 1 has a model that is not a name"),
        (ONE, "#" * ((1 << 20) + 1), "a mergekit file has at most 1,048,576"),
    ],
)
def test_what_is_no_merge_of_slices(old: str, new: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        parse_mergekit(ONE.replace(old, new), "merge.yml", ())


def test_aliases_that_would_be_a_name_of_any_length_are_refused_at_once() -> None:
    doubled = "".join(f"x{level}: &x{level} [*x{level - 1}, *x{level - 1}]\n" for level in range(1, 64))
    text = f"x0: &x0 [x, x]\n{doubled}{ONE.replace('model: org/Model-A', 'model: *x63')}"
    with pytest.raises(PlanError, match="slice 2 has a model that is not a name"):
        parse_mergekit(text, "merge.yml", ())


def test_without_pyyaml_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(PlanError, match="pip install PyYAML"):
        parse_mergekit(ONE, "merge.yml", ())
