from __future__ import annotations

import base64
import datetime
import hashlib
import html
import re
import sys
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gguftool import __version__
from gguftool.analysis.report import report
from gguftool.errors import PlanError
from gguftool.model.opening import open_models
from gguftool.render.page.document import project_link
from gguftool.render.page.page import Made, report_html
from tests.support.html_pages import INJECTIONS, hostile_page, page_of
from tests.support.report_model import (
    Spec,
    gguf,
    golden,
    kv_text,
    kv_u32,
    moe_kvs,
    moe_tensors,
    write_moe,
    write_set,
)
from tests.support.text_command import run_text


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


def test_golden_page() -> None:
    page = page_of(write_moe(Path("moe.gguf"), layers=3), places=("exps=CPU",))
    page = re.sub(r"(<(style|script)>).*?(</\2>)", r"\1\3", page, flags=re.DOTALL)
    golden("report.html", re.sub("sha256-[A-Za-z0-9+/=]+", "sha256-", page))


def test_names_stay_text() -> None:
    page = Elements(hostile_page(Path("hostile.gguf")))
    assert sum(tag == "script" for tag, _ in page.found) == 1
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "a"} & {tag for tag, _ in page.found}
    for text in INJECTIONS:
        assert text in page.text
    attributes = {name for _, attributes in page.found for name in attributes}
    assert not {name for name in attributes if name.startswith("on") or name in {"src", "href", "style"}}


def test_nothing_that_reorders_or_controls_reaches_the_page() -> None:
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", hostile_page(Path("hostile.gguf"))
    )


def test_policy_allows_exactly_the_pages_own_style_and_script() -> None:
    page = hostile_page(Path("hostile.gguf"))
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
    assert len(re.findall(r'role="gridcell"[^>]*><button', page)) == len(made.models[0].by_layer[0].cells)


def test_the_headline_is_the_models_name_or_else_its_file() -> None:
    write_moe(Path("moe.gguf"), layers=2)
    assert headlines("moe.gguf") == ["Tiny <MoE> & Sons"]
    Path("nameless.gguf").write_bytes(gguf(moe_kvs()[:1], moe_tensors(2)))
    assert headlines("nameless.gguf") == ["nameless"]


def headlines(*names: str) -> list[str]:
    found = re.findall("<h1>(.*?)</h1>", page_of(*map(Path, names)))
    return [html.unescape(text) for text in found]


def test_folders_stay_private(tmp_path: Path) -> None:
    folder = tmp_path / "home of mine"
    folder.mkdir()
    first = write_set(folder, 3)
    for shard in folder.glob("big-*"):
        shard.rename(folder / f"part{shard.name[3:9]}.gguf")
    page = page_of(folder / f"part{first.name[3:9]}.gguf")
    assert 'gguftool merge "." -o model-merged.gguf' in html.unescape(page)
    assert "3 files: part-00001.gguf, part-00002.gguf" in page
    page += page_of(write_moe(folder / "moe.gguf"))
    assert "home of mine" not in page
    assert str(tmp_path) not in page


def test_a_full_bar_is_the_whole_model() -> None:
    page = page_of(write_moe(Path("moe.gguf"), layers=3))
    charts = re.findall(r"<h2>By (\w+)</h2>(.*?)</table>", page, re.DOTALL)
    assert [title for title, _ in charts] == ["type", "role", "layer"]
    for title, chart in charts[:2]:
        widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
        assert sum(widths) == pytest.approx(100, abs=0.1), title


def test_bars_have_names() -> None:
    found = Elements(page_of(write_moe(Path("moe.gguf"), layers=3))).found
    bars = [attributes for tag, attributes in found if tag == "svg"]
    assert bars
    assert all(bar["role"] == "img" and re.search(r"\w+: .* of the model", bar["aria-label"] or "") for bar in bars)


def test_metadata_with_long_values_that_unfold() -> None:
    kvs = [*moe_kvs(), kv_text("tokenizer.chat_template", "{{ one }}\n" * 40), kv_u32("deepseek2.block_count", 3)]
    Path("moe.gguf").write_bytes(gguf(kvs, moe_tensors(3)))
    page = page_of(Path("moe.gguf"))
    assert "5 metadata keys" in page
    assert re.search(r"<summary>\{\{ one \}\} \.\.\.</summary><pre>(\{\{ one \}\}\n){40}", page)
    assert ">deepseek2.block_count<" in page


