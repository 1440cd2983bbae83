"""The docs site shows every page of docs/."""

from __future__ import annotations

import re

from tests.support.paths import REPO


def test_every_page_stands_in_the_navigation_of_the_site() -> None:
    """mkdocs only notes a page without a place; a nav entry without a page is an error of `mkdocs build --strict`."""
    nav = (REPO / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r": ([\w-]+\.md)$", nav, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {page.name for page in (REPO / "docs").glob("*.md")} <= set(listed)
