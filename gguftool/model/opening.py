"""Find and open the files of models: one file, any shard of a set, a folder, a glob.

Files are pooled first, each once by inode, then grouped by (folder, prefix, count): a glob that the shell expanded
means the same as a quoted one.  A group is complete if all its shards exist.  Reading is liberal: a set with missing
shards opens (and lists them); only shards that contradict each other are an error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from gguftool.errors import FormatError, GGUFToolError, SourceError, listed, printable, without_secrets
from gguftool.format.cursor import MAX_HEAD, NeedMoreData
from gguftool.format.file_names import KEY_COUNT, KEY_NO, KEY_TENSORS, ShardName, parse_shard_name
from gguftool.format.header import ARCHITECTURE_KEY, Header, parse
from gguftool.format.kv import INTEGERS, KV, ValueType, find_kv
from gguftool.model.grouping import SUFFIX, Group, Grouper, left_out, models_among, models_of
from gguftool.model.model import Model, ModelFile, Tensor, tensors_of
from gguftool.record import replace
from gguftool.storage.sources.locate import (
    PACKED,
    base_name,
    can_list,
    expand,
    for_each,
    is_packed,
    is_url,
    open_source,
    renamed,
    siblings,
    without_query,
)
from gguftool.storage.sources.sidecars import refuse_unfinished
from gguftool.storage.sources.source import FIRST_READ, AbsentError, RemoteSource, Source

StrPath: TypeAlias = str | os.PathLike[str]
ModelLike: TypeAlias = Model | StrPath

ORDER_KEY = "gguftool.tensor_order"
_FIRST_LOCAL_READ = 4 << 10  # holds the head of a shard; a model's head needs one or two larger reads
_GROWTH = 16
_REMOTE_READS = 3  # after this many guesses each read is as large as possible
_MAX_REQUESTED = 4096  # shards on a web server, one request each; published sets have up to 2,000
# First reads of remote shards after shard 1, which have no vocabulary, in bytes: of the first of them, and the least
# for the others, which depends on the size of the first one's head.
_FIRST_READ_OF_SHARD = 64 << 10
_LEAST_READ_OF_SHARD = 4 << 10
_FEW_SHARDS = 16  # with so few shards, spare bytes cost less than waiting for the first of them


def open_model(*specs: StrPath, this_file_only: bool = False) -> Model:
    """Open one model: the only complete group among the files that `specs` name, else the union of all files.

    Raises `SourceError` (no such file, or several models), `FormatError` (not GGUF, or contradictory shards).
    """
    groups = _groups([os.fspath(spec) for spec in specs], this_file_only, only_one=True)
    name = " ".join(without_secrets(os.fspath(spec)) for spec in specs)
    complete = models_of(groups)
    if len(complete) > 1:
        raise _several(name, [group.name for group in complete])
    if complete:
        model = _model_of_group(complete[0])
        return replace(model, remarks=(*model.remarks, *left_out(groups, complete[0])))
    if len(groups) == 1:
        return _model_of_group(groups[0])
    return _union(name, [_model_of_group(group) for group in groups])


def open_models(*specs: ModelLike, this_file_only: bool = False) -> tuple[Model, ...]:
    """Open every model among the files that `specs` name, complete or not, in the order of `specs`.

    Adjacent paths are pooled: shards that are named one by one are one model. An open model stands for itself.
    Raises `SourceError` (no such file), `FormatError` (not GGUF, or contradictory shards).
    """
    models: list[Model] = []
    for _, run in groupby(specs, lambda spec: isinstance(spec, Model)):
        paths = []
        for spec in run:
            if isinstance(spec, Model):
                models.append(spec)
            else:
                paths.append(os.fspath(spec))
        models += [_model_of_group(group) for group in _groups(paths, this_file_only, join=False)]
    return tuple(models)


def as_model(model: ModelLike) -> Model:
    """`model` itself, or the one at a path; raises as `open_model` does."""
    return model if isinstance(model, Model) else open_model(model)


def as_models(models: ModelLike | Sequence[ModelLike]) -> tuple[Model, ...]:
    """The models of one argument, or of several, which are pooled as in `open_models`; raises the same errors."""
    return (as_model(models),) if isinstance(models, Model | str | os.PathLike) else open_models(*models)


def as_source(source: Source | StrPath) -> Source:
    """`source` itself, or the file at a path; raises `SourceError` if it cannot be opened."""
    return source if isinstance(source, Source) else open_source(os.fspath(source))


def find_files(*specs: StrPath, this_file_only: bool = False) -> tuple[Group, ...]:
    """Find the files of every model that `specs` name; heads are read only if names are odd.

    For callers that examine files which `open_model` refuses. Raises `SourceError` if there are no such files.
    """
    return tuple(_groups([os.fspath(spec) for spec in specs], this_file_only))


def read_header(source: Source) -> Header:
    """Read the head of a GGUF file, and as little as possible of the rest.

    Raises `FormatError` with the source and the place, `SourceError` if it cannot be read.
    """
    remote = source if isinstance(source, RemoteSource) else None
    buffer = source.read_at(0, min(remote.first_read if remote else _FIRST_LOCAL_READ, source.size))
    reads = 1
    while True:
        try:
            header = parse(buffer, source.size)
            break
        except NeedMoreData as signal:
            # Locally, reading is cheap and parsing again is not; remotely, only the estimated size is fetched.
            guess = signal.likely if remote else max(signal.likely, len(buffer) * _GROWTH)
            if remote and reads >= _REMOTE_READS:  # large reads keep the number of requests small
                guess = max(guess, signal.needed + signal.needed // 2 + remote.first_read)
            size = min(source.size, max(signal.needed, guess), max(signal.needed, MAX_HEAD))
        except GGUFToolError as error:
            error.source = source.name
            if remote and error.where == "magic":
                error.message += f" (the server's answer: {remote.answer})"
            raise
        buffer += source.read_at(len(buffer), size - len(buffer))
        reads += 1
    if remote:
        remote.keep_head(buffer[: header.data_offset])
    return header


def read_headers(sources: Sequence[Source]) -> list[Header]:
    """Read the heads of several files, remote ones concurrently; raises the first error as `read_header` does."""
    return for_each(sources, read_header, remote=any(source.is_remote for source in sources))


# --- pooling and grouping --------------------------------------------------------------------------------------------


def _groups(specs: Sequence[str], this_file_only: bool, *, only_one: bool = False, join: bool = True) -> list[Group]:
    """The models among the files that `specs` name, with their other shards next to these."""
    sources, grouper = _pool(specs, this_file_only, only_one), Grouper(read_header)
    return grouper.group(sources, join=join) if this_file_only else grouper.with_gaps_filled(sources, join=join)


def _several(name: str, models: list[str]) -> SourceError:
    return SourceError(f"there are {len(models)} models here; name one of them: {listed(models)}", source=name)


def _refuse_several(spec: str, names: Iterable[str]) -> None:
    """Raise `SourceError` if a remote listing has several models: opening would fetch a MiB of each."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        shard = _shard_of(name) or ShardName(prefix=name, number=1, count=1)
        groups.setdefault((shard.prefix, shard.count), {})[shard.number] = name
    complete = models_among([found[1] for (_, count), found in groups.items() if len(found) == count])
    if len(complete) > 1:
        raise _several(without_secrets(spec), complete)


