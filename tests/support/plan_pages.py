"""Pages of plans, and what a reader does on them in a browser."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from gguftool.cooking.damage.evidence import NOTHING, Evidence, InputFile, Observation
from gguftool.cooking.devices import parse_devices
from gguftool.cooking.inputs import Offers
from gguftool.cooking.mix import Mix, MixOptions, Target
from gguftool.cooking.offers import default_types, offer_types
from gguftool.cooking.planning import explore_offers
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.record import replace
from gguftool.render.page_of_plan.page import Command, plan_page
from gguftool.render.units import parse_size
from tests.support import cooking
from tests.support.browser import Browser
from tests.support.hostile_text import HOSTILE
from tests.support.html_pages import INJECTIONS

SMOLLM2 = MixOptions(target=Target(tensor_bytes=70_000_000))


def page_of_offers(offered: Offers, options: MixOptions, evidence: Evidence, name: str = "model.gguf") -> str:
    """The page of a plan for `offered`."""
    command = Command(models=(f"/secret/folder/{name}",))
    return plan_page(explore_offers(offered, options, evidence), command=command)


def smollm2_page() -> str:
    """The page of SmolLM2 as measured, with K types at 70 MB."""
    return page_of_offers(cooking.smollm2_offers(cooking.K_TYPES), SMOLLM2, cooking.measured_evidence())


def moe_page(*devices: str) -> str:
    """The page of a mixture of experts with 61 layers, at 4 bits or on `devices`."""
    offered, evidence = large_offers(610)
    target = Target() if devices else Target(bits=3.4)
    options = MixOptions(target=target, engine=IK_LLAMA_CPP, devices=parse_devices(devices, parse_size))
    measured = replace(evidence, inputs=(InputFile(name="measure.jsonl", sha256="0" * 64),))
    return page_of_offers(replace(offered, name="big-moe.gguf"), options, measured, "big-moe.gguf")


def hostile_offers() -> Offers:
    """Tensors with names that try to act on a page."""
    short = (text for text in HOSTILE if text and len(text) < 1000)
    names = (*INJECTIONS, *short, *(f"blk.{at}.attn_{text}.weight" for at, text in enumerate(INJECTIONS)))
    offers = tuple(offer_types(name, (256, 256), ("q4_K", "q6_K")) for name in dict.fromkeys(names))
    return Offers(name=INJECTIONS[0], offers=offers)


def hostile_page() -> str:
    """The page of `hostile_offers`."""
    return page_of_offers(hostile_offers(), MixOptions(target=Target(bits=5.5)), NOTHING)


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


def large_offers(tensors: int = 2000, types: int = 20) -> tuple[Offers, Evidence]:
    """A model of so many tensors with so many types on offer, each with a divergence of its own at one type."""
    pool = [name for name in default_types(IK_LLAMA_CPP) if name != "iq1_s"][:types]
    kinds = [("attn_q", 4096), ("attn_k", 512), ("attn_v", 512), ("attn_output", 4096), ("ffn_gate_exps", 16384),
             ("ffn_up_exps", 16384), ("ffn_down_exps", 16384), ("ffn_gate_shexp", 1024), ("ffn_up_shexp", 1024),
             ("ffn_down_shexp", 1024)]  # fmt: skip
    named = [(f"blk.{at // len(kinds)}.{kinds[at % len(kinds)][0]}.weight", kinds[at % len(kinds)][1])
             for at in range(tensors)]  # fmt: skip
    offers = tuple(offer_types(name, (4096, rows), pool) for name, rows in named)
    observations = tuple(
        Observation(tensors=(name,), type="q3_K", value=1e-5 * (1 + (7919 * at) % 401), error=1e-6)
        for at, (name, _) in enumerate(named)
    )
    offered = Offers(name="large", offers=offers, model=None, head=0, ready=False)
    return offered, Evidence(errors={}, curve={}, observations=observations)
