"""The output formats of reports."""

from __future__ import annotations

from enum import Enum


class Format(str, Enum):
    """How to render a report; each value is the name of its option. Text is the default."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    CSV = "csv"
    HTML = "html"
    SARIF = "sarif"
