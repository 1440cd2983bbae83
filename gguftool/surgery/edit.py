"""Edit: change metadata, and move as few bytes as possible for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguftool.errors import PlanError, printable
from gguftool.format.header import ALIGNMENT_KEY, KV
from gguftool.format.shards import SPLIT_KEYS
from gguftool.model.layout import Dialect, check_sizes, gguf_file
from gguftool.model.model import Model
from gguftool.storage.plan import Plan, in_place
from gguftool.surgery.common import LAYOUT_KEYS, require_complete
from gguftool.surgery.sets import replace_shards, rewrite_set

# Key -> the command that changes it.
_NOT_BY_EDIT = dict.fromkeys(SPLIT_KEYS, "split and merge") | {ALIGNMENT_KEY: "merge --align N"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What to change, in this order: rename keys, remove keys, set values (in the old place, or at the end)."""

    rename: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    values: tuple[KV, ...] = ()


def edited(kvs: Sequence[KV], edits: Edits) -> tuple[KV, ...]:
    """Return `kvs` with `edits` applied; `PlanError` lists keys that are not there or are not to be edited."""
    problems = []
    for key in (*edits.remove, *(name for pair in edits.rename for name in pair), *(kv.key for kv in edits.values)):
        if key in LAYOUT_KEYS or key in _NOT_BY_EDIT:
            way = _NOT_BY_EDIT.get(key, "gguftool itself")
            problems.append(f"{key} says how the file is laid out; {way} changes it")
    names = [kv.key for kv in kvs]
    for key in (*edits.remove, *(old for old, _ in edits.rename)):
        if key not in names:
            problems.append(f"there is no key '{printable(key)}'")
    for _, new in edits.rename:
        if new in names:
            problems.append(f"'{printable(new)}' is there already; --remove it first")
    if problems:
        raise PlanError("; ".join(problems))
    renamed = dict(edits.rename)
    result: list[KV] = [replace(kv, key=renamed.get(kv.key, kv.key)) for kv in kvs]
    result = [kv for kv in result if kv.key not in edits.remove]
    for value in edits.values:
        at = next((index for index, kv in enumerate(result) if kv.key == value.key), len(result))
        result = [kv for kv in result if kv.key != value.key]
        result.insert(at, value)
    return tuple(result)


def plan_edit(model: Model, edits: Edits, output: Path | None) -> Plan:
    """Plan `model` with `edits`; of a set only shard 1 is written anew. `output` None changes the file in place.

    Raises `PlanError` where an edit is impossible, or the new head of a single file does not end where the old one did.
    """
    require_complete(model)
    kvs = edited(model.kvs, edits)
    if len(model.files) > 1:
        if output is None:
            outputs, gate = replace_shards(model, kvs, {}, _dialect(model))
            return Plan(outputs=outputs, inputs=model.sources, remarks=model.remarks, gate=gate)
        outputs = rewrite_set(model, kvs, {}, output, _dialect(model))
        return Plan(outputs=outputs, inputs=model.sources, remarks=model.remarks)
    tensors = tuple(model.tensors.values())
    dialect = _dialect(model)
    check_sizes(tensors, dialect)
    base = model.files[0].source
    if output is not None:
        return Plan(outputs=(gguf_file(output, kvs, tensors, dialect),), inputs=(base,), remarks=model.remarks)
    changed = in_place(gguf_file(Path(base.name), kvs, tensors, dialect), base)
    return Plan(outputs=(changed,), inputs=(base,), remarks=model.remarks)


def _dialect(model: Model) -> Dialect:
    return Dialect(version=model.version, byte_order=model.byte_order, alignment=model.alignment)
