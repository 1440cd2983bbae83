from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gguftool.analysis.placement import parse_rules
from gguftool.analysis.report import report
from gguftool.errors import PlanError
from gguftool.model.opening import open_models
from gguftool.render.page.page import report_html
from tests.support.hostile_text import HOSTILE
from tests.support.report_model import Spec, gguf, golden, moe_kvs, write_moe
from tests.support.text_command import run_text

INJECTIONS = (
    "<script>alert(1)</script>",
    "</style><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(5)",
)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Elements(HTMLParser):
    """Collects elements with their attributes, and the text of the document."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(path: Path, *places: str) -> str:
    return report_html(report(open_models(path), parse_rules(places)))


def hostile_page() -> str:
    names = (*INJECTIONS, *HOSTILE[:3], *HOSTILE[4:], *(f"blk.0.attn_{text}" for text in INJECTIONS))
    path = Path("hostile.gguf")
    path.write_bytes(gguf(moe_kvs(name=INJECTIONS[0]), [Spec(name, (256,), "F32") for name in names]))
    return page_of(path, f"attn={INJECTIONS[0]}")


def test_golden_page() -> None:
    page = page_of(write_moe(Path("moe.gguf"), layers=3), "exps=CPU")
    page = re.sub(r"(<(style|script)>).*?(</\2>)", r"\1\3", page, flags=re.DOTALL)
    golden("report.html", re.sub("sha256-[A-Za-z0-9+/=]+", "sha256-", page))


def test_names_stay_text() -> None:
    page = Elements(hostile_page())
    assert sum(tag == "script" for tag, _ in page.found) == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "a"} & {tag for tag, _ in page.found}
    for text in INJECTIONS:
        assert text in page.text
    attributes = {name for _, attributes in page.found for name in attributes}
    assert not {name for name in attributes if name.startswith("on") or name in {"src", "href", "style"}}


def test_nothing_that_reorders_or_controls_reaches_the_page() -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", hostile_page())


def test_policy_allows_exactly_the_pages_own_style_and_script() -> None:
    page = hostile_page()
    policy = next(
        attributes["content"] for _, attributes in Elements(page).found if "content-security-policy" in
        (attributes.get("http-equiv") or "").lower()
    )  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_page_needs_no_network() -> None:
    page = page_of(write_moe(Path("moe.gguf")))
    assert not re.search(r"https?:|//|url\(|@import", page.replace("<!DOCTYPE html>", ""))


def test_every_tensor_and_layer_is_there() -> None:
    made = report(open_models(write_moe(Path("moe.gguf"))))
    page = report_html(made)
    for tensor in made.models[0].tensors:
        assert f">{tensor.name}<" in page
    assert len(re.findall(r'<td class="c\d+" title="blk\.', page)) == len(made.models[0].by_layer[0].cells)


def test_several_models_on_one_page() -> None:
    write_moe(Path("a.gguf"), layers=2)
    write_moe(Path("b.gguf"), layers=3)
    page = report_html(report(open_models("a.gguf", "b.gguf")))
    assert page.count('<h1 class="label">') == 2
    assert "2 models" in page


def test_missing_jinja2_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(PlanError, match="pip install jinja2"):
        page_of(write_moe(Path("moe.gguf"), layers=2))


# --- the file --------------------------------------------------------------------------------------------------------


def test_page_is_written_once_and_replaced_only_by_force() -> None:
    write_moe(Path("moe.gguf"), layers=2)
    first = run_text("report", "moe.gguf", "--html", "out.html")
    assert (first.returncode, first.stderr) == (0, "")
    page = Path("out.html").read_text(encoding="utf-8")
    assert page == page_of(Path("moe.gguf"))
    Path("out.html").write_text("mine")
    again = run_text("report", "moe.gguf", "--html", "out.html")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert Path("out.html").read_text() == "mine"
    assert run_text("report", "moe.gguf", "--html", "out.html", "--force").returncode == 0
    assert Path("out.html").read_text(encoding="utf-8") == page
    assert sorted(path.name for path in Path().iterdir()) == ["moe.gguf", "out.html"]


def test_page_never_goes_through_a_link_nor_over_the_model() -> None:
    model = write_moe(Path("moe.gguf"), layers=2)
    before = model.read_bytes()
    Path("victim").write_text("mine")
    Path("link.html").symlink_to("victim")
    Path("same.html").hardlink_to(model)
    for target in ("link.html", "moe.gguf", "same.html"):
        done = run_text("report", "moe.gguf", "--html", target, "--force")
        assert done.returncode == 2, target
        assert "Traceback" not in done.stderr
    assert Path("victim").read_text() == "mine"
    assert model.read_bytes() == before


def chromium(page: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not program:
        pytest.skip("needs a headless Chromium: apt-get install chromium")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=2000 --dump-dom"
    command = [program, *flags.split(), *more.split(), f"--user-data-dir={profile}", page.absolute().as_uri()]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)


def test_in_a_browser_names_stay_text_and_the_script_runs(tmp_path: Path) -> None:
    Path("page.html").write_text(hostile_page(), encoding="utf-8")
    done = chromium(Path("page.html"), tmp_path / "profile")
    assert html.escape(INJECTIONS[0], quote=False) in done.stdout
    assert done.stdout.count("<script>") == 1
    assert "<img" not in done.stdout
    (field,) = re.findall(r'<input class="filter"[^>]*>', done.stdout)
    assert "hidden" not in field  # the page's script takes that away: its hash is allowed
    assert not re.search("Refused to|Content Security Policy|Uncaught", done.stderr)


def test_in_a_browser_columns_sort_and_the_filter_filters(tmp_path: Path) -> None:
    page = page_of(write_moe(Path("moe.gguf"), layers=3))
    steps = """
      document.querySelectorAll("table.tensors .sort")[4].click();
      document.querySelectorAll("table.tensors .sort")[4].click();
      const field = document.querySelector(".filter");
      field.value = "EXPS";
      field.dispatchEvent(new Event("input"));
    """
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    Path("page.html").write_text(page.replace("</body>", f"<script>{steps}</script></body>"), encoding="utf-8")
    dom = chromium(Path("page.html"), tmp_path / "profile").stdout
    rows = re.findall(r'<tr( hidden="")?><td class="n" data-v="\d+">\d+</td><td class="name">([^<]*)</td>.*?</tr>', dom)
    made = report(open_models("moe.gguf")).models[0].tensors
    sizes = {tensor.name: tensor.nbytes for tensor in made}
    order = [sizes[name] for _, name in rows]
    assert order == sorted(sizes.values(), reverse=True)
    assert {name for hidden, name in rows if not hidden} == {name for name in sizes if "exps" in name}


def test_page_of_a_model_without_tensors() -> None:
    Path("empty.gguf").write_bytes(gguf(moe_kvs(), []))
    page = Elements(page_of(Path("empty.gguf")))
    assert "no tensors" in page.text
    assert "0 tensors" in page.text
