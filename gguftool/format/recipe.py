r"""Recipes: the type of each tensor, as ordered rules of a regular expression and a type.

The formats are GGUF-Tool-Suite's `.recipe` files (one rule per line), ik_llama.cpp's ``--custom-q a=b,c=d``, and
llama.cpp's ``--tensor-type`` pairs and ``--tensor-type-file``.  In all of them the pattern is searched unanchored in
the name of the tensor and the first rule that matches wins, so order matters: ``output\.weight`` also matches
``blk.0.attn_output.weight``.  A pattern cannot contain ``=``: the first one ends it.

Reading accepts things that other tools stumble over (BOM, CRLF, blanks, inline comments, any case of types). Writing is
exact, and refuses rules that a format or its engine cannot express.  Sizes are bounded: `MAX_RULES`,
`pattern.MAX_PATTERN`.

Sources: ik_llama.cpp examples/quantize/quantize.cpp (parse_custom_quants), src/llama-quantize.cpp (regex_search, then
break); llama.cpp tools/quantize/quantize.cpp (parse_tensor_type, parse_tensor_type_file: pairs at blanks, names
lower-cased), src/llama-quant.cpp (regex_search, then break).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from gguftool.errors import PlanError, command_line, listed, printable
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.ftypes import no_such_type
from gguftool.format.ggml import TYPES, find_type
from gguftool.format.pattern import BadPatternError, compile_pattern

MAX_RULES = 10_000  # every rule is tried on every tensor; published recipes have 20 to 80
MAX_TEXT = 16 << 20  # characters; room for MAX_RULES long rules and their comments
_MAX_COMMAND = 1 << 20  # characters; systems allow 2 MiB for all arguments
_MAX_SHOWN = 20  # problems listed in one error

_TENSOR_TYPE_FLAG = "--tensor-type"
_LINE_END = re.compile(r"\r\n|\r|\n")
_COMMENT = re.compile(r"(?:^|\s)#.*", re.DOTALL)
_NUMBERED = re.compile(r"type#([0-9]{1,10})")
_BREAKS_LINES = re.compile(r"=|[\r\n]|^\s|\s$|\s#")  # in a target; only labels can contain these


class RecipeFormat(Enum):
    """The formats that can be read and written."""

    RECIPE = "recipe"
    CUSTOM_Q = "custom-q"
    TENSOR_TYPE_FILE = "tensor-type-file"
    TENSOR_TYPE = "tensor-type"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRule:
    """One rule: tensors with a name that `pattern` matches get `target`.

    `target` is the spelling of a type (`q4_K`, or ``type#156`` for an unknown number) with its `type_id`, or ``@LABEL``
    with the `label` of an input to take.  Both are None only for an unknown type in a lenient parse.  `line` counts
    from 1 (items, if the format has no lines) and is not compared.
    """

    pattern: str
    target: str
    type_id: int | None = None
    label: str | None = None
    locked: bool = False
    line: int = field(default=0, compare=False)

    def matches(self, tensor_name: str) -> bool:
        """Whether the pattern is found in `tensor_name`."""
        return bool(compile_pattern(self.pattern).search(tensor_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Rules in order; `name` is their source, for errors."""

    rules: tuple[RecipeRule, ...]
    name: str = field(default="", compare=False)

    def match(self, tensor_name: str) -> RecipeRule | None:
        """Return the first rule that matches `tensor_name`, or None."""
        return next((rule for rule in self.rules if rule.matches(tensor_name)), None)

    def assign(self, names: Iterable[str]) -> dict[str, RecipeRule | None]:
        """Return the first matching rule, or None, of each name, in the order of `names`."""
        searches = [(compile_pattern(rule.pattern).search, rule) for rule in self.rules]
        return {name: next((rule for search, rule in searches if search(name)), None) for name in names}


def make_rule(pattern: str, target: str, *, line: int = 0, locked: bool = False) -> RecipeRule:
    """Make a rule from a pattern and a type, in any spelling, or ``@LABEL``.

    Raises `ValueError` with the reason for an invalid pattern; an unknown type is kept, without `type_id`.
    """
    if not pattern:
        raise ValueError("there is no pattern before '='")
    try:
        compile_pattern(pattern)
    except BadPatternError as error:
        raise ValueError(f"'{printable(pattern)}' {error}") from None
    if target in ("", "@"):
        raise ValueError(f"there is no {'label after @' if target else 'type after the pattern'}")
    if target.startswith("@"):
        return RecipeRule(pattern=pattern, target=target, label=target[1:], locked=locked, line=line)
    type_id = type_number(target)
    return RecipeRule(
        pattern=pattern,
        target=target if type_id is None else spelling(type_id),
        type_id=type_id,
        locked=locked,
        line=line,
    )


def type_number(text: str) -> int | None:
    """Return the id of a type in any spelling (`Q4_K`, `iq2-kt`, ``type#156``), or None for an unknown name."""
    numbered = _NUMBERED.fullmatch(text.lower())
    if numbered:
        number = int(numbered[1])
        return number if number < 1 << 32 else None
    traits = find_type(text)
    return None if traits is None else traits.id


def spelling(type_id: int, engine: str | None = None) -> str:
    """Return the spelling of a type in recipes (`q4_K`, `iq4_ks`, ``type#156``), or `engine`'s ggml_type_name.

    ik_llama.cpp compares case and has other names for four types (`q1_0_g128` is llama.cpp's `q1_0`).
    """
    traits = TYPES.get(type_id)
    if traits is None:
        return f"type#{type_id}"
    return traits.alias if engine is None else traits.spelling(engine)


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_recipe(text: str | bytes, source: str = "recipe", *, lenient: bool = False) -> Recipe:
    """Read a `.recipe` file: ``REGEX=TYPE`` lines, perhaps with ``=locked`` and more fields after it, ``#`` comments.

    `lenient` keeps rules with unknown types, for reports.  Raises one `PlanError` that lists every bad line.
    """
    items = ((number, line) for number, line in _lines(_decoded(text, source)) if line)
    return _parse(items, "line", source, lenient=lenient)


def parse_custom_q(text: str | bytes, source: str = "--custom-q", *, lenient: bool = False) -> Recipe:
    """Read the value of ik_llama.cpp's ``--custom-q``: ``REGEX=TYPE,REGEX=TYPE``; skip blanks and empty items.

    Raises one `PlanError` that lists every bad item.
    """
    joined = "\n".join(line for _, line in _lines(_decoded(text, source)))
    items = ((number, item.strip()) for number, item in enumerate(re.split(r"[,\n]", joined), start=1))
    return _parse((item for item in items if item[1]), "item", source, lenient=lenient)


def parse_tensor_types(items: Iterable[str], source: str = "--tensor-type", *, lenient: bool = False) -> Recipe:
    """Read the values of llama.cpp's ``--tensor-type REGEX=TYPE``, in order; patterns are lower-cased as it does.

    Source: llama.cpp tools/quantize/quantize.cpp, parse_tensor_type.  Raises one `PlanError` that lists every bad item.
    """
    numbered = ((number, item.strip()) for number, item in enumerate(items, start=1))
    return _parse(numbered, "item", source, lenient=lenient, fold=str.lower)


def parse_tensor_type_file(text: str | bytes, source: str = "--tensor-type-file", *, lenient: bool = False) -> Recipe:
    """Read llama.cpp's ``--tensor-type-file``: ``REGEX=TYPE`` pairs separated by blanks; skip ``#`` comments.

    Source: llama.cpp tools/quantize/quantize.cpp, parse_tensor_type_file.  Raises one `PlanError` that lists every bad
    pair.
    """
    items = ((number, item) for number, line in _lines(_decoded(text, source)) for item in line.split())
    return _parse(items, "line", source, lenient=lenient, fold=str.lower)


def parse_tensor_type_options(text: str | bytes, source: str = "--tensor-type", *, lenient: bool = False) -> Recipe:
    """Read a part of a command line, quoted for a shell: the word after each ``--tensor-type``, or all words.

    Raises one `PlanError` that lists every bad item.
    """
    decoded = _decoded(text, source)
    if len(decoded) > _MAX_COMMAND:
        raise PlanError(
            f"has {len(decoded):,} characters; gguftool reads a command line of at most {_MAX_COMMAND:,}",
            source=source,
        )
    try:
        words = shlex.split(decoded)
    except ValueError as error:
        raise PlanError(f"is not quoted for a shell: {error}", source=source) from None
    marked = [word for flag, word in pairwise(words) if flag == _TENSOR_TYPE_FLAG]
    return parse_tensor_types(marked if _TENSOR_TYPE_FLAG in words else words, source, lenient=lenient)


def detect_format(text: str | bytes, source: str = "recipe") -> RecipeFormat:
    """Detect the format of a text by ``--tensor-type``, or by the text after ``=``: a comma, or a blank and a pair.

    A file of llama.cpp with one pair per line counts as a `.recipe`, which reads the same.
    """
    for _, line in _lines(_decoded(text, source)):
        if line.startswith(_TENSOR_TYPE_FLAG + " "):
            return RecipeFormat.TENSOR_TYPE
        _, _, rest = line.partition("=")
        if "," in rest:
            return RecipeFormat.CUSTOM_Q
        if re.search(r"\S\s+\S+=", rest):
            return RecipeFormat.TENSOR_TYPE_FILE
    return RecipeFormat.RECIPE


def parse_any(text: str | bytes, source: str, form: RecipeFormat | None = None, *, lenient: bool = False) -> Recipe:
    """Read `text` in `form`, or in the format that `detect_format` finds."""
    return _PARSERS[form or detect_format(text, source)](text, source, lenient=lenient)


_PARSERS: dict[RecipeFormat, Callable[..., Recipe]] = {
    RecipeFormat.RECIPE: parse_recipe,
    RecipeFormat.CUSTOM_Q: parse_custom_q,
    RecipeFormat.TENSOR_TYPE_FILE: parse_tensor_type_file,
    RecipeFormat.TENSOR_TYPE: parse_tensor_type_options,
}


def _decoded(text: str | bytes, source: str) -> str:
    """Decode UTF-8 (surrogateescape keeps other bytes) or UTF-16 with a BOM; drop the BOM."""
    if len(text) > MAX_TEXT:
        limit = f"({MAX_TEXT:,}), a limit of gguftool"
        raise PlanError(f"{len(text):,} characters are more than a recipe may have {limit}", source=source)
    if isinstance(text, bytes):
        wide = text.startswith((b"\xff\xfe", b"\xfe\xff"))  # as a Windows shell writes on `>`
        try:
            text = text.decode("utf-16") if wide else text.decode("utf-8", "surrogateescape")
        except UnicodeDecodeError:
            raise PlanError("starts like UTF-16 text, but is not valid: not a recipe", source=source) from None
    if "\0" in text:
        extract = command_line("recipe", "extract", source) if source else "recipe extract"
        hint = f"; {extract} makes a recipe from a model" if text.startswith("GGUF") else ""
        raise PlanError(f"is binary, not a recipe{hint}", source=source)
    return text.removeprefix("\ufeff")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines, numbered from 1, without comments and outer blanks."""
    for number, line in enumerate(_LINE_END.split(text), start=1):
        yield number, _COMMENT.sub("", line, count=1).strip()


def _parse(
    items: Iterable[tuple[int, str]],
    unit: str,
    source: str,
    *,
    lenient: bool,
    fold: Callable[[str], str] = str,
) -> Recipe:
    rules: list[RecipeRule] = []
    problems: list[str] = []
    for number, item in items:
        if len(rules) + len(problems) >= MAX_RULES:
            problems.append(f"{unit} {number}: more than {MAX_RULES:,} rules, a limit of gguftool")
            break
        try:
            rule = _rule(item, number, fold)
        except ValueError as error:
            problems.append(f"{unit} {number}: {error}")
            continue
        if rule.type_id is None and rule.label is None and not lenient:
            problems.append(f"{unit} {number}: {no_such_type(rule.target)}")
        rules.append(rule)
    if not rules and not problems:
        problems.append("it has no rules; a rule is REGEX=TYPE, such as .*=q4_K")
    if problems:
        raise PlanError(_all_problems(problems), source=source)
    return Recipe(rules=tuple(rules), name=source)


def _rule(item: str, number: int, fold: Callable[[str], str]) -> RecipeRule:
    pattern, equals, rest = item.partition("=")
    if not equals:
        raise ValueError(f"'{printable(item, 80)}' has no '='; a rule is REGEX=TYPE")
    target, *others = (part.strip() for part in rest.split("="))
    locked = any(other.lower() == "locked" for other in others)
    return make_rule(fold(pattern.strip()), target, line=number, locked=locked)


def _all_problems(problems: list[str]) -> str:
    """Join problems, with a count if there are several; past a limit only count them."""
    more = len(problems) - _MAX_SHOWN
    shown = problems[:_MAX_SHOWN] + [f"and {more:,} more"] * (more > 0)
    return (f"{len(problems):,} problems: " if len(problems) > 1 else "") + "; ".join(shown)


# --- writing ---------------------------------------------------------------------------------------------------------


def render_recipe(recipe: Recipe) -> str:
    """Write `recipe` as a `.recipe` file.

    Raises `PlanError` for a pattern that contains syntax of the format, such as ``=`` or a line end.
    """
    _refuse_unsayable(recipe, r"=|[\r\n]|^\s|\s$|^#|\s#", "a .recipe file")
    lines = (f"{rule.pattern}={rule.target}{'=locked' if rule.locked else ''}\n" for rule in recipe.rules)
    return "".join(lines)


def render_custom_q(recipe: Recipe) -> str:
    """Write `recipe` as the value of ik_llama.cpp's ``--custom-q``, in its exact type names; `locked` is lost.

    Raises `PlanError` for commas in patterns, labels, and types that ik_llama.cpp lacks.
    """
    _refuse_unsayable(recipe, r"[=,]|[\r\n]|^\s|\s$|^#|\s#", "--custom-q")
    return ",".join(f"{rule.pattern}={name}" for rule, name in _for_engine(recipe, IK_LLAMA_CPP))


def render_tensor_type_file(recipe: Recipe) -> str:
    """Write `recipe` as a file for llama.cpp's ``--tensor-type-file``; `locked` is lost.

    Raises `PlanError` for blanks and capitals in patterns (llama.cpp lower-cases them), labels, and types that
    llama.cpp lacks.
    """
    _refuse_unsayable(recipe, r"=|\s|^#", "--tensor-type-file", fold=str.lower)
    return "".join(f"{rule.pattern}={name}\n" for rule, name in _for_engine(recipe, LLAMA_CPP))


def render_tensor_types(recipe: Recipe) -> str:
    """Write `recipe` as ``--tensor-type`` options for llama.cpp, quoted for a shell; raises as for the file."""
    _refuse_unsayable(recipe, r"=|^\s|\s$", _TENSOR_TYPE_FLAG, fold=str.lower)
    words = (shlex.quote(f"{rule.pattern}={name}") for rule, name in _for_engine(recipe, LLAMA_CPP))
    return " ".join(f"{_TENSOR_TYPE_FLAG} {word}" for word in words)


def render_any(recipe: Recipe, form: RecipeFormat) -> str:
    """Write `recipe` in `form`; raise `PlanError` for rules that the format cannot express."""
    return _RENDERERS[form](recipe)


_RENDERERS: dict[RecipeFormat, Callable[[Recipe], str]] = {
    RecipeFormat.RECIPE: render_recipe,
    RecipeFormat.CUSTOM_Q: render_custom_q,
    RecipeFormat.TENSOR_TYPE_FILE: render_tensor_type_file,
    RecipeFormat.TENSOR_TYPE: render_tensor_types,
}


def _refuse_unsayable(recipe: Recipe, reserved: str, form: str, fold: Callable[[str], str] = str) -> None:
    bad = [f"'{rule.pattern}'" for rule in recipe.rules if _is_unsayable(rule, reserved, fold)]
    if bad:
        raise PlanError(f"{form} cannot express these patterns: {listed(bad)}", source=recipe.name or None)


def _is_unsayable(rule: RecipeRule, reserved: str, fold: Callable[[str], str]) -> bool:
    pattern = rule.pattern
    return bool(re.search(reserved, pattern) or fold(pattern) != pattern or _BREAKS_LINES.search(rule.target))


def _for_engine(recipe: Recipe, engine: str) -> Iterator[tuple[RecipeRule, str]]:
    """Yield rules with the engine's names of their types; raise one `PlanError` for all types that it lacks."""
    strange = dict.fromkeys(rule.target for rule in recipe.rules if not _known_to(rule, engine))
    if strange:
        raise PlanError(
            f"{engine} has no type {listed(tuple(strange))}; write a .recipe file, which can express all",
            source=recipe.name or None,
        )
    for rule in recipe.rules:
        yield rule, spelling(rule.type_id, engine) if rule.type_id is not None else rule.target


def _known_to(rule: RecipeRule, engine: str) -> bool:
    traits = None if rule.type_id is None else TYPES.get(rule.type_id)
    return traits is not None and engine in traits.engines
