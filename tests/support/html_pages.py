"""Pages of models, and the models that pictures and browser tests show."""

from __future__ import annotations

import datetime
from pathlib import Path

from gguftool.analysis.metadata import metadata_rows
from gguftool.analysis.placement import parse_rules
from gguftool.analysis.report import report
from gguftool.model.opening import open_models
from gguftool.render.page.page import Made, report_html
from tests.support.big_moe import write_big_moe
from tests.support.hostile_text import HOSTILE
from tests.support.report_model import Spec, gguf, kv_text, moe_kvs

MADE = Made(version="1.2.3", day=datetime.date(2026, 11, 30))

INJECTIONS = (
    "<script>alert(1)</script>",
    "</style><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(5)",
)


def page_of(*paths: Path, places: tuple[str, ...] = ()) -> str:
    """The page that `report --html` makes of the models."""
    models = open_models(*paths)
    return report_html(report(models, parse_rules(places)), metadata=metadata_rows(models), made=MADE)


def three_big_moes(folder: Path) -> tuple[Path, Path, Path]:
    """Three mixes of one model, of 61 layers."""
    return (
        write_big_moe(folder / "big-IQ3.gguf"),
        write_big_moe(folder / "big-IQ2.gguf", up="IQ2_KS", down="IQ3_K"),
        write_big_moe(folder / "big-Q4.gguf", up="Q4_K", down="Q6_K"),
    )


def hostile_page(path: Path) -> str:
    """The page of a model, written to `path`, with all names that try to act on a page."""
    names = (*INJECTIONS, *HOSTILE[:3], *HOSTILE[4:], *(f"blk.0.attn_{text}" for text in INJECTIONS))
    path.write_bytes(
        gguf(
            [*moe_kvs(name=INJECTIONS[0]), *(kv_text(text, text) for text in names)],
            [Spec(name, (256,), "F32") for name in names],
        )
    )
    return page_of(path, places=(f"attn={INJECTIONS[0]}",))
