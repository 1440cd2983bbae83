"""In a real browser: the page chooses what the command line chooses, for the same budgets, locks and floors."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.cooking.damage.evidence import NOTHING, Evidence
from gguftool.cooking.devices import parse_devices
from gguftool.cooking.inputs import Offers
from gguftool.cooking.mix import MixOptions, Target
from gguftool.cooking.planning import choose_mix
from gguftool.record import replace
from gguftool.render.units import parse_size
from tests.support import cooking
from tests.support.browser import Browser
from tests.support.paths import FIXTURES
from tests.support.plan_pages import (
    command_on,
    large_offers,
    page_of_offers,
    rules_in,
    rules_of,
    rules_on,
    set_budget,
    set_rule,
    text_of,
    written,
)
from tests.support.text_command import run_text

np = pytest.importorskip("numpy")

TYPES = (*cooking.K_TYPES, "Q6_K")
SIZES = (60_500_000, 70_000_000, 75_555_555, 90_000_001)
MODEL = str(FIXTURES / "mix" / "tiny-BF16.gguf")
QUANTS = [str(FIXTURES / "mix" / f"tiny-{name}.gguf") for name in ("Q4_0", "Q8_0")]


def smollm2_page(folder: Path, options: MixOptions, evidence: Evidence) -> Path:
    return written(folder, page_of_offers(cooking.smollm2_offers(TYPES), options, evidence))


@pytest.mark.parametrize("fuse", [(), ("up-gate", "qkv")])
@pytest.mark.parametrize("evidence", ["measured_evidence", "fisher_evidence"])
def test_at_every_size_the_recipe_is_that_of_the_command_line(
    browser: Browser, tmp_path: Path, evidence: str, fuse: tuple[str, ...]
) -> None:
    known = getattr(cooking, evidence)()
    options = MixOptions(target=Target(tensor_bytes=SIZES[1]), fuse=fuse)
    browser.open(smollm2_page(tmp_path, options, known))
    planned = choose_mix(cooking.smollm2_offers(TYPES), options, known)
    assert rules_on(browser) == rules_of(planned)
    for size in SIZES:
        set_budget(browser, str(size))
        mix = choose_mix(cooking.smollm2_offers(TYPES), replace(options, target=Target(tensor_bytes=size)), known)
        assert rules_on(browser) == rules_of(mix)
        assert text_of(browser, "sum-damage") == f"{mix.damage:.4g}"
        assert text_of(browser, "sum-gap") == f"{mix.gap:.2%}"
    browser.run("document.getElementById('reset').click()")
    assert rules_on(browser) == rules_of(planned)
    assert browser.problems == []


def test_locks_and_floors_by_click_are_those_of_the_command_line(browser: Browser, tmp_path: Path) -> None:
    known = cooking.measured_evidence()
    options = MixOptions(target=Target(tensor_bytes=SIZES[1]))
    browser.open(smollm2_page(tmp_path, options, known))
    set_rule(browser, "blk.3.attn_q.weight", "lock", "q6_K")
    set_rule(browser, "blk.4.ffn_up.weight", "floor", "q4_K")  # one with its gate
    set_rule(browser, "blk.5.ffn_down.weight", "floor", "q5_K")
    words = command_on(browser)
    given = {flag: [words[at + 1] for at, word in enumerate(words) if word == flag] for flag in ("--lock", "--floor")}
    assert given["--lock"] == [r"^blk\.3\.attn_q\.weight$=q6_K"]
    assert len(given["--floor"]) == 2
    mix = choose_mix(
        cooking.smollm2_offers(TYPES),
        replace(options, locks=tuple(given["--lock"]), floors=tuple(given["--floor"])),
        known,
    )
    assert rules_on(browser) == rules_of(mix)
    browser.run("document.getElementById('unlock').click()")
    assert rules_on(browser) == rules_of(choose_mix(cooking.smollm2_offers(TYPES), options, known))


def moe(layers: int = 94) -> Offers:
    return cooking.moe_offers(("iq2_xs", "q2_K", "iq3_xxs", "q3_K", "q4_K", "q6_K", "q8_0"), layers)


def test_each_device_is_a_budget(browser: Browser, tmp_path: Path) -> None:
    rules = ("GPU=11GiB:attn|^output", "CPU=90GiB")
    options = MixOptions(target=Target(), devices=parse_devices(rules, parse_size))
    browser.open(written(tmp_path, page_of_offers(moe(), options, NOTHING)))
    set_budget(browser, "5.5GiB", 0)
    set_budget(browser, "101.25 GiB", 1)
    words = command_on(browser)
    devices = [words[at + 1] for at, word in enumerate(words) if word == "--device"]
    assert devices == ["GPU=5.5GiB:attn|^output", "CPU=101.25GiB"]
    mix = choose_mix(moe(), replace(options, devices=parse_devices(devices, parse_size)), NOTHING)
    assert rules_on(browser) == rules_of(mix)
    assert len({tensor.type for tensor in mix.tensors}) > 4
    set_budget(browser, "1GiB", 0)
    assert "GPU: the smallest types that are left take" in text_of(browser, "problem")
    assert rules_on(browser) == rules_of(mix)  # the last plan that fits stays


def test_the_fastest_mix_of_a_quality(browser: Browser, tmp_path: Path) -> None:
    known = cooking.measured_evidence()
    options = MixOptions(target=Target(most_damage=0.3))
    browser.open(smollm2_page(tmp_path, options, known))
    for most in ("0.5", "0.123"):
        set_budget(browser, most)
        mix = choose_mix(cooking.smollm2_offers(TYPES), replace(options, target=Target(most_damage=float(most))), known)
        assert rules_on(browser) == rules_of(mix)
        assert command_on(browser)[-4:] == ["--max-kld", most, "-o", "mix.recipe"]


def test_a_quality_that_fills_a_device_too_much_is_a_problem(browser: Browser, tmp_path: Path) -> None:
    known, device = cooking.measured_evidence(), parse_devices(["CPU=75M"], parse_size)
    browser.open(smollm2_page(tmp_path, MixOptions(target=Target(most_damage=0.3), devices=device), known))
    assert text_of(browser, "problem") == ""
    set_budget(browser, "0.02")
    free = choose_mix(cooking.smollm2_offers(TYPES), MixOptions(target=Target(most_damage=0.02)), known)
    assert free.nbytes > 75_000_000
    assert rules_on(browser) == rules_of(free)  # the damage is kept
    assert "CPU: " in text_of(browser, "problem")
    assert "too much" in text_of(browser, "problem")
    set_budget(browser, "0.3")
    assert text_of(browser, "problem") == ""


@pytest.mark.parametrize("models", [(MODEL,), tuple(QUANTS)])
def test_the_command_on_the_page_writes_the_recipe_on_the_page(
    browser: Browser, tmp_path: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was measured: another size goes by another preset, on the page too."""
    monkeypatch.chdir(FIXTURES / "mix")  # the page knows files by their names
    page = tmp_path / "page.html"
    done = run_text("plan", *models, "--bpw", "5.3", "--types", "q4_0,q4_1,q5_0,q5_1,q8_0", "--html", str(page))
    assert done.returncode == 0, done.stderr
    browser.open(page)
    bases = set()
    for number, text in enumerate(("", "20.6KB", "23456", "31KiB")):
        if text:
            set_budget(browser, text)
        words = command_on(browser)
        again = run_text(*words[1:-1], str(tmp_path / f"{number}.recipe"))
        assert again.returncode == 0, again.stderr
        recipe = (tmp_path / f"{number}.recipe").read_text()
        assert rules_on(browser) == rules_in(recipe)
        bases.add(next(line for line in recipe.splitlines() if line.startswith("# basis")))
    assert len(bases) > 1
    made = command_on(browser, "make-command")
    assert made[:2] == ["gguftool", "quantize" if models == (MODEL,) else "merge"]
    (tmp_path / "mix.recipe").write_text(text_of(browser, "recipe"))
    words = [str(tmp_path / word) if word.startswith("mix.") else word for word in made[1:]]
    assert run_text(*words).returncode == 0


