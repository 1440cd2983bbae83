"""Recipes: what the formats mean, what is forgiven, what is refused, and that writing is the inverse of reading."""

from __future__ import annotations

import json
import re
import timeit
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import PlanError
from gguftool.format import pattern as pattern_module
from gguftool.format import recipe as recipes
from gguftool.format.engine_facts.engines import BOTH, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.ggml import TYPES
from gguftool.format.pattern import BadPatternError, compile_pattern, literal, number_set
from gguftool.format.recipe import Recipe, RecipeFormat, parse_custom_q, parse_recipe, parse_tensor_types, spelling
from tests.support.counted_work import calls_of
from tests.support.paths import FIXTURES


def pairs(recipe: Recipe) -> list[tuple[str, str]]:
    return [(rule.pattern, rule.target) for rule in recipe.rules]


def problems(text: str, *words: str) -> str:
    with pytest.raises(PlanError) as caught:
        parse_recipe(text, "mix.recipe")
    message = str(caught.value)
    assert message.startswith("mix.recipe: ")
    for word in words:
        assert word in message
    return message


# --- what the field's tools stumble over -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"^a$=q4_K\n.*=q8_0\n",
        b"^a$=q4_K\r\n.*=q8_0\r\n",
        b"^a$=q4_K\r.*=q8_0",
        b"\xef\xbb\xbf^a$=q4_K\n.*=q8_0",
        "^a$=q4_K\n.*=q8_0".encode("utf-16"),
        b"  ^a$ = q4_K\t\n\t.*=q8_0   \n\n",
        b"## Quant mix\n^a$=q4_K # inline\n#.*=f32\n.*=q8_0\t#\n## THE END!\n",
        b"^a$=Q4_k\n.*=Q8_0",
    ],
    ids=["plain", "crlf", "cr", "bom", "utf16", "blanks", "comments", "case"],
)
def test_forgiven(text: bytes) -> None:
    assert pairs(parse_recipe(text)) == [("^a$", "q4_K"), (".*", "q8_0")]


def test_lines_are_counted_as_an_editor_does() -> None:
    assert [rule.line for rule in parse_recipe("# one\n\na=f32\r\n\r\nb=f16").rules] == [3, 5]


@pytest.mark.parametrize(
    ("written", "target", "number"),
    [
        ("iq2-kt", "iq2_kt", 153),
        ("IQ2_KT", "iq2_kt", 153),
        ("q4_k", "q4_K", 12),
        ("Q8_kv", "q8_KV", 151),
        ("Q4_K_R4", "q4_k_r4", 212),
        ("q1_0_g128", "q1_0", 41),
        ("type#144", "iq4_ks", 144),
        ("type#777", "type#777", 777),
    ],
)
def test_types_in_any_spelling(written: str, target: str, number: int) -> None:
    (rule,) = parse_recipe(f".*={written}").rules
    assert (rule.target, rule.type_id, rule.label) == (target, number, None)


def test_a_hash_without_a_blank_is_no_comment() -> None:
    assert pairs(parse_recipe("a#b=q8_0")) == [("a#b", "q8_0")]


def test_fields_behind_the_type() -> None:
    rules = parse_recipe("a=f32=locked\nb=f32= Locked \nc=f32=other=locked\nd=f32=other").rules
    assert [rule.locked for rule in rules] == [True, True, True, False]


def test_labels_pick_an_input() -> None:
    (rule,) = parse_recipe("attn=@Unsloth-Q4_K").rules
    assert (rule.label, rule.type_id, rule.target) == ("Unsloth-Q4_K", None, "@Unsloth-Q4_K")


# --- matching --------------------------------------------------------------------------------------------------------


