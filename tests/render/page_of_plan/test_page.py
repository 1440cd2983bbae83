"""The page as a file: what stands there without a script, what must not, and its size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gguftool.cooking.damage.evidence import NOTHING
from gguftool.cooking.inputs import Offers
from gguftool.cooking.mix import MixOptions, Target
from gguftool.cooking.offers import offer_types
from gguftool.cooking.planning import choose_mix, explore_offers
from gguftool.errors import PlanError
from gguftool.render.page_of_plan.look import look_of
from gguftool.render.page_of_plan.map import heat_map
from gguftool.render.page_of_plan.names import shown_source
from tests.support import cooking
from tests.support.html_pages import INJECTIONS
from tests.support.paths import FIXTURES
from tests.support.plan_pages import (
    SMOLLM2,
    hostile_offers,
    hostile_page,
    large_offers,
    page_of_offers,
    rules_of,
    smollm2_page,
)
from tests.support.text_command import run_text

pytest.importorskip("numpy")

MODEL = FIXTURES / "mix" / "tiny-BF16.gguf"


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def test_without_a_script_the_page_shows_the_plan() -> None:
    mix = choose_mix(cooking.smollm2_offers(cooking.K_TYPES), SMOLLM2, cooking.measured_evidence())
    page = Page(smollm2_page())
    for rule in rules_of(mix):
        assert rule in page.text
    for tensor in mix.tensors:
        assert not tensor.chosen or tensor.name in page.text
    for words in (
        f"{mix.damage:.4g}",
        f"{mix.low:.4g}",
        "66.8 MiB",
        "gguftool quantize model.gguf --recipe mix.recipe",
    ):
        assert words in page.text
    cells = [attributes["aria-label"] for tag, attributes in page.found if tag == "button" and "data-t" in attributes]
    assert len(cells) == sum(tensor.chosen for tensor in mix.tensors)
    controls = [attributes for tag, attributes in page.found if "needs-script" in (attributes.get("class") or "")]
    assert len(controls) > 5
    assert all("hidden" in attributes for attributes in controls)


def test_names_stay_text() -> None:
    page = Page(hostile_page())
    assert [attributes.get("type") for tag, attributes in page.found if tag == "script"] == ["application/json", None]
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "a"} & {tag for tag, _ in page.found}
    for text in INJECTIONS:
        assert text in page.text
    attributes = {name for _, attributes in page.found for name in attributes}
    assert not {name for name in attributes if name.startswith("on") or name in {"src", "href", "style"}}


def test_nothing_that_reorders_or_controls_reaches_the_page() -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", hostile_page())


def test_numbers_end_where_the_page_says() -> None:
    (inside,) = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', hostile_page(), re.DOTALL)
    assert "<" not in inside
    assert [tensor[0] for tensor in json.loads(inside)["tensors"]] == [offer.name for offer in hostile_offers().offers]


@pytest.mark.parametrize("make", [smollm2_page, hostile_page])
def test_the_policy_allows_exactly_the_pages_own_style_and_script(make: object) -> None:
    page = make()  # type: ignore[operator]
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src &#39;none&#39;;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in policy
    assert not re.search(r"https?:|url\(|@import", page)


def test_no_folder_of_the_machine_is_on_the_page(tmp_path: Path) -> None:
    model, other = tmp_path / "a model.gguf", tmp_path / "other.recipe"
    model.write_bytes(MODEL.read_bytes())
    other.write_text(".*=q8_0\n")
    measured = tmp_path / "mine.json"
    measured.write_text(json.dumps({"gguftool": "sensitivities", "tensors": {"blk.0.attn_q.weight": 0.5}}))
    done = run_text(
        "plan", str(model), "--size", "26K", "--types", "q4_0,q8_0", "--sensitivity", str(measured), "--compare",
        str(other), "--html", str(tmp_path / "page.html"), "--device", "CPU=1M",
    )  # fmt: skip
    assert done.returncode == 2  # a size and a device
    done = run_text(
        "plan", str(model), "--size", "26K", "--types", "q4_0,q8_0", "--sensitivity", str(measured), "--compare",
        str(other), "--html", str(tmp_path / "page.html"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    text = Page(page).text
    assert "gguftool plan 'a model.gguf' --size 26000 --sensitivity mine.json --types q4_0,q8_0" in text
    assert "# input: mine.json sha256:" in text
    assert "other.recipe" in text


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/me/model.gguf", "model.gguf"),
        ("C:\\models\\model.gguf", "model.gguf"),
        ("folder/", "folder"),
        ("..", ".."),
        ("/", "model"),
        ("hf://ORG/REPO@main/model.gguf", "hf://ORG/REPO@main/model.gguf"),
        ("https://me:secret@host/a/model.gguf?token=secret#part", "model.gguf"),
        ("https://host", "host"),
    ],
)
def test_sources_are_shown_by_name(source: str, shown: str) -> None:
    assert shown_source(source) == shown


def test_two_thousand_tensors_of_twenty_types_are_a_page_of_two_megabytes() -> None:
    offered, evidence = large_offers()
    page = page_of_offers(offered, MixOptions(target=Target(bits=4.0), engine="ik_llama.cpp"), evidence)
    assert len(page.encode()) < 2_000_000


def test_a_map_is_not_larger_than_the_model() -> None:
    """A row for each name and a column for each layer, with nothing else in them."""
    offers = tuple(offer_types(f"blk.{at}.odd_{at}.weight", (256, 256), ("q4_K", "q6_K")) for at in range(400))
    plan = explore_offers(Offers(name="sparse", offers=offers), MixOptions(target=Target(bits=5.5)), NOTHING)
    assert heat_map(plan, look_of(plan)).rows == ()


def test_layers_and_other_tensors_have_their_places() -> None:
    plan = explore_offers(
        cooking.moe_offers(("q2_K", "q3_K", "q4_K"), layers=7), MixOptions(target=Target(bits=3.5)), NOTHING
    )
    found = heat_map(plan, look_of(plan))
    assert found.layers == ("0", "", "", "", "", "5", "")
    assert [row.name for row in found.rows][:2] == ["attn_q", "attn_k"]
    assert all(len(row.cells) == 7 for row in found.rows)
    assert [one.name for one in found.others] == ["token_embd.weight", "output.weight"]


def test_without_jinja2_one_line_says_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(PlanError, match="pip install jinja2"):
        smollm2_page()


def test_the_page_is_written_beside_the_recipe_and_replaced_only_by_force(tmp_path: Path) -> None:
    page, recipe = tmp_path / "page.html", tmp_path / "mix.recipe"
    words = ("plan", str(MODEL), "--bpw", "6", "--types", "q4_0,q8_0", "--html", str(page), "-o", str(recipe))
    first = run_text(*words)
    assert first.returncode == 0, first.stderr
    assert f"wrote {page}" in first.stderr
    made = page.read_text(encoding="utf-8")
    recipe.unlink()
    page.write_text("mine")
    again = run_text(*words)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert (page.read_text(), recipe.exists()) == ("mine", False)
    assert run_text(*words, "--force").returncode == 0
    assert page.read_text(encoding="utf-8") == made
