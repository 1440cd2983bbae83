"""Pages of the docs site that are not in docs/: those at the top of the repository, and the Python API."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TOP = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
API = "# Python API\n\n::: gguftool\n"


def moved(link: re.Match[str]) -> str:
    """A link into the repository as the site has it; what the site does not hold becomes text."""
    text, target, anchor = link["text"], link["target"].removeprefix("../"), link["anchor"] or ""
    target = PAGES.get(target, target.removeprefix("docs/"))
    if target in PAGES.values() or (TOP / "docs" / target).exists():
        return f"[{text}]({target}{anchor})"
    return text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(TOP / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=API))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of `page` at the site's own pages."""
    return re.sub(r"\[(?P<text>[^\]]+)\]\((?P<target>[\w./-]+)(?P<anchor>#[\w-]+)?\)", moved, markdown)