def test_first_match_wins_and_search_is_unanchored() -> None:
    text = "output\\.weight=q6_K\n^blk\\.0\\.attn_output\\.weight$=q4_K\n.*=q4_0"
    targets = {
        name: rule.target if rule else None
        for name, rule in parse_recipe(text).assign(["output.weight", "blk.0.attn_output.weight", "x"]).items()
    }
    assert targets == {"output.weight": "q6_K", "blk.0.attn_output.weight": "q6_K", "x": "q4_0"}
    turned = parse_recipe("\n".join(reversed(text.splitlines()[:2])))
    found = turned.match("blk.0.attn_output.weight")
    assert found is not None
    assert found.target == "q4_K"
    assert turned.match("x") is None


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (r"^blk\.[[:digit:]]+\.x$", "blk.12.x", "blk.a.x"),
        (r"^[^[:alpha:].]+$", "12_", "a1"),
        (r"^[[:alnum:]_]+$", "a_1", "a.1"),
        (r"^[]x]+$", "x]x", "y"),
        (r"^[[:upper:][:digit:]]$", "K", "k"),
        (r"^blk\.(3|7|1[0-5])\.attn_k\.weight$", "blk.12.attn_k.weight", "blk.1.attn_k.weight"),
        (r"^a.b$", "a\nb", "ab"),
        (r"^a$", "a", "a\n"),
        (r"a\$", "a$", "a"),
    ],
)
def test_patterns_mean_what_they_mean_in_bash(pattern: str, matching: str, other: str) -> None:
    rule = recipes.make_rule(pattern, "q8_0")
    assert rule.matches(matching)
    assert not rule.matches(other)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*b",
        "(a|aa)+$",
        "((a+)b?)*",
        "(a?){50}",
        "(?:x+x+)+y",
        "(a|aa)" * 40 + "b",
        "(" * 3000,
        "a{99999999999}",
        "x" * 5000,
    ],
)
def test_patterns_that_could_run_for_ever_are_refused_at_once(pattern: str) -> None:
    def refuse() -> None:
        with pytest.raises(BadPatternError):
            compile_pattern.__wrapped__(pattern)

    assert calls_of(refuse) < 10 * len(pattern) + 200


def test_harmless_repeats_pass() -> None:
    layers = "|".join(map(str, range(94)))
    experts = rf"^blk\.({layers})\.ffn_(up|gate|down)_(exps|shexp)\.(weight|bias)$"
    lists = "|".join(rf"blk\.({a}|{a + 1})\.attn_(q|k|v)\.weight" for a in range(40))
    for pattern in (r"(ab)+", r"(_exps|_shexp)?\.weight", r"[0-9]+\..*", r"(a|b)c+", experts, lists):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", [".*exps.*x", ".*x", "(a|b).*x", ".*.*.*x", ".*.*.*.*x", "(.*)_exps(.*)x(.*)y"])
def test_the_length_of_a_name_does_not_decide_how_long_a_search_takes(pattern: str) -> None:
    search = compile_pattern(pattern).search
    short, long = "ab_exps" * 40, "ab_exps" * 8_500

    def least(name: str) -> float:
        return min(timeit.repeat(lambda: search(name), repeat=5, number=1))

    assert least(long) < 4 * least(short) + 0.001


def test_a_pattern_without_parts_of_free_length_finds_the_end_of_a_long_name() -> None:
    assert compile_pattern("exps$").search("a" * 60_000 + "exps")
    assert not compile_pattern("e.*s$").search("a" * 60_000 + "exps")


def test_a_pattern_that_takes_too_long_on_many_names_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_module, "MAX_SECONDS", 0.05)
    search = compile_pattern("a*a*a*a*b").search
    with pytest.raises(PlanError, match="takes too long to search"):
        deque(map(search, ["a" * 127] * 1000), maxlen=0)


@given(st.text(st.characters(), max_size=12))
def test_a_literal_matches_its_text_alone_and_fits_every_format(text: str) -> None:
    found = compile_pattern(f"^{literal(text)}$")
    assert found.search(text)
    assert not found.search(text + "\n")
    assert not found.search("x" + text)
    assert not re.search(r"[=,#\s]", literal(text))


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_number_set_matches_exactly_its_numbers(numbers: set[int]) -> None:
    found = compile_pattern(f"^{number_set(numbers)}$")
    assert {number for number in range(1300) if found.search(str(number))} == numbers
    assert not found.search("0" + str(max(numbers)))


# --- problems --------------------------------------------------------------------------------------------------------


def test_all_problems_are_said_at_once_with_their_lines() -> None:
    message = problems(
        "a=q4_K_M\n(b=q8_0\nnonsense\n=f32\nc=\nd=@\n\ne=iq4ks\n[[:dgit:]]=f16\n(x+)+=f16",
        "9 problems",
        "line 1: there is no tensor type 'q4_K_M': it is a file type",
        "line 2: '(b' is not a regular expression",
        "line 3: 'nonsense' has no '='",
        "line 4: there is no pattern",
        "line 5: there is no type",
        "line 6: there is no label",
        "line 8: there is no tensor type 'iq4ks'; nearest: iq4_ks",
        "line 9: '[[:dgit:]]' uses [:dgit:]",
        "line 10: '(x+)+' repeats a group",
    )
    assert "line 7" not in message


