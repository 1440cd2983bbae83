"""Make reports fit to share: files by their names, without local folders."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from gguftool.errors import printable, shell_word
from gguftool.record import replace
from gguftool.storage.sources.locate import is_url

T = TypeVar("T")
# Fields that name files: in any report, or in one record.
_NAMING = frozenset({"model", "path", "paths", "file", "imatrix", "recipe"})
_NAMING_IN = frozenset({"InputFile.name", "Rival.name"})
# The contents of a file are data: `{"value": "/data/x"}` stays as it is, even if `/data` is the model's folder.
_EXACT = frozenset(
    {
        "EntryDifference.new",
        "EntryDifference.old",
        "ImatrixReport.datasets",
        "KVEntry.value",
        "KVSide.value",
        "Mix.recipe",
    }
)
_SHOWN = 4096  # characters of a name in messages
# Within texts, a path begins where no other path, word or address continues.
_BEFORE = r"(?<![\w/.~%\\-])"


def without_folders(report: T, paths: Iterable[str] = (), *, below_here: bool = False) -> T:
    """Replace the paths of local files in `report` with their names, also within texts; addresses stay whole.

    `paths` are files that the report names in fields that can also hold other things. With `below_here`, a file in or
    below the current folder gets its relative path.
    """
    name_of = _relative if below_here else _base
    found = [path for path in (*_paths(report), *paths) if not is_url(path)]
    names = {path: name_of(path) for path in found if name_of(path) != path}
    folders = {os.path.dirname(path) for path in names if os.path.isabs(path)}
    names |= {os.path.join(folder, ""): "" for folder in folders if os.path.dirname(folder) != folder}  # of new files
    if not names:
        return report
    shared: T = _replaced(report, _replacer(names))
    return shared


def _base(path: str) -> str:
    return os.path.basename(path.rstrip("/\\")) or path


def _relative(path: str) -> str:
    """Make the path relative to the current folder; use only the file's name if it is elsewhere."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return _base(path)
    return _base(path) if relative.split(os.sep)[0] == os.pardir else relative


def _paths(value: Any, naming: bool = False) -> Iterator[str]:
    """Yield the texts in fields that name files."""
    if isinstance(value, str):
        if naming:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _paths(item, naming)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            names_file = field.name in _NAMING or f"{type(value).__name__}.{field.name}" in _NAMING_IN
            if f"{type(value).__name__}.{field.name}" not in _EXACT:
                yield from _paths(getattr(value, field.name), names_file)


def _replacer(names: Mapping[str, str]) -> Callable[[str], str]:
    """Replace the keys of `names` with their values, however messages and commands spell them."""
    spelled = dict(names)
    for path, name in names.items():
        spelled.setdefault(printable(path, _SHOWN), printable(name, _SHOWN))
        spelled.setdefault(shell_word(path).strip('"'), shell_word(name).strip('"'))  # the quotes stay
    longest_first = sorted(spelled, key=len, reverse=True)
    wanted = re.compile(f"{_BEFORE}(?:{'|'.join(map(re.escape, longest_first))})")
    return lambda text: wanted.sub(lambda match: spelled[match[0]], text)


def _replaced(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, tuple):
        return tuple(_replaced(item, clean) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: old if f"{kind}.{name}" in _EXACT else _replaced(old, clean) for name, old in fields.items()}
        return replace(value, **changed) if any(changed[name] is not fields[name] for name in fields) else value
    return value
