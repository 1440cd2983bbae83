"""The findings of a check as SARIF 2.1.0, the format of GitHub's code scanning and of editors.

There is one result for each cause. Its place is a file, with a relative address if the file is below the current
folder: GitHub takes that folder as the root of the repository. Code scanning wants a line; GGUF files have no lines, so
it is line 1.

Source: the OASIS standard, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from gguftool.analysis.lint.check import CheckReport, CheckReports
from gguftool.analysis.lint.doctor import DIAGNOSES
from gguftool.analysis.lint.groups import FindingGroup
from gguftool.analysis.lint.rules import RULES, Finding, Severity
from gguftool.analysis.lint.titles import TITLES, anchor_of
from gguftool.errors import printable, without_secrets
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.storage.sources.locate import is_url

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_LIMIT: Final = 1 << 14
_NAMES: Final = 20  # tensors of a result that are listed as places
_SAFE: Final = "/~!$&'()*+,;=:@-._"


@renders(CheckReport, Format.SARIF)
def check_sarif(report: CheckReport) -> str:
    """Render the report as a log with one run; characters beyond ASCII are escaped."""
    return _log((report,))


@renders(CheckReports, Format.SARIF)
def reports_sarif(checked: CheckReports) -> str:
    """Render the reports on several models as one run: given two runs of one tool, GitHub takes only the last."""
    return _log(checked.reports)


def _log(reports: tuple[CheckReport, ...]) -> str:
    codes = sorted({code for report in reports for group in report.groups for code in group.codes})
    results = [
        _result(group, report.findings if report.readable else report.diagnoses, codes)
        for report in reports
        for group in report.groups
    ]
    run = {
        "tool": {"driver": _driver(codes)},
        "invocations": [{"executionSuccessful": all(report.readable for report in reports)}],
        "columnKind": "utf16CodeUnits",
        "results": results,
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _driver(codes: list[str]) -> dict[str, Any]:
    try:
        about = metadata("gguftool")
        version, links = about["Version"], about.get_all("Project-URL") or []
    except PackageNotFoundError:  # run from its sources
        version, links = "0", []
    page = next((link.partition(", ")[2] for link in links if link.startswith("Documentation, ")), "")
    return {"name": "gguftool", "version": version, "rules": [_rule(code, page) for code in codes]}


def _rule(code: str, page: str) -> dict[str, Any]:
    """Describe a code; `page` is the folder of docs/ on the web, or "" if the package does not name one."""
    sentences = {rule.code: rule.sentence for rule in reversed(RULES)} | DIAGNOSES
    title, anchor = TITLES.get(code, code), f"lint.md#{anchor_of(code)}"
    worst = max((rule.severity for rule in RULES if rule.code == code), default=Severity.ERROR)
    described = {
        "id": code,
        "shortDescription": {"text": title},
        "fullDescription": {"text": sentences.get(code, title)},
        "help": {"text": f"{title}. docs/{anchor} has causes and solutions."},
        "defaultConfiguration": {"level": _LEVELS[worst]},
    }
    return described | ({"helpUri": f"{page.rstrip('/')}/{anchor}"} if page else {})


def _result(group: FindingGroup, findings: tuple[Finding, ...], codes: list[str]) -> dict[str, Any]:
    first = findings[group.findings[0]]
    code = group.codes[0]
    message = f"{group.where}: {group.message}" if group.where else group.message
    said = "\n".join(printable(text, _LIMIT) for text in (message, group.way_out) if text)
    uri = uri_of(first.file)
    print_of = "\0".join((code, uri, group.cause, group.where, *group.engines))
    return {
        "ruleId": code,
        "ruleIndex": codes.index(code),
        "level": _LEVELS[group.severity],
        "message": {"text": said},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}},
                "logicalLocations": [
                    {"name": printable(name, _LIMIT), "kind": "member"} for name in group.tensors[:_NAMES]
                ],
            }
        ],
        "partialFingerprints": {"gguftool/v1": hashlib.sha256(os.fsencode(print_of)).hexdigest()},
        "properties": {
            "codes": list(group.codes),
            "engines": list(group.engines),
            "tensors": len(group.tensors),
            "command": printable(group.command, _LIMIT),
        },
    }


def uri_of(name: str) -> str:
    """Make the address of a file: relative if it is below the current folder, else absolute."""
    if is_url(name):
        return quote(without_secrets(name), safe=_SAFE + "%?#")
    path = Path(os.path.abspath(name))
    try:
        relative = path.relative_to(Path.cwd())
    except ValueError:
        return "file://" + quote(os.fsencode(path), safe="/")
    text = quote(os.fsencode(relative.as_posix()), safe="/")
    return text or "."
