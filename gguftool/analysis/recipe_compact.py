r"""Extract recipes from models, and rewrite recipes: one rule per tensor, or few rules with the same meaning.

The compact form joins layers: tensors of one type with names that differ only in a single number become one rule that
lists the numbers (``^blk\.([37]|1[0-5])\.attn_k\.weight$``). It never matches a layer that it was not given, so it
means the same for every model, and the order of its rules does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gguftool.errors import PlanError, printable
from gguftool.format.ftypes import no_such_type
from gguftool.format.pattern import MAX_PATTERN, literal, number_set
from gguftool.format.recipe import MAX_RULES, Recipe, RecipeRule, make_rule, spelling
from gguftool.model.opening import ModelLike, as_model

# A layer number between dots, as programs write it: 007 is a name, not a number.
_NUMBER = re.compile(r"(?:(?<=\.)|^)(?:0|[1-9][0-9]{0,5})(?=\.)")


def expand(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """Expand `recipe` to one anchored rule for each of `names` that a rule matches, in their order.

    Raises `PlanError` for more tensors than a recipe may have rules.
    """
    assigned = recipe.assign(names)
    rules = (_rule(literal(name), rule) for name, rule in assigned.items() if rule is not None)
    return _recipe(rules, recipe.name)


def compact(assignment: Mapping[str, int | str | RecipeRule], name: str = "") -> Recipe:
    """Express `assignment` in few anchored rules that match exactly its tensors.

    A value is a type id, a type's spelling, ``@LABEL``, or a rule that gives the target. Raises `PlanError` if that
    takes more rules than a recipe may have.
    """
    groups: dict[tuple[str, str, str, bool], list[int | None]] = {}
    models: dict[tuple[str, bool], RecipeRule] = {}
    for tensor, value in assignment.items():
        rule = value if isinstance(value, RecipeRule) else _target(value)
        models.setdefault((rule.target, rule.locked), rule)
        before, number, after = _taken_apart(tensor)
        groups.setdefault((before, after, rule.target, rule.locked), []).append(number)
    rules = (
        _rule(pattern, models[target, locked])
        for (before, after, target, locked), numbers in groups.items()
        for pattern in _patterns(before, sorted(n for n in numbers if n is not None), after)
    )
    return _recipe(rules, name)


def extract(model: ModelLike) -> Recipe:
    """Make the compact recipe that reproduces the type of every tensor of `model`.

    Raises `PlanError` for a model without tensors: a recipe has at least one rule.
    """
    model = as_model(model)
    if not model.tensors:
        raise PlanError("has no tensors, so there is no recipe for it", source=model.name)
    return compact({tensor.info.name: tensor.info.type for tensor in model.tensors.values()}, model.name)


def _taken_apart(name: str) -> tuple[str, int | None, str]:
    found = _NUMBER.search(name)
    return (name, None, "") if found is None else (name[: found.start()], int(found[0]), name[found.end() :])


def _patterns(before: str, numbers: list[int], after: str) -> list[str]:
    """Make patterns for the names before + number + after; several if one would be too long."""
    pattern = literal(before) + (number_set(numbers) if numbers else "") + literal(after)
    if len(pattern) + 2 <= MAX_PATTERN or len(numbers) < 2:
        return [pattern]
    half = len(numbers) // 2
    return _patterns(before, numbers[:half], after) + _patterns(before, numbers[half:], after)


def _target(value: int | str) -> RecipeRule:
    text = spelling(value) if isinstance(value, int) else value
    try:
        rule = make_rule(".*", text)
    except ValueError as error:
        raise PlanError(str(error)) from None
    if rule.type_id is None and rule.label is None:
        raise PlanError(no_such_type(text))
    return rule


def _rule(pattern: str, like: RecipeRule) -> RecipeRule:
    """Make a rule for exactly the names that `pattern` matches, with the target of `like`."""
    if len(pattern) + 2 > MAX_PATTERN:
        raise PlanError(f"'{printable(pattern, 80)}' is longer than a rule may be ({MAX_PATTERN:,} characters)")
    return RecipeRule(
        pattern=f"^{pattern}$", target=like.target, type_id=like.type_id, label=like.label, locked=like.locked
    )


def _recipe(rules: Iterable[RecipeRule], name: str) -> Recipe:
    made = tuple(rules)
    if len(made) > MAX_RULES:
        raise PlanError(f"this takes {len(made):,} rules, but a recipe has {MAX_RULES:,} at most", source=name or None)
    return Recipe(rules=made, name=name)
