"""Judge a SARIF log by the parts of the standard's schema that gguftool uses, and by what GitHub asks for besides.

Source: sarif-schema-2.1.0.json of the OASIS standard (required properties, allowed ones, patterns), and GitHub's "SARIF
support for code scanning". An unknown property is a problem: the schema allows none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# Object -> property -> what it holds: a type, an object's name, a list of one of these, or a set of words.
_SHAPES: dict[str, dict[str, Any]] = {
    "log": {"$schema": str, "version": {"2.1.0"}, "runs": ["run"]},
    "run": {"tool": "tool", "invocations": ["invocation"], "columnKind": {"utf16CodeUnits"}, "results": ["result"]},
    "tool": {"driver": "driver"},
    "driver": {"name": str, "version": str, "rules": ["rule"]},
    "rule": {
        "id": str,
        "shortDescription": "text",
        "fullDescription": "text",
        "help": "text",
        "helpUri": str,
        "defaultConfiguration": "configuration",
    },
    "text": {"text": str},
    "configuration": {"level": {"none", "note", "warning", "error"}},
    "invocation": {"executionSuccessful": bool},
    "result": {
        "ruleId": str,
        "ruleIndex": int,
        "level": {"none", "note", "warning", "error"},
        "message": "text",
        "locations": ["location"],
        "partialFingerprints": dict,
        "properties": dict,
    },
    "location": {"physicalLocation": "physical", "logicalLocations": ["logical"]},
    "physical": {"artifactLocation": "artifact", "region": "region"},
    "artifact": {"uri": str},
    "region": {"startLine": int},
    "logical": {"name": str, "kind": str},
}
_OPTIONAL = {"helpUri"}
_URI = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?(?:[A-Za-z0-9/~!$&'()*+,;=:@._-]|%[0-9A-Fa-f]{2})+(?:[?#].*)?")


def problems(log: Any) -> list[str]:
    """What is wrong with a log; nothing if it is valid."""
    return [*_object(log, "log", "log"), *(problem for run in log.get("runs", ()) for problem in _run(run))]


def _object(value: Any, shape: str, at: str) -> Iterator[str]:
    fields = _SHAPES[shape]
    if not isinstance(value, dict):
        yield f"{at} is no object"
        return
    yield from (f"{at} has the unknown property {name}" for name in value.keys() - fields.keys())
    yield from (f"{at} lacks {name}" for name in fields.keys() - value.keys() - _OPTIONAL)
    for name, kind in fields.items():
        if name in value:
            yield from _value(value[name], kind, f"{at}.{name}")


def _value(value: Any, kind: Any, at: str) -> Iterator[str]:
    if isinstance(kind, str):
        yield from _object(value, kind, at)
    elif isinstance(kind, set):
        if value not in kind:
            yield f"{at} is {value!r}"
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{at} is no list"
            return
        for number, item in enumerate(value):
            yield from _object(item, kind[0], f"{at}[{number}]")
    elif type(value) is not kind:
        yield f"{at} is no {kind.__name__}"
    elif value == "":
        yield f"{at} is empty"


def _run(run: dict[str, Any]) -> Iterator[str]:
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    if len(set(rules)) < len(rules):
        yield "rules are doubled"
    for result in run["results"]:
        if rules[result["ruleIndex"]] != result["ruleId"]:
            yield "ruleIndex is not that of ruleId"
        if not result["locations"]:
            yield "GitHub shows no result without a place"
        for location in result["locations"]:
            if not _URI.fullmatch(location["physicalLocation"]["artifactLocation"]["uri"]):
                yield f"no URI: {location}"
            if location["physicalLocation"]["region"]["startLine"] < 1:
                yield "lines are counted from 1"