def test_many_problems_are_counted_not_listed() -> None:
    message = problems("\n".join("x" for _ in range(500)), "500 problems", "and 480 more")
    assert len(message) < 2000


def test_a_lenient_parse_keeps_unknown_types_only() -> None:
    (rule,) = parse_recipe("a=q4_K_M", lenient=True).rules
    assert (rule.target, rule.type_id, rule.label) == ("q4_K_M", None, None)
    with pytest.raises(PlanError, match="line 2"):
        parse_recipe("a=q4_K_M\n(=f32", lenient=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no rule"),
        (b"# only\n\n", "no rule"),
        (b"GGUF\x03\0\0\0", "recipe extract"),
        (b"\xff\xfe\x00", "UTF-16"),
        (b"a=f32\n" * 10_001, "more than 10,000 rules"),
        (b"#" * (17 << 20), "more than a recipe may have"),
    ],
    ids=["empty", "comments", "gguf", "utf16", "rules", "size"],
)
def test_what_is_no_recipe_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(PlanError, match=re.escape(words)):
        parse_recipe(data)


def outcome_of(data: bytes | str, form: RecipeFormat | None) -> Recipe | PlanError:
    try:
        return recipes.parse_any(data, "x", form)
    except PlanError as error:
        return error


@given(st.binary(max_size=60) | st.text(max_size=60), st.sampled_from(RecipeFormat))
def test_any_bytes_are_a_recipe_or_a_plan_error(data: bytes | str, form: RecipeFormat) -> None:
    for chosen in (form, None):
        outcome = outcome_of(data, chosen)
        assert outcome.source == "x" if isinstance(outcome, PlanError) else outcome.rules


# --- the other formats -----------------------------------------------------------------------------------------------


def test_custom_q() -> None:
    read = parse_custom_q("blk\\.0\\.=q8_0, attn=iq4_ks,\nffn=iq2-kt,")
    assert pairs(read) == [("blk\\.0\\.", "q8_0"), ("attn", "iq4_ks"), ("ffn", "iq2_kt")]
    with pytest.raises(PlanError, match="item 2"):
        parse_custom_q("a=q8_0,b=q99")


def test_tensor_types_are_lower_cased_as_llama_quantize_does() -> None:
    assert pairs(parse_tensor_types(["ATTN_Q=Q8_0", r"ffn_\D=q4_k"])) == [("attn_q", "q8_0"), (r"ffn_\d", "q4_K")]


def test_tensor_type_file_has_pairs_between_blanks() -> None:
    read = recipes.parse_tensor_type_file("# mine\nattn_q=Q8_0 attn_k=q8_0\n\tffn=q4_k # rest\n")
    assert pairs(read) == [("attn_q", "q8_0"), ("attn_k", "q8_0"), ("ffn", "q4_K")]
    assert [rule.line for rule in read.rules] == [2, 2, 3]


def test_tensor_type_options_are_read_as_a_shell_does() -> None:
    text = "llama-quantize --tensor-type 'blk\\.0.*=q8_0' --pure --tensor-type ffn=q4_k in.gguf out.gguf q4_0"
    read = recipes.parse_tensor_type_options(text)
    assert pairs(read) == [("blk\\.0.*", "q8_0"), ("ffn", "q4_K")]
    assert pairs(recipes.parse_tensor_type_options("a=f32 b=f16")) == [("a", "f32"), ("b", "f16")]
    with pytest.raises(PlanError, match="quoted"):
        recipes.parse_tensor_type_options("--tensor-type 'a=q8_0")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("# c\na=q8_0\nb=f32=locked\n", RecipeFormat.RECIPE),
        ("a{1,2}=q8_0\nb=f32", RecipeFormat.RECIPE),
        ("a=q8_0,b=f32", RecipeFormat.CUSTOM_Q),
        ("a=q8_0,\nb=f32", RecipeFormat.CUSTOM_Q),
        ("a=q8_0 b=f32", RecipeFormat.TENSOR_TYPE_FILE),
        ("a=q8_0 # b=f32, c", RecipeFormat.RECIPE),
        ("--tensor-type a=q8_0", RecipeFormat.TENSOR_TYPE),
    ],
)
def test_formats_are_told_apart(text: str, form: RecipeFormat) -> None:
    assert recipes.detect_format(text) is form


