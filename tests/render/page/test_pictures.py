"""The pictures of pages in docs/: all there, of the width that they claim, small."""

from __future__ import annotations

import re
import struct

import pytest

from tests.support.page_pictures import IMAGES, LARGEST, MODES, PAGES, SIZES, picture_path
from tests.support.paths import REPO


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize(("command", "page"), [(command, page) for command, pages in PAGES.items() for page in pages])
def test_a_picture_is_as_wide_as_it_claims_and_small(command: str, page: str, width: int, mode: str) -> None:
    data = picture_path(command, page, width, mode).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", data[16:20]) == (width,)
    assert len(data) <= LARGEST


@pytest.mark.parametrize(("command", "page"), [("report", "report.md"), ("plan", "cooking.md")])
def test_the_docs_show_every_picture(command: str, page: str) -> None:
    text = (REPO / "docs" / page).read_text(encoding="utf-8")
    shown = set(re.findall(r"\(images/(.*?)\)", text))
    assert shown == {path.name for path in IMAGES.glob(f"{command}-*.png")}