def _pool(specs: Sequence[str], this_file_only: bool, only_one: bool = False) -> list[Source]:
    """Open every file that `specs` name, and the shards next to a named shard, each file once.

    With `only_one`, several models in one remote folder are refused before any of them is opened.
    """
    names: dict[str, None] = {}
    derived: set[str] = set()
    sets: set[tuple[str, int]] = set()
    for spec in specs:
        for name in expand(spec, SUFFIX):
            names[name] = None
            shard = None if this_file_only else _shard_of(name)
            if shard is not None and (shard.prefix, shard.count) not in sets:
                sets.add((shard.prefix, shard.count))
                found = _shards_beside(name, shard)
                derived |= set() if can_list(name) else set(found) - {name}
                names |= dict.fromkeys(found)
    for name in [name for name in names if is_packed(name) and name.removesuffix(PACKED) in names]:
        del names[name]  # the decompressed file next to it is the same, and faster to read
    by_file: dict[object, Source] = {}
    if only_one and len(specs) == 1 and all(is_url(name) and can_list(name) for name in names):
        _refuse_several(specs[0], names)
    for first_shard in () if this_file_only else _first_shards(names):
        refuse_unfinished(first_shard)
    for name, source in zip(names, _open_all(list(names), derived - set(specs)), strict=True):
        if source is None:
            continue
        known = by_file.setdefault(source.file_key, source)
        if parse_shard_name(known.name) is None and _shard_of(name) is not None:
            by_file[source.file_key] = source  # of two names, the one that belongs to a set
    return list(by_file.values())


