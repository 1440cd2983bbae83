"""The page in a real browser: looked at, by mouse, keyboard and finger, on a desk and on a phone."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gguftool.cooking.damage.evidence import NOTHING
from gguftool.cooking.devices import parse_devices
from gguftool.cooking.mix import MixOptions, Target
from gguftool.render.units import format_size, parse_size
from tests.support import cooking
from tests.support.browser import Browser
from tests.support.html_pages import INJECTIONS
from tests.support.paths import FIXTURES
from tests.support.plan_pages import (
    command_on,
    hostile_page,
    large_offers,
    page_of_offers,
    rules_on,
    set_rule,
    smollm2_page,
    text_of,
    written,
)
from tests.support.text_command import run_text

pytest.importorskip("numpy")

AXE = """axe.run({resultTypes: ["violations"]}).then(done => done.violations.map(one => ({
    rule: one.id, impact: one.impact, where: one.nodes[0].html.slice(0, 300), why: one.nodes[0].failureSummary,
})))"""
NAMES = ("measured", "devices", "presets", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a measured model, of two devices for a deep one, of a model with presets beside it, of odd names."""
    folder = tmp_path_factory.mktemp("pages")
    two = MixOptions(target=Target(), devices=parse_devices(["GPU=11GiB:attn|^output", "CPU=90GiB"], parse_size))
    done = run_text(
        "plan", str(FIXTURES / "mix" / "tiny-BF16.gguf"), "--bpw", "6", "--html", str(folder / "presets.html")
    )
    assert done.returncode == 0, done.stderr
    made = {
        "measured": smollm2_page(),
        "devices": page_of_offers(cooking.moe_offers(("iq2_xs", "q3_K", "q4_K", "q8_0")), two, NOTHING),
        "hostile": hostile_page(),
    }
    return {name: written(folder, made[name], f"{name}.html") if name in made else folder / f"{name}.html"
            for name in NAMES}  # fmt: skip


def focused(browser: Browser) -> str:
    found: str = browser.run("document.activeElement.getAttribute('aria-label') || document.activeElement.id")
    return found