def test_types_are_written_as_each_engine_compares_them() -> None:
    table = json.loads((FIXTURES / "engines" / "ggml-types.json").read_text())
    engines = {"mainline": LLAMA_CPP, "ik": IK_LLAMA_CPP}
    checked = 0
    for row in table:
        if row["primary"] and row["in_files"]:
            for key, name in row["cli_name"].items():
                assert spelling(row["id"], engines[key]) == name
                checked += 1
    assert checked > 100


PATTERNS = st.sampled_from(
    [
        ".*",
        "output\\.weight",
        "^blk\\.([37]|1[0-5])\\.attn_k\\.weight$",
        "ffn_(up|gate)",
        "[[:digit:]]+",
        "a#b",
        "\\x2c",
    ]
) | st.lists(st.sampled_from([*"abz019_-.#", "\\.", "[0-9]", "(x|y)", "a{2}"]), min_size=1).map("".join).filter(
    lambda pattern: not pattern.startswith("#")
)


def rules(engine: str | None) -> st.SearchStrategy[Recipe]:
    ids = [traits.id for traits in TYPES.values() if engine is None or engine in traits.engines]
    targets = st.sampled_from(ids).map(spelling)
    if engine is None:
        targets |= st.sampled_from(["@A", "@Some-Label.1", "type#777"])
    rule = st.builds(
        lambda pattern, target, locked: recipes.make_rule(pattern, target, locked=locked and engine is None),
        PATTERNS,
        targets,
        st.booleans(),
    )
    return st.lists(rule, min_size=1, max_size=8).map(lambda made: Recipe(rules=tuple(made)))


@pytest.mark.parametrize(
    ("form", "engine"),
    [
        (RecipeFormat.RECIPE, None),
        (RecipeFormat.CUSTOM_Q, IK_LLAMA_CPP),
        (RecipeFormat.TENSOR_TYPE_FILE, LLAMA_CPP),
        (RecipeFormat.TENSOR_TYPE, LLAMA_CPP),
    ],
)
def test_writing_is_the_inverse_of_reading(form: RecipeFormat, engine: str | None) -> None:
    @given(rules(engine))
    def inverse(recipe: Recipe) -> None:
        text = recipes.render_any(recipe, form)
        assert recipes.parse_any(text, "again", form) == recipe
        assert recipes.parse_any(text.encode(), "again", form) == recipe
        assert recipes.render_any(recipes.parse_any(text, "again", form), form) == text

    inverse()


@pytest.mark.parametrize(
    ("pattern", "target", "form"),
    [
        ("a,b", "q8_0", RecipeFormat.CUSTOM_Q),
        ("a", "@label", RecipeFormat.CUSTOM_Q),
        ("a", "tq1_0", RecipeFormat.CUSTOM_Q),
        ("a", "type#777", RecipeFormat.CUSTOM_Q),
        ("a", "iq4_ks", RecipeFormat.TENSOR_TYPE_FILE),
        ("Attn", "q8_0", RecipeFormat.TENSOR_TYPE_FILE),
        ("a b", "q8_0", RecipeFormat.TENSOR_TYPE_FILE),
        ("a=b", "q8_0", RecipeFormat.RECIPE),
        ("a\nb", "q8_0", RecipeFormat.RECIPE),
        ("a #b", "q8_0", RecipeFormat.RECIPE),
        ("#a", "q8_0", RecipeFormat.RECIPE),
        ("a", "@x=y", RecipeFormat.RECIPE),
    ],
)
def test_what_a_format_cannot_say_is_refused(pattern: str, target: str, form: RecipeFormat) -> None:
    with pytest.raises(PlanError):
        recipes.render_any(Recipe(rules=(recipes.make_rule(pattern, target),)), form)


def test_every_type_that_both_engines_know_passes_through_all_formats() -> None:
    shared_types = [t for t in TYPES.values() if set(BOTH) <= set(t.engines)]
    recipe = Recipe(rules=tuple(recipes.make_rule(f"^t{t.id}$", t.name) for t in shared_types))
    for form in RecipeFormat:
        recipe = recipes.parse_any(recipes.render_any(recipe, form), "x", form)
    assert [rule.type_id for rule in recipe.rules] == [t.id for t in shared_types]


