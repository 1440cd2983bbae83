"""Pages of plans, and what a reader does on them in a browser."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from gguftool.cooking.damage.evidence import Evidence
from gguftool.cooking.inputs import Offers
from gguftool.cooking.mix import Mix, MixOptions
from gguftool.cooking.planning import explore_offers
from gguftool.render.page_of_plan.page import Command, plan_page
from tests.support.browser import Browser


def page_of_offers(offered: Offers, options: MixOptions, evidence: Evidence) -> str:
    """The page of a plan for `offered`."""
    return plan_page(explore_offers(offered, options, evidence), Command(models=("/secret/folder/model.gguf",)))


def written(folder: Path, page: str, name: str = "page.html") -> Path:
    """`page` as a file."""
    path = folder / name
    path.write_text(page, encoding="utf-8")
    return path


def set_budget(browser: Browser, text: str, at: int = 0) -> None:
    """Write a size into the field of a budget."""
    browser.run(f"""(() => {{
        const field = document.querySelectorAll(".budget [type=text]")[{at}];
        field.value = {json.dumps(text)};
        field.dispatchEvent(new Event("change"));
    }})()""")


def set_rule(browser: Browser, name: str, kind: str, type_text: str) -> None:
    """Choose a tensor in the table, and lock it or give it a floor."""
    browser.run(f"""(() => {{
        const line = [...document.querySelectorAll("#tensors tbody tr")].find(
            one => one.querySelector(".name").textContent === {json.dumps(name)});
        line.querySelector("button").click();
        const list = document.getElementById({json.dumps(kind)});
        list.value = [...list.options].find(one => one.textContent === {json.dumps(type_text)}).value;
        list.dispatchEvent(new Event("change"));
    }})()""")


def text_of(browser: Browser, place: str) -> str:
    """The text of the element with an id."""
    found: str = browser.run(f"document.getElementById({json.dumps(place)}).textContent")
    return found


def rules_on(browser: Browser) -> list[str]:
    """The rules of the recipe on the page."""
    return rules_in(text_of(browser, "recipe"))


def rules_of(mix: Mix) -> list[str]:
    """The rules of a plan's recipe."""
    return rules_in(mix.recipe)


def rules_in(recipe: str) -> list[str]:
    """The lines of a recipe but its comments."""
    return [line for line in recipe.splitlines() if line and not line.startswith("#")]


def command_on(browser: Browser, place: str = "plan-command") -> list[str]:
    """The words of a command that the page shows, as a shell reads them."""
    return shlex.split(text_of(browser, place))
