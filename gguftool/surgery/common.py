"""What several operations ask of their inputs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gguftool.errors import PlanError, listed, printable
from gguftool.format.file_names import KEY_TENSORS, SPLIT_KEYS
from gguftool.format.kv import KV
from gguftool.format.pattern import BadPatternError, compile_pattern
from gguftool.model.model import Model
from gguftool.model.opening import ORDER_KEY
from gguftool.model.padding import PADDING_KEY

if TYPE_CHECKING:
    from gguftool.format.recipe import Recipe, Rule

# Keys that describe how a model lies in files, not the model; every writer makes its own.
LAYOUT_KEYS = SPLIT_KEYS | {ORDER_KEY, PADDING_KEY}
_SHOWN = 8  # names that one remark or problem lists


class Notes:
    """What is said of choices, grouped: reason -> tensor names."""

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {}
        self.remarks: dict[str, list[str]] = {}

    def problem(self, reason: str, name: str) -> None:
        """Note something that stands in the way."""
        self.problems.setdefault(reason, []).append(name)

    def remark(self, reason: str, name: str) -> None:
        """Note something that a user should know."""
        self.remarks.setdefault(reason, []).append(name)

    def idle_rules(self, recipe: Recipe, rules: Mapping[str, Rule | None]) -> None:
        """A rule that matches no tensor is a problem; one whose tensors earlier rules took is remarked."""
        used = {id(rule) for rule in rules.values()}
        for rule in recipe.rules:
            if id(rule) in used:
                continue
            said = f"line {rule.line}: {rule.pattern}={rule.target}"
            if any(rule.matches(name) for name in rules):
                self.remark("every tensor that this rule matches is taken by an earlier rule", said)
            else:
                self.problem("this rule matches no tensor", said)


def grouped(reasons: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Return a line for each reason, with the names that it holds for."""
    return tuple(f"{reason}: {listed(names, _SHOWN)}" for reason, names in reasons.items())


def without_layout_keys(kvs: Iterable[KV]) -> tuple[KV, ...]:
    """Return `kvs` without those that describe how the model lies in files."""
    return tuple(kv for kv in kvs if kv.key not in LAYOUT_KEYS)


def require_complete(model: Model) -> None:
    """Raise `PlanError` with what is missing where a writer's output would lack a tensor."""
    if model.is_complete:
        return
    found = len(model.tensors)
    said = "" if model.expected_tensors is None else f": {found:,} of {model.expected_tensors:,} tensors are there"
    gaps = f"; missing: {listed(model.missing)}" if model.missing else f" ({KEY_TENSORS} is wrong, or shards are)"
    raise PlanError(f"the model is incomplete{said}{gaps}", source=model.name)


def select_tensors(patterns: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """Return those of `names` that `patterns` choose, in the order of `names`.

    A pattern that equals a name means that tensor alone; any other is searched unanchored as a regular expression.
    Raises one `PlanError` that lists every pattern that matches nothing or is none.
    """
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        try:
            found = {pattern} if pattern in names else set(filter(compile_pattern(pattern).search, names))
        except BadPatternError as error:
            problems.append(f"'{printable(pattern)}' {error}")
            continue
        if not found:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.6)
            hint = f"; nearest: {printable(near[0])}" if near else ""
            problems.append(f"'{printable(pattern)}' matches no tensor{hint}")
        chosen |= found
    if problems:
        raise PlanError("; ".join(problems))
    return tuple(name for name in names if name in chosen)
