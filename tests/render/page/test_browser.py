"""The page in a real browser: what people see, reach by keyboard and touch, and what a screen reader gets."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.big_moe import write_big_moe
from tests.support.browser import Browser
from tests.support.html_pages import INJECTIONS, hostile_page, page_of, three_big_moes
from tests.support.report_model import write_moe

AXE = """axe.run({resultTypes: ["violations"]}).then(done => done.violations.map(one => ({
    rule: one.id, impact: one.impact, where: one.nodes[0].html.slice(0, 300), why: one.nodes[0].failureSummary,
})))"""
NAMES = ("one", "deep", "three", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a small model, of one with 94 layers, of three with 61, and of one with hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "one": page_of(write_moe(folder / "moe.gguf"), places=("exps=CPU",)),
        "deep": page_of(write_big_moe(folder / "deep.gguf", layers=94)),
        "three": page_of(*three_big_moes(folder)),
        "hostile": hostile_page(folder / "hostile.gguf"),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


# --- what is seen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 400, 768, 1280, 1900])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_clipped(pages: dict[str, Path], browser: Browser, name: str, width: int) -> None:
    browser.open(pages[name], width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    clipped = browser.run("""[...document.querySelectorAll("main *")].filter(one => {
        const box = one.getBoundingClientRect();
        return box.width && !one.closest("svg, thead, .scroll") && (box.left < -1 || box.right > innerWidth + 1);
    }).map(one => one.outerHTML.slice(0, 200))""")
    assert clipped == []


@pytest.mark.parametrize("width", [320, 400, 1280])
@pytest.mark.parametrize("name", ["deep", "three"])
def test_every_cell_of_a_heat_map_is_on_the_screen_with_its_text(
    pages: dict[str, Path], browser: Browser, name: str, width: int
) -> None:
    browser.open(pages[name], width=width)
    cells = browser.run("""[...document.querySelectorAll(".heat button")].map(one => {
        const box = one.getBoundingClientRect();
        return [box.right <= innerWidth, one.scrollWidth <= one.clientWidth, box.height === 0 || box.height >= 24];
    })""")
    assert len(cells) == {"deep": 94 * 2 + 91 * 3 + 3, "three": 3 * (61 * 2 + 58 * 3 + 3)}[name]
    assert [cell for cell in cells if cell != [True, True, True]] == []


def test_layers_that_are_alike_fold(pages: dict[str, Path], browser: Browser) -> None:
    seen = """[...document.querySelectorAll(".heat tbody tr")].filter(row => row.offsetParent).map(
        row => row.querySelector("th").innerText)"""
    browser.open(pages["one"], width=1280)
    assert browser.run(seen) == [str(layer) for layer in range(12)]
    browser.run("document.querySelector('.fold').click()")
    assert browser.run(seen) == ["0", "1 to 4", "5", "6 to 10", "11"]
    browser.open(pages["one"], width=400)
    assert browser.run(seen) == ["0", "1 to 4", "5", "6 to 10", "11"]


def test_colours_are_drawn_in_both_modes(pages: dict[str, Path], browser: Browser) -> None:
    """A style that beats the colour of cells would leave them blank."""
    look = """[...document.querySelectorAll(".heat button, .chip")].map(
        one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).color].join())"""
    browser.open(pages["one"])
    light = browser.run(look)
    browser.open(pages["one"], dark=True)
    assert browser.run(look) == light
    assert len(set(light)) > 5
    assert not [one for one in light if "rgba(0, 0, 0, 0)" in one]


# --- keyboard, touch, screen reader ----------------------------------------------------------------------------------


def focused(browser: Browser) -> str:
    found: str = browser.run("document.activeElement.getAttribute('aria-label') || document.activeElement.className")
    return found


def test_keys_reach_every_control_once_and_arrows_walk_the_heat_map(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one"])
    browser.run("document.querySelector('.fold').focus()")
    browser.press("Tab")
    assert focused(browser).startswith("Q6_K, Q8_0; layer 0, attention")
    assert browser.run("document.querySelector('.detail').textContent") == focused(browser)
    browser.press("ArrowRight")
    assert "layer 0, dense ffn" in focused(browser)
    browser.press("ArrowDown")  # no dense layer below
    assert "layer 0, dense ffn" in focused(browser)
    browser.press("ArrowRight")
    assert "layer 0, norms" in focused(browser)  # over the roles that layer 0 lacks
    browser.press("ArrowDown")
    assert "layer 1, norms" in focused(browser)
    browser.press("Tab")
    assert focused(browser) == "Search keys and values"
    assert browser.run("document.querySelectorAll('.heat button[tabindex=\"0\"]').length") == 1


def test_arrows_skip_folded_layers(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one"], width=400)
    browser.run("document.querySelector('.heat button').focus()")
    for _ in range(2):
        browser.press("ArrowDown")
    assert "layer 5, attention" in focused(browser)


def test_a_tap_tells_what_is_in_a_cell(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one"], width=400, height=800)
    at = browser.run("""(() => {
        const cell = [...document.querySelectorAll(".heat button")].find(one => one.innerText.startsWith("IQ4_KS"));
        cell.scrollIntoView({block: "center"});
        const box = cell.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    })()""")
    browser.tap(*at)
    told = browser.run("""new Promise(done => setTimeout(() => {
        const line = document.querySelector(".detail");
        const box = line.getBoundingClientRect();
        done([line.textContent, box.bottom <= innerHeight + 1]);
    }, 100))""")
    assert told[0].startswith("IQ4_KS, IQ3_K; layer 1, routed experts: 2 tensors")
    assert told[1]  # the line stays on the screen


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["one", "three", "hostile"])
def test_axe_finds_nothing(pages: dict[str, Path], browser: Browser, name: str, width: int, dark: bool) -> None:
    if find_spec("axe_core_python") is None:
        pytest.skip("needs axe-core: python -m pip install axe-core-python")
    browser.open(pages[name], width=width, dark=dark)
    # Hundreds of rows are alike; a few of each table are enough, and keep the run short.
    browser.run("""document.querySelectorAll("tbody").forEach(
        body => [...body.rows].slice(12).forEach(row => row.remove()))""")
    browser.run(files("axe_core_python").joinpath("axe.min.js").read_text("utf-8") + "; 0")
    found: list[dict[str, Any]] = browser.run(AXE)
    assert found == []


# --- script and policy -----------------------------------------------------------------------------------------------


def test_names_stay_text_and_the_script_runs(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["hostile"])
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.images.length") == 0
    text = browser.run("document.body.innerText")
    assert INJECTIONS[0] in text
    assert browser.run("document.querySelector('.tools').hidden") is False  # the page's script: its hash is allowed
    assert browser.problems == []


def test_the_policy_stops_a_script_that_got_in(pages: dict[str, Path], browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        pages["one"].read_text("utf-8").replace("</main>", "<script>window.bad = 1</script></main>"), "utf-8"
    )
    browser.open(bad)
    assert browser.run("window.bad") is None
    assert any("Content Security Policy" in problem for problem in browser.problems)


def shown(browser: Browser, kind: str) -> list[str]:
    rows: list[str] = browser.run(f"""[...document.querySelectorAll("table.{kind} tbody tr")].filter(
        row => !row.hidden).map(row => row.querySelector(".name").textContent)""")
    return rows


def type_in(browser: Browser, kind: str, text: str) -> None:
    browser.run(f"""(() => {{
        const field = document.querySelector("table.{kind}").closest("section").querySelector(".filter");
        field.value = {text!r};
        field.dispatchEvent(new Event("input"));
    }})()""")


def test_tensors_sort_by_size_and_filter(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one"])
    everything = shown(browser, "tensors")
    for _ in range(2):
        browser.run("document.querySelectorAll('table.tensors .sort')[4].click()")
    sizes = browser.run(
        "[...document.querySelectorAll('table.tensors tbody tr')].map(r => Number(r.cells[4].dataset.v))"
    )
    assert sizes == sorted(sizes, reverse=True)
    type_in(browser, "tensors", "EXPS")
    assert sorted(shown(browser, "tensors")) == sorted(name for name in everything if "exps" in name)
    count = browser.run(
        "document.querySelector('table.tensors').closest('section').querySelector('.count').textContent"
    )
    assert count == f"22 of {len(everything)} shown"


def test_metadata_is_searched_by_key_and_value(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["deep"])
    type_in(browser, "metadata", "expert_C")
    assert shown(browser, "metadata") == ["deepseek2.expert_count"]
    type_in(browser, "metadata", "message.content")
    assert shown(browser, "metadata") == ["tokenizer.chat_template"]


def test_only_what_differs(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["three"])
    browser.run("document.querySelectorAll('.differing').forEach(one => one.click())")
    assert shown(browser, "metadata") == []
    assert len(shown(browser, "tensors")) == 58 * 3 - 7  # seven layers have the same `down` in all three
    assert all("_exps" in name for name in shown(browser, "tensors"))
