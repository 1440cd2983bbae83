"""Edit: change metadata, and write as little as possible for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gguftool.errors import PlanError, command_line, did_you_mean, printable
from gguftool.format.file_names import SPLIT_KEYS
from gguftool.format.header import ALIGNMENT_KEY
from gguftool.format.kv import KV, ByteOrder
from gguftool.model.layout import Dialect, OutputOptions, check_sizes, gguf_file
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.padding import PADDING_KEY, Filler
from gguftool.record import record, replace
from gguftool.storage.plan import NEW_FILE, OutputFile, Plan, congruent_bytes, in_place
from gguftool.storage.sources.locate import new_name
from gguftool.storage.sources.source import Source
from gguftool.surgery.compatibility import require_complete
from gguftool.surgery.edit.settings import Setting, Values, read_file_setting, read_setting
from gguftool.surgery.edit.tokens import token_key, token_value
from gguftool.surgery.metadata import LAYOUT_KEYS
from gguftool.surgery.planned_head import is_judged_already, judge_planned
from gguftool.surgery.shards import NO_CHANGES, recorded_sequence, replace_shards, rewrite_set

# Key -> the command that changes it.
_NOT_BY_EDIT = dict.fromkeys(SPLIT_KEYS, "split and merge") | {ALIGNMENT_KEY: "merge --align N"}

_NO_FILLER = Filler()
_MAX_COMMAND = 2000  # characters of a command in a message


@record
class Edits:
    """Changes of metadata, applied in this order: rename and remove keys, then set values (in place, or at the end).

    `values`: whole entries; `settings`: ``KEY=[TYPE:]VALUE`` and ``KEY[INDEX]=[TYPE:]VALUE``, by default of the type
    that the key has; `file_settings`: the same with ``@FILE`` for the value, a JSON list for an array; `tokens`: name
    of a special token and text of the token, such as ``("eos", "<|im_end|>")``; `force_type`: let values change the
    type of an existing key.
    """

    rename: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    values: tuple[KV, ...] = ()
    settings: tuple[str, ...] = ()
    file_settings: tuple[str, ...] = ()
    tokens: tuple[tuple[str, str], ...] = ()
    force_type: bool = False


@record
class Edited:
    """Metadata after edits, remarks on what changed besides values, and the files that values were read from."""

    kvs: tuple[KV, ...]
    remarks: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


def check_settings(edits: Edits) -> None:
    """Check what can be checked without the model; raises `PlanError`, and `SourceError` for files."""
    for text in edits.settings:
        read_setting(text)
    for text in edits.file_settings:
        read_file_setting(text)
    for name, _ in edits.tokens:
        token_key(name)


def edited(kvs: Sequence[KV], edits: Edits, byte_order: ByteOrder = ByteOrder.LITTLE) -> Edited:
    """Apply `edits` to `kvs`; raises one `PlanError` with all keys that are missing or must not be edited."""
    before = [kv.key for kv in kvs]
    renamed = dict(edits.rename)
    keys = [renamed.get(key, key) for key in before]
    files = [read_file_setting(text, keys) for text in edits.file_settings]
    settings = files + [
        read_setting(text, keys) for text in edits.settings
    ]  # an element may be in an array from a file
    targets = (*(setting.target for setting in settings), *(kv.key for kv in edits.values))
    problems = [*_layout_problems(edits, targets), *_missing(edits, before), *_rename_problems(edits, before)]
    problems += _two_sources(files, settings[len(files) :])
    if problems:
        raise PlanError("; ".join(problems))
    left = [replace(kv, key=key) for kv, key in zip(kvs, keys, strict=True) if key not in edits.remove]
    values = Values(left, byte_order, force_type=edits.force_type)
    for value in edits.values:
        values.put(value)
    for setting in settings:
        values.apply(setting)
    values.finish()
    for name, text in edits.tokens:
        values.put(token_value(values.kvs, name, text, byte_order))
    sources = tuple(setting.source for setting in settings if setting.source is not None)
    return Edited(kvs=tuple(values.kvs), remarks=tuple(values.remarks), sources=sources)


def _layout_problems(edits: Edits, targets: Sequence[str]) -> list[str]:
    problems = []
    for key in (*edits.remove, *(name for pair in edits.rename for name in pair), *targets):
        if key in LAYOUT_KEYS or key in _NOT_BY_EDIT:
            way = _NOT_BY_EDIT.get(key, "gguftool itself")
            problems.append(f"{key} describes the layout of the file; it is changed by {way}")
    return problems


def _missing(edits: Edits, keys: Sequence[str]) -> list[str]:
    wanted = (*edits.remove, *(old for old, _ in edits.rename))
    absent = [key for key in wanted if key not in keys and key not in LAYOUT_KEYS]
    return [f"there is no key '{printable(key)}'{did_you_mean(key, keys)}" for key in absent]


def _rename_problems(edits: Edits, keys: Sequence[str]) -> list[str]:
    problems = [f"'{printable(new)}' already exists; --remove it first" for _, new in edits.rename if new in keys]
    for side in zip(*edits.rename, strict=True):
        twice = sorted({key for key in side if side.count(key) > 1})
        problems += [f"'{printable(key)}' is in two renames" for key in twice]
    return problems


def _two_sources(files: Sequence[Setting], settings: Sequence[Setting]) -> list[str]:
    given = {setting.target for setting in settings}
    twice = dict.fromkeys(setting.target for setting in files if setting.target in given)
    return [f"'{printable(target)}' is given by --set and by --set-file; leave one out" for target in twice]


def plan_edit(
    model: ModelLike,
    edits: Edits,
    output: StrPath | None,
    filler: Filler = _NO_FILLER,
    *,
    engines: Sequence[str] = (),
    anyway: bool = False,
) -> Plan:
    """Plan `model` with `edits` as `output`, the prefix if it is a set; `output` None changes the model in place.

    For a set, only shard 1 is rewritten. `filler` pads the head for sharing or later edits; an existing filler is
    resized. In place, a head that shrank gets one, so that it ends where the old one did. Raises `PlanError` if an edit
    is impossible, or if in place the head of a single file cannot end there; and, unless `anyway`, one with every
    reason why one of `engines` (default: both) would no longer load the model (`planned_head.judge_planned`).
    """
    model, output = as_model(model), None if output is None else Path(output)
    require_complete(model)
    result = edited(model.kvs, edits, model.byte_order)
    plan = _laid_out(model, result, edits, output, filler)
    if is_judged_already(result.kvs, model.tensors.values(), [model]):
        return plan
    return judge_planned(plan, [model], engines=engines, anyway=anyway)


def _laid_out(model: Model, result: Edited, edits: Edits, output: Path | None, filler: Filler) -> Plan:
    kvs, dialect = result.kvs, OutputOptions(filler=_kept(model, filler)).dialect_for(model)
    inputs, remarks = (*model.sources, *result.sources), (*model.remarks, *result.remarks)
    if len(model.files) > 1:
        sequence = recorded_sequence(model)
        if output is None:
            outputs, first_shard = replace_shards(model, kvs, NO_CHANGES, dialect)
            return Plan(outputs=outputs, inputs=inputs, remarks=remarks, first_shard=first_shard, sequence=sequence)
        outputs = rewrite_set(model, kvs, NO_CHANGES, output, dialect)
        return Plan(outputs=outputs, inputs=inputs, remarks=remarks, sequence=sequence)
    check_sizes(model.tensors.values(), dialect)
    if output is None:
        outputs = (_edit_in_place(model, kvs, dialect, edits),)
    else:
        outputs = (gguf_file(output, kvs, tuple(model.tensors.values()), dialect),)
    return Plan(outputs=outputs, inputs=inputs, remarks=remarks)


def _kept(model: Model, filler: Filler) -> Filler:
    """`filler`, at least as large as the filler that `model` has now."""
    if model.get(PADDING_KEY) is None:
        return filler
    return replace(filler, at_least=model.files[0].header.data_offset)


def _edit_in_place(model: Model, kvs: tuple[KV, ...], dialect: Dialect, edits: Edits) -> OutputFile:
    """Replace the head of the only file, with a filler if it shrank; raises `PlanError` with the way out."""
    base, old = model.files[0].source, model.files[0].header
    tensors = tuple(model.tensors.values())
    exact = replace(dialect, filler=Filler(data_offset=old.data_offset))
    wants_filler = model.get(PADDING_KEY) is not None or dialect.filler.pad
    try:
        return in_place(gguf_file(Path(base.name), kvs, tensors, exact if wants_filler else dialect), base)
    except PlanError as refused:
        error = refused
    if not wants_filler and base.file_id is not None:
        with suppress(PlanError):  # the first error tells more
            return in_place(gguf_file(Path(base.name), kvs, tensors, exact), base)
    padded = replace(dialect, filler=Filler(pad=True))
    whole = gguf_file(Path(base.name), kvs, tensors, padded)
    raise PlanError(
        f"{error.message.removesuffix(NEW_FILE)}. A new file (-o OUT) takes {whole.size:,} bytes; with --pad, "
        f"{congruent_bytes(whole.copies):,} of them are shared on file systems that can (XFS, btrfs), and "
        f"--reserve 64KiB leaves room for the next edit in place{_in_one_command(base.name, edits)}",
        source=base.name,
    )


def _in_one_command(name: str, edits: Edits) -> str:
    """The end of a message: the command that writes the edits to a new file, if it can be shown."""
    given = (
        *(("--rename", f"{old}={new}") for old, new in edits.rename),
        *(("--remove", key) for key in edits.remove),
        *(("--set", text) for text in edits.settings),
        *(("--set-file", text) for text in edits.file_settings),
        *(("--set-token", f"{token}={text}") for token, text in edits.tokens),
    )
    arguments = [argument for pair in given for argument in pair]
    arguments += ["--force-type"] if edits.force_type else []
    command = command_line("edit", name, *arguments, "--reserve", "64KiB", "-o", new_name(name))
    can_be_shown = not edits.values and len(command) <= _MAX_COMMAND
    return f": {command}" if can_be_shown else ""
