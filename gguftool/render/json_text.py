r"""Report dataclasses as JSON that is valid whatever a file holds.

NaN and infinities become strings, integers stay integers up to 2^64, and text that is not UTF-8 is ``{"b64": ...}``.
Characters that a terminal could act on (C1, bidi marks) are written as ``\uXXXX``, which is the same JSON.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from enum import Enum
from pathlib import Path
from typing import Any

from gguftool.render.format import Format
from gguftool.render.registry import renders

_NOT_ASCII = re.compile(r"[^\n\x20-\x7e]+")


@renders(object, Format.JSON)
def render_json(report: Any, **_: Any) -> str:
    """Render a whole report (dataclasses, tuples, dicts, scalars) as indented JSON with a final newline."""
    text = json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _NOT_ASCII.sub(_escaped, text)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, (bool, int)):
        return value.name.lower() if isinstance(value, Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Path):
        return _text(str(value))
    if isinstance(value, dict):
        return {str(_key(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _text(text: str) -> str | dict[str, str]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return {"b64": base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")}
    return text


def _escaped(match: re.Match[str]) -> str:
    """Keep printable characters, and write the others with JSON's own escapes."""
    found = match[0]
    return found if found.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in found)


def _key(key: object) -> str:
    return str(key).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