def _open_all(names: Sequence[str], derived: Collection[str]) -> list[Source | None]:
    """Open every file, remote ones concurrently; None for one of `derived` that does not exist."""
    first_reads: dict[tuple[str, int], int] = {}

    def open_one(name: str) -> Source | None:
        shard = _shard_of(name)
        later = first_reads.get((shard.prefix, shard.count), _FIRST_READ_OF_SHARD) if shard else 0
        try:
            return open_source(name, later if shard and shard.number > 1 else FIRST_READ)
        except AbsentError:
            if name in derived:
                return None
            raise

    opened: dict[str, Source] = {}
    for key, name in _samples(names).items():
        source = open_one(name)
        if source is not None:
            opened[name] = source
            first_reads[key] = _first_read_like(source)
    return for_each(names, lambda name: opened.get(name) or open_one(name), remote=any(map(is_url, names)))


def _samples(names: Iterable[str]) -> dict[tuple[str, int], str]:
    """The first shard after shard 1 of each remote set with many shards: prefix and count -> name."""
    later: dict[tuple[str, int], list[str]] = {}
    for name in filter(is_url, names):
        shard = _shard_of(name)
        if shard is not None and shard.number > 1:
            later.setdefault((shard.prefix, shard.count), []).append(name)
    return {key: found[0] for key, found in later.items() if len(found) > _FEW_SHARDS}


def _first_read_like(sample: Source) -> int:
    """Bytes to request of the other shards of a set: twice the head of `sample`, as estimated from its start."""
    try:
        head = parse(sample.read_at(0, min(_LEAST_READ_OF_SHARD, sample.size)), sample.size).data_offset
    except NeedMoreData as signal:
        head = signal.likely
    except GGUFToolError:  # reported when the set is read
        return _FIRST_READ_OF_SHARD
    return min(max(2 * head, _LEAST_READ_OF_SHARD), FIRST_READ)


def _shard_of(name: str) -> ShardName | None:
    return parse_shard_name(without_query(name))


def _first_shards(names: Iterable[str]) -> set[Path]:
    """Shard 1 of every local set among `names`: it is absent while a set is half old and half new."""
    shards = {(shard.prefix, shard.count) for name in names if not is_url(name) and (shard := _shard_of(name))}
    return {Path(str(ShardName(prefix=prefix, number=1, count=count))) for prefix, count in shards}


def _shards_beside(name: str, shard: ShardName) -> tuple[str, ...]:
    """The names of the set's shards next to `name`; all possible names if the server cannot list its files."""
    if not can_list(name):
        if shard.count > _MAX_REQUESTED:
            raise SourceError(
                f"belongs to {shard.count:,} shards by its name; a web server cannot list which it has, and "
                f"gguftool requests at most {_MAX_REQUESTED:,}: --this-file-only opens only this file",
                source=without_secrets(name),
            )
        end = PACKED if is_packed(name) else ""
        return tuple(renamed(name, f"{replace(shard, number=number)}{end}") for number in range(1, shard.count + 1))
    beside = ((other, _shard_of(other)) for other in siblings(name, SUFFIX))
    wanted = (shard.prefix, shard.count)
    return tuple(other for other, found in beside if found and (found.prefix, found.count) == wanted)


# --- one group -------------------------------------------------------------------------------------------------------


def _model_of_group(group: Group) -> Model:
    unread = [member.source for member in group.members if member.header is None]
    headers = dict(zip(map(id, unread), read_headers(unread), strict=True))
    files = tuple(
        ModelFile(source=one.source, header=one.header or headers[id(one.source)], shard=one.shard)
        for one in group.members
    )
    _refuse_contradictions(group.name, files)
    first = files[0]
    present = {file.shard.number for file in files if file.shard}
    missing = [
        str(replace(first.shard, number=number))
        for number in range(1, group.count + 1)
        if first.shard and number not in present
    ]
    return Model(
        name=group.name,
        files=files,
        kvs=first.header.kvs,
        tensors=MappingProxyType(_collect_tensors(group.name, files)),
        missing=tuple(missing),
        expected_tensors=_integer(first.header.get(KEY_TENSORS)),
        remarks=group.remarks,
    )


