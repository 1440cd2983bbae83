"""Where `-ot` would put tensors: rules ``REGEX=DEVICE`` with the meaning that llama.cpp and ik_llama.cpp give them.

One option holds one rule or several with commas between them; a rule's device follows its first ``=``; the regex is
searched anywhere in the tensor's full name; the first rule that fits decides.  So neither a comma nor ``=`` can stand
in a regex, here as there.  Tensors that no rule takes go where ``-ngl`` and the engine's own order send them: that is
not guessed, they are "unplaced".

Source: parse_tensor_buffer_overrides in llama.cpp common/arg.cpp, create_tensor in src/llama-model-loader.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gguftool.errors import PlanError, printable
from gguftool.format.pattern import BadPatternError, compile_pattern
from gguftool.record import record


@record
class PlacementRule:
    """One rule of ``-ot``: `pattern` as the user wrote it, and the device that it sends tensors to."""

    pattern: str
    device: str
    regex: re.Pattern[str]


def parse_rules(options: Iterable[str]) -> tuple[PlacementRule, ...]:
    """Return the rules that `options` hold, in their order; raise one `PlanError` that lists all faulty ones."""
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
    """Return the first of `rules` that is found in `name`, None where none is."""
    return next((rule for rule in rules if rule.regex.search(name)), None)
