"""pyproject.toml, CITATION.cff and the workflows say the same of the project."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import yaml

from tests.support.paths import REPO

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION: dict[str, Any] = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_says_what_the_package_says() -> None:
    assert CITATION["title"] == PROJECT["name"]
    assert CITATION["abstract"] == PROJECT["description"]
    assert CITATION["authors"] == PROJECT["authors"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["keywords"] == PROJECT["keywords"]


def test_the_citation_is_valid() -> None:
    pytest.importorskip("check_jsonschema", reason="no check-jsonschema: .venv/bin/pip install -e '.[dev]'")
    from check_jsonschema import main

    with pytest.raises(SystemExit) as ended:
        main(["--builtin-schema", "vendor.citation-file-format", str(REPO / "CITATION.cff")])
    assert ended.value.code == 0


def test_the_version_stands_in_one_place() -> None:
    version = re.findall(
        r'^__version__ = "(\d+\.\d+\.\d+)"$', (REPO / "gguftool" / "__init__.py").read_text("utf-8"), re.M
    )
    assert len(version) == 1
    assert "version" in PROJECT["dynamic"]
    assert "version" not in CITATION


def test_the_classifiers_name_the_pythons_that_the_workflow_tries() -> None:
    workflow = yaml.safe_load((REPO / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    named = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert named == workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