def _refuse_contradictions(name: str, files: Sequence[ModelFile]) -> None:
    """Raise one `FormatError` that lists every contradiction between shards and their names or each other."""
    problems = []
    totals: dict[int, ModelFile] = {}
    for file in files:
        if file.shard is None:
            continue
        number, count = _integer(file.header.get(KEY_NO)), _integer(file.header.get(KEY_COUNT))
        if number is not None and number != file.shard.number - 1:
            problems.append(f"{_shown(file)} says {KEY_NO} = {number}, but by its name it is {file.shard.number - 1}")
        if count is not None and count != file.shard.count:
            problems.append(f"{_shown(file)} says {KEY_COUNT} = {count}, but by its name it is {file.shard.count}")
        total = _integer(file.header.get(KEY_TENSORS))
        if total is not None:
            totals.setdefault(total, file)
        if file.header.byte_order is not files[0].header.byte_order:
            problems.append(f"{_shown(file)} has another byte order than the first shard")
    if len(totals) > 1:
        counts = ", ".join(f"{total} in {_shown(file)}" for total, file in totals.items())
        problems.append(f"{KEY_TENSORS} differs: {counts}")
    if problems:
        raise FormatError(f"shards contradict each other: {'; '.join(problems)}", source=name)


def _shown(file: ModelFile) -> str:
    return printable(base_name(file.source.name))


def _collect_tensors(name: str, files: Sequence[ModelFile]) -> dict[str, Tensor]:
    """Place the tensors of all files; raise one `FormatError` that names every duplicate."""
    tensors: dict[str, Tensor] = {}
    twice = []
    for file in files:
        for tensor in tensors_of(file.source, file.header):
            first = tensors.setdefault(tensor.info.name, tensor)
            if first is not tensor:
                names = (printable(t.padded_extent.source.name) for t in (first, tensor))
                twice.append(f"'{printable(tensor.info.name)}' in {' and '.join(names)}")
    if twice:
        shown = "; ".join(twice[:20]) + (f" and {len(twice) - 20:,} more" if len(twice) > 20 else "")
        raise FormatError(f"{len(twice)} tensor(s) are in more than one shard: {shown}", source=name)
    return _in_recorded_order(tensors, files[0].header.get(ORDER_KEY))


def _in_recorded_order(tensors: dict[str, Tensor], order: KV | None) -> dict[str, Tensor]:
    """Sort tensors by the order that a bundling split recorded; names not in it follow, in file order."""
    if order is None or order.type is not ValueType.ARRAY or order.element_type is not ValueType.STRING:
        return tensors
    recorded = [name for name in order.value() if name in tensors]
    return {name: tensors[name] for name in dict.fromkeys([*recorded, *tensors])}


def _integer(kv: KV | None) -> int | None:
    return int(kv.value()) if kv is not None and kv.type in INTEGERS else None


# --- several incomplete groups ---------------------------------------------------------------------------------------


def _union(name: str, models: list[Model]) -> Model:
    """Join incomplete sets into one model by their tensor names: downloads may have several prefixes."""
    donor = next((model for model in models if find_kv(model.kvs, ARCHITECTURE_KEY)), models[0])
    models = [donor, *(model for model in models if model is not donor)]
    files = tuple(file for model in models for file in model.files)
    if len({file.header.byte_order for file in files}) > 1:
        raise FormatError("the files differ in their byte order, so they cannot be one model", source=name)
    tensors = _collect_tensors(name, files)
    expected = donor.expected_tensors
    complete = expected == len(tensors)
    return Model(
        name=name,
        files=files,
        kvs=donor.kvs,
        tensors=MappingProxyType(tensors),
        missing=() if complete else _in_no_set(models),
        expected_tensors=expected,
        remarks=(f"there is no complete set here; {len(models)} partial ones are read as one model",),
    )


def _in_no_set(models: Sequence[Model]) -> tuple[str, ...]:
    """The shards that none of `models` has, if all are cut alike."""
    shards = [file.shard for model in models for file in model.files if file.shard]
    present = {shard.number for shard in shards}
    if len({shard.count for shard in shards}) != 1 or len(present) == shards[0].count:
        return tuple(shard for model in models for shard in model.missing)
    return tuple(str(replace(shards[0], number=n)) for n in range(1, shards[0].count + 1) if n not in present)