def test_a_large_model_is_chosen_alike(browser: Browser, tmp_path: Path) -> None:
    offered, evidence = large_offers()
    options = MixOptions(target=Target(bits=4.0), engine="ik_llama.cpp")
    browser.open(written(tmp_path, page_of_offers(offered, options, evidence)))
    size = sum(offer.elements for offer in offered.offers) * 37 // 80
    set_budget(browser, str(size))
    mix = choose_mix(offered, replace(options, target=Target(tensor_bytes=size)), evidence)
    assert rules_on(browser) == rules_of(mix)


def test_what_the_page_cannot_choose_it_says(browser: Browser, tmp_path: Path) -> None:
    known = cooking.measured_evidence()
    options = MixOptions(target=Target(tensor_bytes=SIZES[1]), max_types=2)
    browser.open(smollm2_page(tmp_path, options, known))
    kinds = {rule.rpartition("=")[2] for rule in rules_on(browser)}
    set_budget(browser, "72MB")
    assert {rule.rpartition("=")[2] for rule in rules_on(browser)} == kinds
    assert len(kinds) == 2
    assert "the command line also chooses which types those are" in browser.run("document.body.innerText")
    two = MixOptions(target=Target(), devices=parse_devices(["GPU=7GiB", "CPU=40GiB"], parse_size))
    browser.open(written(tmp_path, page_of_offers(moe(24), two, NOTHING), "free.html"))
    set_budget(browser, "6GiB", 0)
    assert "the command line also chooses where they go" in browser.run("document.body.innerText")
    assert text_of(browser, "problem") == ""
    used = browser.run("[...document.querySelectorAll('.budget .used')].map(one => one.textContent)")
    assert all(" used, " in one and one.endswith(" free") for one in used)
