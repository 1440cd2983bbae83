"""Phrases that readers of English stumble over stay out of the docs, the help and the messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import REPO

STUMBLES = (
    "are no multiple",
    "are passed over",
    "are remarked",
    "are said",
    "as is told",
    "as many as pay",
    "by whose",
    "for the one who asks",
    "for what it is worth",
    "in its stead",
    "in whose name",
    "is no multiple",
    "is passed over",
    "is remarked",
    "is said",
    "lies beside",
    "not told from",
    "of theirs",
    "so-called",
    "stands beside",
    "that has none",
    "that is none",
    "thereby",
    "where there is none",
    "wherein",
    "yield what",
)
# A phrase may be broken between lines.
PATTERN = re.compile("|".join(rf"\b{re.escape(phrase)}\b".replace(r"\ ", r"\s+") for phrase in STUMBLES), re.IGNORECASE)
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "gguftool").rglob("*.py")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_no_phrase_that_readers_stumble_over(page: Path) -> None:
    assert PATTERN.findall(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("phrase", STUMBLES)
def test_a_phrase_is_found_across_lines(phrase: str) -> None:
    assert PATTERN.search(f"It {phrase.capitalize().replace(' ', chr(10) + '    ')}, here.")
