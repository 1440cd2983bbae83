"""Rules about split sets: shards that are missing, renamed or contradictory, and what loaders require of them.

Sources: llama.cpp src/llama-model-loader.cpp and src/llama.cpp (llama_split_path); ik_llama.cpp the same files and
ggml/include/ggml.h (GGML_MAX_CONTEXTS).
"""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity, rule
from gguftool.analysis.lint.target import LintTarget
from gguftool.errors import listed, printable
from gguftool.format.engine_facts.engines import BOTH, IK, MAINLINE
from gguftool.format.file_names import IK_MAX_SHARDS, KEY_COUNT, KEY_NO, KEY_TENSORS
from gguftool.format.kv import ValueType
from gguftool.model.grouping import Group, Member
from gguftool.model.model import ModelFile
from gguftool.storage.sources.locate import base_name

IK_SAFE_SHARDS = 62  # the most that users report to load for inference
_NAME_OUT = "name shards PREFIX-00001-of-000NN.gguf by split.no + 1 and split.count, all with one PREFIX"


def _shown(file: ModelFile) -> str:
    return printable(file.source.name, 4096)


def _is_set(target: LintTarget) -> bool:
    return target.shard_count > 1


@rule("F20", Severity.ERROR, way_out="fetch them into the same folder")
def missing_shards(target: LintTarget) -> Iterator[Hit]:
    """Shards of the set are missing."""
    if target.missing and target.this_file_only:
        raise CannotEvaluate("only this file was asked for, so the rest of its set was not looked for")
    if target.missing:
        gaps = listed([str(number) for number in target.missing])
        message = f"{len(target.missing):,} of {target.shard_count:,} shards are missing: {gaps}"
        yield Hit(message=message, where=_shown(target.files[0]))
    elif len({file.shard.prefix for file in target.files if file.shard}) > 1 and not _all_tensors(target):
        yield Hit(
            message="there are parts of several sets here, and none is complete", where=printable(target.name, 4096)
        )


def _all_tensors(target: LintTarget) -> bool:
    return target.integer(KEY_TENSORS) == len(target.by_name)


@rule("F21", Severity.INFO, way_out="load shard 1; engines find the others by its name")
def later_shard(target: LintTarget) -> Iterator[Hit]:
    """This is a later shard of a set: it has no metadata, which is normal."""
    first = target.files[0]
    if not target.has_metadata and first.shard:
        message = f"shard {first.shard.number} of {first.shard.count}; the model's metadata is in shard 1"
        yield Hit(message=message, where=_shown(first))


@rule("F22", Severity.ERROR, way_out=_NAME_OUT)
def keys_against_name(target: LintTarget) -> Iterator[Hit]:
    """A shard's split keys contradict its name."""
    for file, keys in zip(target.files, target.split_keys, strict=True):
        if file.shard is None:
            continue
        pairs = ((KEY_NO, keys.number, file.shard.number - 1), (KEY_COUNT, keys.count, file.shard.count))
        for key, found, wanted in pairs:
            if found not in (None, wanted):
                yield Hit(message=f"{key} is {found}; by the file's name it should be {wanted}", where=_shown(file))


@rule(
    "F23",
    Severity.ERROR,
    way_out="shards of different sets were mixed, or one is from another version: fetch the set again",
)
def tensors_count(target: LintTarget) -> Iterator[Hit]:
    """split.tensors.count is not the number of tensors in the set."""
    totals: dict[int, ModelFile] = {}
    for file, keys in zip(target.files, target.split_keys, strict=True):
        if keys.tensors is not None:
            totals.setdefault(keys.tensors, file)
    if len(totals) > 1:
        shown = ", ".join(f"{total} in {_shown(file)}" for total, file in list(totals.items())[:4])
        yield Hit(message=f"shards differ: {shown}", where=printable(target.name, 4096))
    elif totals and _is_set(target):
        if target.missing or target.files[0].shard is None:
            raise CannotEvaluate("shards are missing, so their tensors cannot be counted")
        (total,) = totals
        if total != len(target.by_name):
            message = f"it is {total:,}, but the shards hold {len(target.by_name):,} tensors"
            yield Hit(message=message, where=_shown(target.files[0]))


