"""The parts of every page: template, style, script, and the policy that lets a browser run these and nothing else.

A page fetches nothing, and nothing from the model is code: the templates escape all text, the content security policy
allows exactly the page's own style and script (by their hashes, so neither must hold anything from the model), and
characters in a name that a terminal or a browser could act on (control characters, bidi marks) are shown escaped.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import PackageNotFoundError, metadata
from importlib.resources import files
from typing import Any

from gguftool.errors import PlanError, printable
from gguftool.render.page.palette import COLOURS

_TEXT_LIMIT = 4096


def render_document(template: str, **data: Any) -> str:
    """Fill a template of this folder with `data`.

    Raises `PlanError` if jinja2 is missing, with the command that installs it.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise PlanError("a page needs jinja2; get it with: pip install jinja2") from None
    css, js = colour_rules() + _resource("page.css"), _resource("page.js")
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
        keep_trailing_newline=True,
    )
    page = environment.get_template(template)
    return page.render(policy=policy(css, js), css=Markup(css), js=Markup(js), **data)


def project_link() -> str:
    """Find the address of the project in the installed package; "" if it names none."""
    try:
        links = metadata("gguftool").get_all("Project-URL") or []
    except PackageNotFoundError:  # run from its sources
        return ""
    named = dict(link.split(", ", 1) for link in links if ", https://" in link)
    return next((named[name] for name in ("Homepage", "Repository", "Documentation") if name in named), "")


def shown(value: Any) -> Any:
    """Escape what could reorder or hide text, in every plain string that a template prints."""
    return printable(value, _TEXT_LIMIT) if type(value) is str else value


def _resource(name: str) -> str:
    return files("gguftool.render.page").joinpath(name).read_text("utf-8")


def colour_rules() -> str:
    """Make a class for each colour; style attributes would need a laxer policy."""
    return "".join(
        f".c{index} {{ background: {back}; fill: {back}; color: {ink}; }}\n"
        for index, (back, ink) in enumerate(COLOURS)
    )


def policy(css: str, js: str) -> str:
    """Make the content security policy that allows this style and this script, and nothing else."""
    return f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
