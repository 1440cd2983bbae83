"""Every report has its formats in one registry, and a new format is one decorated function."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gguftool.analysis.dump import dump
from gguftool.analysis.report import report
from gguftool.model.opening import open_model
from gguftool.render import registry
from gguftool.render.format import Format
from gguftool.render.registry import parts_of, render, renders
from gguftool.render.table import Table, render_text
from tests.support.command import environment
from tests.support.paths import FIXTURES

DEMO = str(FIXTURES / "demo.gguf")


def test_text_joins_the_parts_that_a_terminal_shows_one_by_one() -> None:
    found = dump(open_model(DEMO))
    heading, *tables = parts_of(found)
    assert isinstance(heading, str)
    assert all(isinstance(table, Table) for table in tables)
    assert render(found, Format.TEXT) == "\n".join([heading, *(render_text(table) for table in tables)])  # type: ignore[arg-type]


def test_options_reach_the_renderer_of_each_format() -> None:
    found = dump(open_model(DEMO))
    assert "21 tensors" in render(found, Format.TEXT)
    for chosen in (Format.TEXT, Format.MARKDOWN, Format.CSV):
        assert "token_embd.weight" not in render(found, chosen, tensors=False)
        assert "general.architecture" in render(found, chosen, tensors=False)
    assert "tensors" in json.loads(render(found, Format.JSON, tensors=False))


def test_a_new_format_is_one_decorated_function(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report((open_model(DEMO),), ())
    monkeypatch.setattr(registry, "_RENDERERS", dict(registry._RENDERERS))
    before = render(found, Format.CSV)

    @renders(type(found), Format.CSV)
    def shout(made: object, **_: object) -> str:
        return f"{type(made).__name__}!"

    assert render(found, Format.CSV) == "Report!" != before


def test_what_has_no_such_format_is_named() -> None:
    with pytest.raises(TypeError, match="no html of int"):
        render(3, Format.HTML)
    with pytest.raises(TypeError, match="no text of tuple"):
        render((), Format.TEXT)


def test_only_the_module_that_renders_the_report_is_imported() -> None:
    code = (
        "import sys\nfrom gguftool.analysis.report import report\nfrom gguftool.model.opening import open_model\n"
        "from gguftool.render.format import Format\nfrom gguftool.render.registry import render\n"
        f"render(report((open_model({DEMO!r}),), ()), Format.MARKDOWN)\n"
        "print(*sorted(name for name in sys.modules if name.startswith('gguftool.render.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment())
    loaded = {name.removeprefix("gguftool.render.") for name in done.stdout.split()}
    assert "models.report" in loaded
    assert not loaded & {
        "models.dump",
        "models.info",
        "diff",
        "findings.text",
        "json_text",
        "page.page",
        "plan",
        "cooking.quantize",
        "cooking.recipe",
    }
