"""Edit: change metadata, and write as little as possible for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguftool.errors import PlanError, printable
from gguftool.format.file_names import SPLIT_KEYS
from gguftool.format.header import ALIGNMENT_KEY
from gguftool.format.kv import KV
from gguftool.model.layout import Dialect, OutputOptions, check_sizes, gguf_file
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.padding import PADDING_KEY, Filler
from gguftool.record import record, replace
from gguftool.storage.plan import NEW_FILE, OutputFile, Plan, congruent_bytes, in_place
from gguftool.surgery.compatibility import require_complete
from gguftool.surgery.metadata import LAYOUT_KEYS
from gguftool.surgery.shards import NO_CHANGES, recorded_sequence, replace_shards, rewrite_set

# Key -> the command that changes it.
_NOT_BY_EDIT = dict.fromkeys(SPLIT_KEYS, "split and merge") | {ALIGNMENT_KEY: "merge --align N"}

_NO_FILLER = Filler()


@record
class Edits:
    """Changes of metadata, applied in this order: rename keys, remove keys, set values (in place, or at the end)."""

    rename: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    values: tuple[KV, ...] = ()


def edited(kvs: Sequence[KV], edits: Edits) -> tuple[KV, ...]:
    """Apply `edits` to `kvs`; raises one `PlanError` with all keys that are missing or must not be edited."""
    problems = []
    for key in (*edits.remove, *(name for pair in edits.rename for name in pair), *(kv.key for kv in edits.values)):
        if key in LAYOUT_KEYS or key in _NOT_BY_EDIT:
            way = _NOT_BY_EDIT.get(key, "gguftool itself")
            problems.append(f"{key} says how the file is laid out, and is changed by {way}")
    names = [kv.key for kv in kvs]
    for key in (*edits.remove, *(old for old, _ in edits.rename)):
        if key not in names and key not in LAYOUT_KEYS:
            problems.append(f"there is no key '{printable(key)}'")
    for _, new in edits.rename:
        if new in names:
            problems.append(f"'{printable(new)}' is there already; --remove it first")
    for side in zip(*edits.rename, strict=True):
        twice = sorted({key for key in side if side.count(key) > 1})
        problems += [f"'{printable(key)}' stands in two renames" for key in twice]
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


def plan_edit(model: ModelLike, edits: Edits, output: StrPath | None, filler: Filler = _NO_FILLER) -> Plan:
    """Plan `model` with `edits` as `output`, the prefix if it is a set; `output` None changes the model in place.

    Of a set only shard 1 is rewritten. `filler` pads the head for sharing or later edits; a filler that is there
    already is resized. Raises `PlanError` if an edit is impossible, or if in place the head of a single file cannot
    end where the old one did.
    """
    model, output = as_model(model), None if output is None else Path(output)
    require_complete(model)
    kvs = edited(model.kvs, edits)
    dialect = OutputOptions(filler=_kept(model, filler)).dialect_for(model)
    if len(model.files) > 1:
        sequence = recorded_sequence(model)
        if output is None:
            outputs, first_shard = replace_shards(model, kvs, NO_CHANGES, dialect)
            return Plan(
                outputs=outputs, inputs=model.sources, remarks=model.remarks, first_shard=first_shard, sequence=sequence
            )
        outputs = rewrite_set(model, kvs, NO_CHANGES, output, dialect)
        return Plan(outputs=outputs, inputs=model.sources, remarks=model.remarks, sequence=sequence)
    check_sizes(model.tensors.values(), dialect)
    if output is None:
        outputs = (_edit_in_place(model, kvs, dialect),)
    else:
        outputs = (gguf_file(output, kvs, tuple(model.tensors.values()), dialect),)
    return Plan(outputs=outputs, inputs=model.sources, remarks=model.remarks)


def _kept(model: Model, filler: Filler) -> Filler:
    """`filler`, which keeps the room that a filler in `model` has now."""
    if model.get(PADDING_KEY) is None:
        return filler
    return replace(filler, at_least=model.files[0].header.data_offset)


def _edit_in_place(model: Model, kvs: tuple[KV, ...], dialect: Dialect) -> OutputFile:
    """Replace the head of the only file; raises `PlanError` with the cost of a new file if the head does not fit."""
    base, old = model.files[0].source, model.files[0].header
    if model.get(PADDING_KEY) is not None or dialect.filler.pad:
        dialect = replace(dialect, filler=Filler(data_offset=old.data_offset))
    tensors = tuple(model.tensors.values())
    try:
        return in_place(gguf_file(Path(base.name), kvs, tensors, dialect), base)
    except PlanError as error:
        padded = replace(dialect, filler=Filler(pad=True))
        whole = gguf_file(Path(base.name), kvs, tensors, padded)
        raise PlanError(
            f"{error.message.removesuffix(NEW_FILE)}. A new file, -o OUT, takes {whole.size:,} bytes; with --pad, "
            f"{congruent_bytes(whole.copies):,} of them are shared where the file system can (XFS, btrfs), and "
            "--reserve 64KiB leaves room for the next edit in place",
            source=base.name,
        ) from None