# --- what is seen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 400, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_clipped(pages: dict[str, Path], browser: Browser, name: str, width: int) -> None:
    browser.open(pages[name], width=width)
    browser.run("document.querySelector('#tensors .pick').click()")  # with the panel of a tensor
    assert browser.run("document.documentElement.scrollWidth") <= width
    clipped = browser.run("""[...document.querySelectorAll("main *")].filter(one => {
        const box = one.getBoundingClientRect();
        return box.width && !one.closest("svg, .scroll") && (box.left < -1 || box.right > innerWidth + 1);
    }).map(one => one.outerHTML.slice(0, 200))""")
    assert clipped == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing(pages: dict[str, Path], browser: Browser, name: str, width: int, dark: bool) -> None:
    if find_spec("axe_core_python") is None:
        pytest.skip("needs axe-core: python -m pip install axe-core-python")
    browser.open(pages[name], width=width, dark=dark)
    browser.run("document.querySelector('#tensors .pick').click()")
    if dark:
        browser.run("document.getElementById('by-damage').click()")
    # Hundreds of rows are alike; a few of each table are enough, and keep the run short.
    browser.run("""document.querySelectorAll("tbody").forEach(
        body => [...body.rows].slice(12).forEach(row => row.remove()))""")
    browser.run(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8") + "; 0")
    found: list[dict[str, Any]] = browser.run(AXE)
    assert found == []


def test_presets_are_dots_on_the_curve_and_budgets_in_the_table(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["presets"])
    assert browser.run("document.querySelectorAll('svg.wide .dot').length") > 20
    before = browser.run("document.querySelector('svg.wide .plan').getAttribute('cx')")
    browser.run("[...document.querySelectorAll('[data-bytes]')].at(-1).click()")
    size = browser.run("[...document.querySelectorAll('[data-bytes]')].at(-1).closest('tr').cells[1].textContent")
    assert text_of(browser, "sum-size") == size
    assert browser.run("document.querySelector('svg.wide .plan').getAttribute('cx')") != before


OFF_THE_LINE = """(() => {
    const svg = document.querySelector("svg.wide");
    const ring = svg.querySelector(".plan"), line = svg.querySelector(".best");
    const [x, y] = [ring.getAttribute("cx"), ring.getAttribute("cy")].map(Number);
    const steps = [...Array(2000).keys()].map(at => line.getPointAtLength(line.getTotalLength() * at / 1999));
    return Math.min(...steps.map(one => Math.hypot(one.x - x, one.y - y)));
})()"""


@pytest.mark.parametrize("name", ["measured", "presets"])
def test_the_ring_of_the_plan_is_on_the_curve(pages: dict[str, Path], browser: Browser, name: str) -> None:
    """Also where nothing was measured, and each size goes by levels of its own."""
    browser.open(pages[name])
    assert browser.run(OFF_THE_LINE) < 8


def test_the_ring_moves_along_the_curve(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["measured"])
    at = "document.querySelector('svg.wide .plan').getAttribute('cx')"
    before = browser.run(at)
    browser.run("""(() => {
        const slider = document.getElementById("b0");
        slider.value = "700";
        slider.dispatchEvent(new Event("input"));
    })()""")
    assert browser.run(at) != before
    assert browser.run(OFF_THE_LINE) < 8


def test_the_map_shows_types_or_damage(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["measured"])
    cells = "[...document.querySelectorAll('#map td button')].map(one => one.textContent)"
    assert set(browser.run(cells)) <= set("ABCD")
    browser.run("document.getElementById('by-damage').click()")
    digits = browser.run(cells)
    assert "9" in digits
    assert len(set(digits)) > 3
    browser.run("document.querySelector('#map td button').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    assert "blk.0.attn_q.weight: " in text_of(browser, "tip")
    assert ", damage " in text_of(browser, "tip")


def test_a_row_is_locked_as_one(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["measured"])
    browser.run("document.querySelector('[data-row]').click()")
    browser.run("""(() => {
        const list = document.getElementById("lock");
        list.value = [...list.options].find(one => one.textContent === "q4_K").value;
        list.dispatchEvent(new Event("change"));
    })()""")
    assert r"^blk\.([0-9]|[12][0-9])\.attn_q\.weight$=q4_K" in rules_on(browser)
    assert command_on(browser)[5:7] == ["--lock", r"^blk\.([0-9]|[12][0-9])\.attn_q\.weight$=q4_K"]
    locked = "document.querySelectorAll('#map .locked').length"
    assert browser.run(locked) == 30
    browser.run("document.getElementById('unlock').click()")
    assert browser.run(locked) == 0


# --- keyboard, touch, screen reader ----------------------------------------------------------------------------------


def test_a_slider_moves_by_keys_and_says_its_size(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["devices"])
    browser.run("document.getElementById('b1').focus()")
    said = "document.activeElement.getAttribute('aria-valuetext')"
    assert browser.run(said) == "90.0 GiB"
    for _ in range(3):
        browser.press("ArrowRight")
    moved = browser.run(said)
    assert moved != "90.0 GiB"
    browser.run("new Promise(done => setTimeout(done, 900))")  # the thorough choice comes when the keys rest
    assert "from its page" in text_of(browser, "recipe")
    (device,) = [word for word in command_on(browser) if word.startswith("CPU=")]
    assert format_size(parse_size(device.partition("=")[2])) == moved
    assert "GiB" in text_of(browser, "status")


def test_arrows_walk_the_map_and_enter_opens_a_tensor(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["measured"])
    browser.run("document.getElementById('by-damage').focus()")
    browser.run("document.querySelector('#map td button').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    assert focused(browser).startswith("blk.1.attn_k.weight: ")
    assert text_of(browser, "tip") == focused(browser)
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")  # not onto the name of the row
    assert focused(browser).startswith("blk.0.attn_k.weight: ")
    assert browser.run("document.querySelectorAll('#map td button[tabindex=\"0\"]').length") == 1
    browser.run("document.activeElement.click()")
    assert text_of(browser, "tensor-name") == "blk.0.attn_k.weight"
    assert browser.run("document.querySelectorAll('#costs tr').length") == 4
    assert browser.run("document.querySelectorAll('#costs .now').length") == 1


def test_a_tap_opens_a_tensor_on_a_phone(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["measured"], width=400, height=800)
    at = browser.run("""(() => {
        const cell = document.querySelector("#map tbody").rows[4].cells[3].firstChild;
        cell.scrollIntoView({block: "center"});
        const box = cell.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2, Math.min(box.width, box.height)];
    })()""")
    assert at[2] >= 24
    browser.tap(*at[:2])
    name = browser.run("""new Promise(done => setTimeout(() => done([
        document.getElementById("tensor").hidden, document.getElementById("tensor-name").textContent,
        document.getElementById("tensor-with").textContent]), 100))""")
    assert name == [False, "blk.2.ffn_gate.weight", "shares one type with blk.2.ffn_up.weight"]


def test_every_control_has_a_name(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["devices"])
    nameless = browser.run("""[...document.querySelectorAll("button, input, select")].filter(
        one => !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim()))
        .map(one => one.outerHTML)""")
    assert nameless == []


def test_a_size_that_is_none_says_what_to_write(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["devices"])
    before = rules_on(browser)
    for text in ("much", "", "-3GiB", "1e9"):
        browser.run(f"""(() => {{
            const field = document.querySelector(".budget [type=text]");
            field.value = {text!r};
            field.dispatchEvent(new Event("change"));
        }})()""")
        assert "4.2GiB" in text_of(browser, "status")
        assert browser.run("document.querySelector('.budget [type=text]').getAttribute('aria-invalid')") == "true"
    assert rules_on(browser) == before


# --- hostile names, large models -------------------------------------------------------------------------------------


def test_names_stay_text_after_a_choice(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["hostile"])
    set_rule(browser, INJECTIONS[2], "lock", "q6_K")
    browser.run("document.getElementById('by-damage').click()")
    assert browser.run("document.images.length") == 0
    assert browser.run("document.scripts.length") == 2
    text = browser.run("document.body.innerText")
    assert INJECTIONS[0] in text
    assert not re.search("[\x1b\u202a-\u202e\u2066-\u2069]", text)
    assert browser.problems == []


def test_two_thousand_tensors_of_twenty_types_follow_a_slider(browser: Browser, tmp_path: Path) -> None:
    offered, evidence = large_offers()
    options = MixOptions(target=Target(bits=4.0), engine="ik_llama.cpp")
    browser.open(written(tmp_path, page_of_offers(offered, options, evidence)))
    took = browser.run("""(() => {
        const slider = document.getElementById("b0"), times = [];
        for (let at = 100; at < 200; at += 20) {
            const start = performance.now();
            slider.value = String(at);
            slider.dispatchEvent(new Event("input"));
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[2];
    })()""")
    assert took < 1000  # 0.1 s on an idle machine
    assert browser.run("document.querySelectorAll('#map td button').length") == 2000
