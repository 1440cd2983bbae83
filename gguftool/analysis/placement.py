"""Where `-ot` would put tensors: rules ``REGEX=DEVICE`` as llama.cpp and ik_llama.cpp read them.

One option holds one rule, or several separated by commas. A rule's device follows its first ``=``. The regex may match
anywhere in the tensor's full name; the first rule that matches decides. So, as in the engines, a regex can hold neither
a comma nor ``=``. Where the other tensors go depends on ``-ngl`` and the engine's own order. This module does not guess
that: they are "unplaced".

Source: parse_tensor_buffer_overrides in llama.cpp common/arg.cpp, create_tensor in src/llama-model-loader.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable

from gguftool.errors import PlanError, printable
from gguftool.format.pattern import BadPatternError, NamePattern, compile_pattern
from gguftool.record import record


@record
class PlacementRule:
    """One rule of ``-ot``: `pattern` as the user wrote it, and the device for the tensors that it matches."""

    pattern: str
    device: str
    regex: NamePattern


def parse_rules(options: Iterable[str]) -> tuple[PlacementRule, ...]:
    """Parse the rules in `options`, in order; raise one `PlanError` that lists all invalid rules."""
    rules: list[PlacementRule] = []
    problems: list[str] = []
    for text in (part for option in options for part in option.split(",")):
        pattern, equals, device = text.partition("=")
        if not (pattern and equals and device):
            problems.append(f"'{printable(text)}' is not REGEX=DEVICE")
            continue
        try:
            rules.append(PlacementRule(pattern=pattern, device=device, regex=compile_pattern(pattern)))
        except BadPatternError as error:
            problems.append(f"'{printable(pattern)}' {error}")
    if problems:
        raise PlanError(
            f"--place: {'; '.join(problems)}. Write it as for -ot, e.g. 'exps=CPU': the device follows the first '=', "
            "a comma starts the next rule"
        )
    return tuple(rules)


def device_of(name: str, rules: tuple[PlacementRule, ...]) -> PlacementRule | None:
    """Find the first of `rules` that matches `name`, or None."""
    return next((rule for rule in rules if rule.regex.search(name)), None)
