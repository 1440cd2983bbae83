"""Phrases that readers of English stumble over stay out of the docs, the help and the messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import REPO

STUMBLES = re.compile(r"\b(?:is|are) (?:said|remarked)\b|\bas many as pay\b|\bof theirs\b", re.IGNORECASE)
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "gguftool").rglob("*.py")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_no_phrase_that_readers_stumble_over(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page == REPO / "CHANGELOG.md":
        text = text.partition("## Unreleased")[2].partition("\n## ")[0]
    assert [match[0] for match in STUMBLES.finditer(text)] == []
