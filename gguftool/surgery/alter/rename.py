"""Rename tensors by a regular expression, and the keys that contain their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import cast

from gguftool.errors import PlanError, did_you_mean, listed
from gguftool.format.pattern import BadPatternError, compile_pattern
from gguftool.model.remap.names import rename_in_keys
from gguftool.record import replace
from gguftool.surgery.alter.state import Findings, State, renamed, shown

_MAX_NAME = 63  # bytes; GGML_MAX_NAME of both engines is 64, with the terminating zero


def rename(state: State, given: tuple[str, str], findings: Findings) -> State:
    r"""`state` with the first match of an expression in each name replaced; `given` is it and the new text (``\1``).

    Adds a problem if nothing matches, two tensors would share a name, or one is longer than engines read.
    """
    names = [item.name for item in state.items]
    renames = renames_of(given, names)
    if not renames:
        findings.problem(f"--rename: {shown(given[0])} matches no tensor{did_you_mean(given[0], names)}")
        return state
    findings.problem(*_problems(names, renames))
    changes = [f"{old} -> {name}" for old, name in renames.items() if old != name]
    if changes:
        findings.remark(f"renames {len(changes):,} tensor(s): {listed(changes, 4)}")
    return with_names(state, renames, findings)


def with_names(state: State, renames: Mapping[str, str], findings: Findings) -> State:
    """`state` with its tensors renamed (`renames`: old name -> new one), and the keys that contain the names."""
    names = {old: [new] for old, new in renames.items()}
    kvs = findings.add_changes(rename_in_keys(state.kvs, names, byte_order=state.model.byte_order))
    return replace(state, kvs=kvs, items=tuple(renamed(item, renames) for item in state.items))


def without_names(state: State, gone: Collection[str], findings: Findings) -> State:
    """`state` without the metadata about tensors that are `gone`."""
    changed = rename_in_keys(state.kvs, dict.fromkeys(gone, ()), byte_order=state.model.byte_order)
    return replace(state, kvs=findings.add_changes(changed))


def renames_of(given: tuple[str, str], names: Iterable[str]) -> dict[str, str]:
    """Map those of `names` that an expression matches to their new ones; raises `PlanError` if it is not valid."""
    pattern, new = given
    found: dict[str, str] = {}
    try:
        search = compile_pattern(pattern).search
        for name in names:
            match = cast("re.Match[str] | None", search(name))
            if match is not None:
                found[name] = name[: match.start()] + match.expand(new) + name[match.end() :]
    except BadPatternError as error:
        raise PlanError(f"--rename: {shown(pattern)} {error}") from None
    except (re.error, IndexError) as error:
        raise PlanError(f"--rename: {shown(new)} refers to a group that does not exist ({error})") from None
    return found


def _problems(names: list[str], renames: Mapping[str, str]) -> list[str]:
    before, after = set(names), [renames.get(name, name) for name in names]
    twice = [name for name, count in Counter(after).items() if count > 1]
    long = [name for name in after if len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME and name not in before]
    problems = [f"--rename: several tensors would be called {listed(twice, 4)}"] if twice else []
    if "" in after:
        problems.append("--rename: a tensor would have no name")
    return problems + (
        [f"--rename: engines read names of at most {_MAX_NAME} bytes: {listed(long, 4)}"] if long else []
    )