# --- bounds and defaults ---------------------------------------------------------------------------------------------


def test_ten_thousand_rules_are_read_and_one_more_is_one_problem() -> None:
    assert len(parse_recipe("a=f32\n" * 10_000).rules) == 10_000
    with pytest.raises(PlanError) as caught:
        parse_recipe("a=f32\n" * 10_005)
    assert str(caught.value) == "recipe: line 10001: more than 10,000 rules, a limit of gguftool"
    with pytest.raises(PlanError, match="and 9,981 more"):
        parse_recipe("x\n" * 10_005)


def test_sixteen_mib_are_read_and_one_more_character_is_not() -> None:
    rule = "a=f32\n"
    assert parse_recipe(rule + "#" * ((16 << 20) - len(rule))).rules
    with pytest.raises(PlanError, match=re.escape("16,777,217 characters are more than a recipe may have (16,777,216")):
        parse_recipe(rule + "#" * ((16 << 20) + 1 - len(rule)))


def test_a_command_line_has_a_mebibyte_at_most() -> None:
    words = "--tensor-type a=f32"
    assert recipes.parse_tensor_type_options(words.ljust(1 << 20)).rules
    with pytest.raises(PlanError, match="has 1,048,577 characters; gguftool reads a command line of"):
        recipes.parse_tensor_type_options(words.ljust((1 << 20) + 1))


@pytest.mark.parametrize(
    ("count", "start", "end"),
    [
        (1, "line 1: 'x' has", "REGEX=TYPE"),
        (2, "2 problems: line 1", "REGEX=TYPE"),
        (20, "20 problems: ", "REGEX=TYPE"),
        (21, "21 problems: ", "; and 1 more"),
    ],
)
def test_up_to_twenty_problems_are_listed(count: int, start: str, end: str) -> None:
    message = problems("x\n" * count).removeprefix("mix.recipe: ")
    assert message.startswith(start)
    assert message.endswith(end)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("type#4294967295", 2**32 - 1),
        ("type#4294967296", None),
        ("type#0", 0),
        ("TYPE#777", 777),
        ("type#", None),
        ("type#42949672950", None),
        ("no-such", None),
    ],
)
def test_numbers_of_types_have_32_bits(written: str, number: int | None) -> None:
    assert recipes.type_number(written) == number


def test_an_unknown_type_is_kept_as_it_is_spelled() -> None:
    rule = recipes.make_rule("a", "Q99_x", line=7, locked=True)
    assert (rule.target, rule.type_id, rule.label, rule.line, rule.locked) == ("Q99_x", None, None, 7, True)
    plain = recipes.make_rule("a", "@b")
    assert (plain.line, plain.locked, plain.label, plain.type_id) == (0, False, "b", None)
    assert recipes.make_rule("a", "f16").locked is False


def test_where_a_rule_came_from_does_not_make_it_another() -> None:
    one, two = (recipes.make_rule("a", "f16", line=line) for line in (1, 2))
    assert one == two
    assert hash(one) == hash(two)
    assert Recipe(rules=(one,), name="x") == Recipe(rules=(two,), name="y")
    assert one != recipes.make_rule("a", "f16", locked=True)
    assert Recipe(rules=(one,)).name == ""
    assert recipes.RecipeRule(pattern="a", target="b").line == 0


def test_rules_are_values() -> None:
    rule = recipes.make_rule("a", "f16")
    for made, name in ((rule, "target"), (Recipe(rules=(rule,)), "rules")):
        with pytest.raises(AttributeError):
            setattr(made, name, ())
        assert not hasattr(made, "__dict__")
        with pytest.raises(TypeError):
            type(made)("a", "b")  # type: ignore[call-arg]


def test_items_are_counted_from_one() -> None:
    assert [rule.line for rule in parse_custom_q("a=f32,,b=f16\nc=f32 # d, e").rules] == [1, 3, 4]
    assert [rule.line for rule in parse_tensor_types([" a=f32 ", "b=f16"]).rules] == [1, 2]
    with pytest.raises(PlanError, match=re.escape("--tensor-type: item 2: '' has no '='")):
        parse_tensor_types(["a=f32", " "])