def test_several_models_stand_side_by_side() -> None:
    write_moe(Path("a.gguf"), layers=2)
    write_moe(Path("b.gguf"), layers=3)
    page = page_of(Path("a.gguf"), Path("b.gguf"))
    assert "<h1>2 models compared</h1>" in page
    assert "a.gguf" in page
    assert "b.gguf" in page
    (row,) = re.findall(r"<tr[^>]*><td[^>]*>\d+</td><td[^>]*>blk\.2\.attn_q\.weight</td>.*?</tr>", page)
    assert 'class="differs"' in row
    assert 'data-label="#1">not there<' in row
    assert re.search(r'data-label="#2"><span class="chip c\d+">Q6_K</span> <span class="note">52.5 KiB<', row)
    (alike,) = re.findall(r"<tr[^>]*><td[^>]*>\d+</td><td[^>]*>blk\.0\.attn_q\.weight</td>.*?</tr>", page)
    assert "differs" not in alike


def test_layers_that_are_alike_are_marked_to_fold() -> None:
    page = page_of(write_moe(Path("moe.gguf")))
    rows = re.findall(
        r'<tr role="row"( class="same")?><th[^>]*><span class="one">(\d+)</span><span class="run">(.*?)<', page
    )
    assert [int(layer) for _, layer, _ in rows] == list(range(12))
    assert [run for same, _, run in rows if not same] == ["0", "1 to 4", "5", "6 to 10", "11"]


def test_the_last_line_has_version_and_day() -> None:
    page = page_of(write_moe(Path("moe.gguf"), layers=2))
    assert 'gguftool 1.2.3 on <time datetime="2026-11-30">2026-11-30</time>' in page


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        (["Documentation, https://docs.invalid", "Homepage, https://home.invalid"], "https://home.invalid"),
        (["Homepage, javascript:alert(1)"], ""),
        ([], ""),
    ],
)
def test_the_last_line_links_to_the_project_that_the_package_names(
    links: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = Message()
    for link in links:
        about["Project-URL"] = link
    monkeypatch.setattr("gguftool.render.page.document.metadata", lambda name: about)
    assert project_link() == expected
    made = report(open_models(write_moe(Path("moe.gguf"), layers=2)))
    page = report_html(made, made=Made(version="1", day=datetime.date(2026, 11, 30), link=project_link()))
    hrefs = [attributes["href"] for tag, attributes in Elements(page).found if tag == "a"]
    assert hrefs == ([expected] if expected else [])


def test_a_page_without_metadata_and_version() -> None:
    page = report_html(report(open_models(write_moe(Path("moe.gguf"), layers=2))))
    assert "metadata key" not in page
    assert "Made by gguftool.<" in page


def test_the_page_stays_small_whatever_the_file_holds() -> None:
    """A page of everything would have 25,000 rows and texts of megabytes."""
    tensors = [Spec(f"blk.{number}.{part}", (1,), "F32") for number in range(12_500) for part in ("attn_q", "ffn_up")]
    kvs = [kv_text(f"key.{number}", "<&>" * 800) for number in range(700)]
    Path("huge.gguf").write_bytes(gguf([*moe_kvs(), *kvs], tensors))
    page = page_of(Path("huge.gguf"))
    assert len(page) < 14_000_000
    assert "5,000 more rows are left out" in page
    assert "11,500 more layers are left out" in page
    assert "203 more rows are left out" in page


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
    assert page.partition("<footer>")[0] == page_of(Path("moe.gguf")).partition("<footer>")[0]
    assert re.search(rf"gguftool(</a>)? {re.escape(__version__)} on <time", page)
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


def test_page_of_a_model_without_tensors() -> None:
    Path("empty.gguf").write_bytes(gguf(moe_kvs(), []))
    page = Elements(page_of(Path("empty.gguf")))
    assert "no tensors" in page.text
    assert "0 tensors" in page.text
