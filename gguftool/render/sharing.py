"""Reports fit to be shared: files by their names, without the folders of this machine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from gguftool.record import replace
from gguftool.storage.sources.locate import is_url

T = TypeVar("T")
_NAMING = frozenset({"model", "path", "paths", "file", "imatrix", "recipe"})  # fields that name files


def without_folders(report: T) -> T:
    """`report` with the names of local files in place of their paths, also within texts; addresses stay whole."""
    names = {path: _base(path) for path in _paths(report) if _base(path) != path}
    folders = {os.path.dirname(path) for path in names if os.path.isabs(path)}
    names |= {os.path.join(folder, ""): "" for folder in folders if os.path.dirname(folder) != folder}  # of new files
    longest_first = dict(sorted(names.items(), key=lambda item: -len(item[0])))
    shared: T = _replaced(report, longest_first) if names else report
    return shared


def _base(path: str) -> str:
    return path if is_url(path) else os.path.basename(path.rstrip("/\\")) or path


def _paths(value: Any, naming: bool = False) -> Iterator[str]:
    """The texts in fields that name files."""
    if isinstance(value, str):
        if naming:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _paths(item, naming)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _paths(getattr(value, field.name), field.name in _NAMING)


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for path, name in names.items():
            value = value.replace(path, name) if path in value else value
        return value
    if isinstance(value, tuple):
        return tuple(_replaced(item, names) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: _replaced(old, names) for name, old in fields.items()}
        return replace(value, **changed) if any(changed[name] is not fields[name] for name in fields) else value
    return value
