"""The pictures of the page in docs/: all there, of the width that they claim, small."""

from __future__ import annotations

import re
import struct

import pytest

from tests.support.page_pictures import IMAGES, LARGEST, MODES, PAGES, SIZES, picture_path
from tests.support.paths import REPO


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("page", PAGES)
def test_a_picture_is_as_wide_as_it_claims_and_small(page: str, width: int, mode: str) -> None:
    data = picture_path(page, width, mode).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", data[16:20]) == (width,)
    assert len(data) <= LARGEST


def test_the_docs_show_every_picture() -> None:
    text = (REPO / "docs" / "report.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\(images/(.*?)\)", text))
    assert shown == {path.name for path in IMAGES.glob("report-*.png")}
