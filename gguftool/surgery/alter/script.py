"""Scripts of operations: the words of the command line, one per line, in a file to publish with a model.

    # reap.alter
    experts @keep.json
    fuse gate_up
    engine ik_llama.cpp

A ``#`` at the start of a line or after a blank starts a comment. Paths in a script are relative to its folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from gguftool.errors import PlanError, did_you_mean, printable

WORDS = (
    *("take", "drop", "keep", "rename", "unfuse", "fuse", "layers", "experts", "vocab", "set", "remove"),
    "engine",
)
MAX_SCRIPT = 1 << 20  # bytes
_WITH_FILE = frozenset({"layers", "experts", "vocab"})
_COMMENT = re.compile(r"(?:^|\s)#.*", re.DOTALL)


def parse_script(text: str, name: str) -> tuple[tuple[str, str], ...]:
    """Read the operations of the script called `name`: pairs of word and value.

    Raises one `PlanError` with all lines that are not an operation.
    """
    operations, problems = [], []
    for number, line in _lines(text):
        word, _, value = line.partition(" ")
        value = value.strip()
        if word not in WORDS:
            hint = did_you_mean(word.removeprefix("--"), WORDS) or f"; operations are {', '.join(WORDS)}"
            problems.append(f"line {number}: '{printable(word, 40)}' is not an operation{hint}")
        elif not value:
            problems.append(f"line {number}: '{word}' needs a value after it")
        else:
            operations.append((word, _in_folder(value, name) if word in _WITH_FILE else value))
    if problems:
        raise PlanError(f"{len(problems):,} line(s) cannot be read", source=name, problems=problems)
    return tuple(operations)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        bare = " ".join(_COMMENT.sub("", line).split(None, 1)).strip()
        if bare:
            yield number, bare


def _in_folder(value: str, name: str) -> str:
    """`value` with the path of an ``@FILE`` taken from the folder of the script; URLs stay."""
    path = value[1:]
    if not value.startswith("@") or "://" in path or "://" in name or PurePath(path).is_absolute():
        return value
    return f"@{PurePath(name).parent / path}"