@pytest.mark.parametrize(
    "parse",
    [
        lambda text, lenient: parse_custom_q(text, lenient=lenient),
        lambda text, lenient: parse_tensor_types([text], lenient=lenient),
        lambda text, lenient: recipes.parse_tensor_type_file(text, lenient=lenient),
        lambda text, lenient: recipes.parse_tensor_type_options(text, lenient=lenient),
        lambda text, lenient: recipes.parse_any(text, "x", lenient=lenient),
    ],
)
def test_only_lenient_parses_keep_unknown_types(parse: Callable[[str, bool], Recipe]) -> None:
    assert parse("a=q99", True).rules[0].target == "q99"
    with pytest.raises(PlanError, match="no tensor type 'q99'"):
        parse("a=q99", False)


@pytest.mark.parametrize(
    "parse",
    [
        parse_recipe,
        parse_custom_q,
        recipes.parse_tensor_type_file,
        lambda text: recipes.parse_any(text, "x"),
        recipes.parse_tensor_type_options,
    ],
)
def test_no_parse_is_lenient_by_itself(parse: Callable[[str], Recipe]) -> None:
    with pytest.raises(PlanError, match="no tensor type 'q99'"):
        parse("a=q99")
    with pytest.raises(PlanError, match="no tensor type 'q99'"):
        parse_tensor_types(["a=q99"])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_of_both_orders(encoding: str) -> None:
    assert pairs(parse_recipe("\ufeffa=f16".encode(encoding))) == [("a", "f16")]


@pytest.mark.parametrize(
    ("data", "source", "message"),
    [
        (
            b"GGUF\0",
            "m.gguf",
            "m.gguf: is binary, not a recipe; 'gguftool recipe extract m.gguf' makes a recipe from a model",
        ),
        (b"GGUF\0", "", "is binary, not a recipe; recipe extract makes a recipe from a model"),
        (b"a=f16\0", "m", "m: is binary, not a recipe"),
    ],
)
def test_binary_files_are_refused_with_a_hint_for_models(data: bytes, source: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_recipe(data, source)
    assert str(caught.value) == message


def test_a_long_item_is_cut_in_the_problem() -> None:
    message = problems("x" * 500)
    assert "x" * 70 in message
    assert "x" * 81 not in message


def test_a_chosen_format_is_not_detected() -> None:
    assert pairs(recipes.parse_any("a=f16 b=f32", "x", RecipeFormat.TENSOR_TYPE)) == [("a", "f16"), ("b", "f32")]
    assert pairs(recipes.parse_any("a=f16,b=f32", "x")) == [("a", "f16"), ("b", "f32")]
    with pytest.raises(PlanError, match="no tensor type"):
        recipes.parse_any("a=f16,b=f32", "x", RecipeFormat.RECIPE)


def test_only_words_behind_the_flag_are_rules() -> None:
    read = recipes.parse_tensor_type_options("a=f32 --tensor-type b=f16 c=f32")
    assert pairs(read) == [("b", "f16")]
    assert recipes.detect_format("--tensor-types a=f16") is RecipeFormat.RECIPE


def test_what_cannot_be_written_is_named_with_its_recipe() -> None:
    rules = tuple(recipes.make_rule(pattern, target) for pattern, target in (("a,b", "f16"), ("c", "f16")))
    with pytest.raises(PlanError) as caught:
        recipes.render_custom_q(Recipe(rules=rules, name="mix"))
    assert str(caught.value) == "mix: --custom-q cannot express these patterns: 'a,b'"
    assert caught.value.source == "mix"
    with pytest.raises(PlanError) as caught:
        recipes.render_custom_q(Recipe(rules=rules))
    assert caught.value.source is None
    strange = tuple(recipes.make_rule("a", target) for target in ("tq1_0", "tq1_0", "f16", "@x"))
    with pytest.raises(PlanError) as caught:
        recipes.render_custom_q(Recipe(rules=strange, name="mix"))
    assert caught.value.source == "mix"
    assert "has no type tq1_0, @x; write a .recipe file" in str(caught.value)


def test_locked_is_written_where_it_can_be_said() -> None:
    rules = (recipes.make_rule("a", "f16", locked=True), recipes.make_rule("b", "Q4_K"))
    recipe = Recipe(rules=rules)
    assert recipes.render_recipe(recipe) == "a=f16=locked\nb=q4_K\n"
    assert recipes.render_custom_q(recipe) == "a=f16,b=q4_K"
    assert recipes.render_tensor_type_file(recipe) == "a=f16\nb=q4_K\n"
    assert recipes.render_tensor_types(recipe) == "--tensor-type a=f16 --tensor-type b=q4_K"
