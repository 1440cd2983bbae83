"""The page of `plan --html`: it shows the plan, and chooses again with other budgets, locks and floors.

Everything is in one file that fetches nothing. Without a script it shows the plan; the script solves the same problem
as the command line (`solver.js`), so for the same budgets it makes the same recipe. Nothing from a model is code: texts
are escaped, numbers are JSON in an element that browsers do not run, and the content security policy allows exactly the
page's own style and script.
"""

from __future__ import annotations

import shlex
from importlib.resources import files
from typing import Any

from gguftool.cooking.exploration import Exploration
from gguftool.cooking.mix import Mix
from gguftool.cooking.recipe_text import damage_words
from gguftool.errors import PlanError, printable
from gguftool.record import record
from gguftool.render.format import Format
from gguftool.render.page.document import colour_rules, policy, shown
from gguftool.render.page_of_plan.curve import curves_of
from gguftool.render.page_of_plan.look import Look, look_of
from gguftool.render.page_of_plan.map import heat_map
from gguftool.render.page_of_plan.names import Names, names_of, shown_source
from gguftool.render.page_of_plan.numbers import numbers_json
from gguftool.render.registry import renders
from gguftool.render.units import format_size

_RECIPE_LIMIT = 1 << 20
_SCRIPTS = ("solver.js", "recipe.js", "state.js", "page.js")


@record
class Command:
    """The call of `plan`: models, options that are neither targets nor outputs, and the imatrix."""

    models: tuple[str, ...]
    options: tuple[str, ...] = ()
    imatrix: str | None = None


@renders(Exploration, Format.HTML)
def plan_page(plan: Exploration, *, command: Command | None = None) -> str:
    """Render the page as HTML, with the command that made the plan.

    Raises `PlanError` if jinja2 is missing, with the command that installs it.
    """
    command = command or _plain_command(plan)
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise PlanError("a page needs jinja2; get it with: pip install jinja2") from None
    css = colour_rules() + _resource("page.css")
    js = '"use strict";\n' + "".join(map(_resource, _SCRIPTS))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=shown
    )
    environment.filters["size"] = format_size
    look, names = look_of(plan), names_of(plan, command.models)
    texts = _texts(plan, command, names)
    return environment.from_string(_resource("page.html.j2")).render(
        policy=policy(css, js),
        css=Markup(css),
        js=Markup(js),
        numbers=Markup(numbers_json(plan, look, texts["words"])),
        look=look,
        map=heat_map(plan, look),
        curves=curves_of(plan, names),
        **texts,
        **_tables(plan, look, names),
    )


def _plain_command(plan: Exploration) -> Command:
    """Make up a command for a plan that no command made."""
    quants = tuple(quant.name for quant in plan.offered.quants)
    return Command(models=quants or (plan.offered.name,))


class Text(str):
    """Text of many lines with names already escaped: `shown` leaves it alone."""

    __slots__ = ()


def _resource(name: str) -> str:
    return files("gguftool.render.page_of_plan").joinpath(name).read_text("utf-8")


# --- content that needs no script ------------------------------------------------------------------------------------


def _texts(plan: Exploration, command: Command, names: Names) -> dict[str, Any]:
    mix, models = plan.mix, [shown_source(text) for text in command.models]
    title = ", ".join(models[:3]) + (f" and {len(models) - 3:,} more" if len(models) > 3 else "")
    recipe = [names.clean(line) for line in mix.recipe.splitlines()]
    words = {
        "plan": shlex.join(["gguftool", "plan", *models]),
        "target": shlex.join(_target_words(plan)),
        "options": shlex.join(command.options),
    }
    return {
        "title": title,
        "mix": mix,
        "most": plan.options.target.most_damage,
        "resizable": not mix.devices and plan.options.target.most_damage is None,
        "damage_words": damage_words(mix),
        "basis": names.clean(mix.basis),
        "remarks": [names.clean(text) for text in (*mix.remarks, *_caveats(plan))],
        "recipe": Text("\n".join(printable(line, _RECIPE_LIMIT) for line in recipe)),
        "words": {"command": words, "header": [line for line in recipe if _stays(line)]},
        "plan_line": Text(printable(" ".join([*filter(None, words.values()), "-o mix.recipe"]), _RECIPE_LIMIT)),
        "make": _make(plan, command, models),
        "run": f"llama-server -m mix.gguf {names.clean(mix.arguments)}".rstrip(),
    }


def _caveats(plan: Exploration) -> list[str]:
    """List what the command line chooses and the page does not."""
    found = []
    if any(not item.device for item in plan.items) and plan.mix.devices:
        found.append("tensors stay on the devices of this plan; the command line also chooses where they go")
    if plan.options.max_types is not None:
        found.append(
            "the page chooses among the types of this plan; the command line also chooses which types those are"
        )
    if plan.options.target.most_damage is not None and plan.mix.devices:
        found.append("the page keeps only to the damage, and says which device is full; the command line keeps to both")
    return found


def _stays(line: str) -> bool:
    """Whether a line of the recipe's header is true for every budget."""
    return line.startswith(("# model:", "# basis:", "# input:"))


def _target_words(plan: Exploration) -> list[str]:
    """List the targets and budgets as they were given."""
    target, words = plan.options.target, []
    for device in plan.options.devices:
        rule = "" if device.pattern is None else f":{device.pattern}"
        words += ["--device", f"{device.name}={device.size}{rule}"]
    if target.most_damage is not None:
        return [*words, "--max-kld", repr(target.most_damage)]
    if target.bits is not None:
        return [*words, "--bpw", repr(target.bits)]
    size = target.size or (target.tensor_bytes or 0) + plan.offered.head
    return words or ["--size", str(size)]


def _make(plan: Exploration, command: Command, models: list[str]) -> str:
    """Write the command that makes the file."""
    if any(name.endswith(".map") for name in models):
        return shlex.join(["gguftool", "cook", "mix.recipe", "--from", "FOLDER_OF_THE_QUANTS", "-o", "mix.gguf"])
    if plan.offered.ready:
        return shlex.join(["gguftool", "merge", *models, "--recipe", "mix.recipe", "-o", "mix.gguf"])
    imatrix = [] if command.imatrix is None else ["--imatrix", shown_source(command.imatrix)]
    return shlex.join(["gguftool", "quantize", *models, "--recipe", "mix.recipe", *imatrix, "-o", "mix.gguf"])


def _tables(plan: Exploration, look: Look, names: Names) -> dict[str, Any]:
    mix = plan.mix
    return {
        "uses": {use.name: use for use in mix.devices},
        "types": [(use, look.inks[use.type]) for use in mix.types],
        "rivals": [(names.clean(one.name), one, _change(mix, one.damage, one.planned)) for one in mix.rivals],
        "tensors": [(at, tensor, look.inks[tensor.type]) for at, tensor in _chosen(mix)],
        "chosen_bytes": sum(use.nbytes for use in mix.types) or 1,
        "kept": [tensor for tensor in mix.tensors if not tensor.chosen],
    }


def _chosen(mix: Mix) -> list[tuple[int, Any]]:
    return list(enumerate(tensor for tensor in mix.tensors if tensor.chosen))


def _change(mix: Mix, damage: float, planned: float | None) -> str:
    """Compute what a plan of the same size changes, in per cent."""
    if mix.unit is None or planned is None or not damage:
        return ""
    return f"{planned / damage - 1:+.1%}"