@rule("F24", Severity.ERROR, way_out="one of the shards belongs to another set: fetch the set again")
def doubled_tensors(target: LintTarget) -> Iterator[Hit]:
    """A tensor is in more than one shard."""
    twice = tuple(t.name for t in target.tensors if target.by_name[t.name] is not t)
    if twice:
        yield Hit(message=f"{len(twice)} name(s) occur twice", tensors=twice)


@rule("F25", Severity.ERROR, way_out="fetch the set again, or convert the odd shard with gguf_convert_endian.py")
def byte_orders(target: LintTarget) -> Iterator[Hit]:
    """Shards have different byte orders."""
    odd = [file for file in target.files if file.header.byte_order is not target.files[0].header.byte_order]
    if odd:
        yield Hit(message=f"{len(odd)} shard(s) have another byte order than the first", where=_shown(odd[0]))


@rule("F26", Severity.ERROR, way_out=_NAME_OUT)
def renamed_shard(target: LintTarget) -> Iterator[Hit]:
    """A shard does not have the name by which engines look for it."""
    group = Group([Member(source=file.source, shard=file.shard) for file in target.files])
    for member in group.misnamed:
        wanted = base_name(str(member.shard))
        message = (
            f"the name of shard {member.shard.number if member.shard else 1} is not {wanted}, which engines look for"
        )
        out = f"{group.merge_command()} makes one file of them; or rename them" if group.is_complete else ""
        yield Hit(message=message, where=printable(member.source.name, 4096), way_out=out)


_H01_OUT = "'gguftool merge FILE -o NEW' makes one file that both engines load"


@rule("H01", Severity.ERROR, engines=BOTH, way_out=_H01_OUT)
def first_shard_keys(target: LintTarget) -> Iterator[Hit]:
    """Shard 1 lacks keys that loaders ask for."""
    if not _is_set(target) or target.files[0].shard is None:
        return
    if not target.has_metadata:
        raise CannotEvaluate("shard 1 is missing")
    first = next(file for file in target.files if file.shard is None or file.shard.number == 1)
    wanted = ((KEY_NO, ValueType.UINT16), (KEY_COUNT, ValueType.UINT16), (KEY_TENSORS, ValueType.INT32))
    for key, kind in wanted:
        kv = first.header.get(key)
        if kv is None or kv.type is not kind:
            found = "absent" if kv is None else kv.type.name
            yield Hit(message=f"{key} is {found}, loaders want {kind.name}", where=_shown(first))


@rule("H01", Severity.ERROR, engines=MAINLINE, way_out=_H01_OUT)
def later_shard_keys(target: LintTarget) -> Iterator[Hit]:
    """A later shard lacks split.no as u16."""
    for file in target.files:
        if file.shard is None or file.shard.number == 1:
            continue
        kv = file.header.get(KEY_NO)
        if kv is None or kv.type is not ValueType.UINT16:
            found = "absent" if kv is None else kv.type.name
            yield Hit(message=f"{KEY_NO} is {found}, llama.cpp wants UINT16", where=_shown(file))


@rule(
    "H01",
    Severity.ERROR,
    engines=IK,
    way_out="'gguftool merge FILE -o NEW' makes one file; or build ik_llama.cpp with -DGGML_MAX_CONTEXTS=2048",
)
def too_many_shards(target: LintTarget) -> Iterator[Hit]:
    """There are more shards than ik_llama.cpp opens."""
    count = target.shard_count
    if count > IK_SAFE_SHARDS:
        message = f"{count:,} shards; a default build opens {IK_MAX_SHARDS}, and inference needs a few of those itself"
        severity = Severity.ERROR if count > IK_MAX_SHARDS else Severity.WARNING
        yield Hit(message=message, where=_shown(target.files[0]), severity=severity)
