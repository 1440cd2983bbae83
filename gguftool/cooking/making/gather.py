"""Find the shards that a recipe needs if every type has its own repository, with one tensor in each shard.

GGUF-Tool-Suite publishes repositories ``MODEL-MAINTAINER-QTYPE-SPECIAL_SPLIT``, each with a tensors.map.  A name with
``{QTYPE}`` in it stands for all of them; the recipe gives the types, the maps give the shards.  Only these are opened.
A folder without a map, such as an ordinary quant, is used with all its files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from gguftool.errors import Notes, PlanError, SourceError, grouped, listed, printable
from gguftool.format.engine_facts.fallback import keeps_type
from gguftool.format.file_names import normal_label, parse_shard_name
from gguftool.format.ggml import type_alias
from gguftool.format.recipe import Recipe
from gguftool.format.tensors_map import MapEntry
from gguftool.model.companions import read_map
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, open_model
from gguftool.record import record, replace
from gguftool.storage.sources.locate import PACKED, base_name, can_list, canonical, for_each, is_url, siblings
from gguftool.storage.sources.source import AbsentError
from gguftool.surgery.inputs import Input, as_inputs

_UPPER, _LOWER = "{QTYPE}", "{qtype}"
_FEW_NAMES = 8  # listed in a message


@record
class Repository:
    """The quant of one type: its folder, its map or None, and the names of its files, if known."""

    type_id: int
    folder: str
    map: str | None
    entries: tuple[MapEntry, ...] = ()
    names: frozenset[str] = frozenset()


@record
class Gathered:
    """Inputs for `merge` or `quantize`, their repositories, and the map's line of each shard by name."""

    inputs: tuple[Input, ...]
    repositories: tuple[Repository, ...]
    entries: Mapping[str, MapEntry]


def is_template(spec: str) -> bool:
    """Whether `spec` stands for one repository per type."""
    return _UPPER in spec or _LOWER in spec


def open_cook_inputs(
    sources: Input | ModelLike | Sequence[Input | ModelLike], recipe: Recipe
) -> tuple[tuple[Input, ...], tuple[Gathered, ...]]:
    """Open models, ``[LABEL=]MODEL`` names and templates as inputs; also return what was gathered for the templates.

    Raises as `open_model` and `gather` do.
    """
    if isinstance(sources, Input | Model | str | os.PathLike):
        sources = [sources]
    gathered = tuple(gather(spec, recipe) for spec in sources if isinstance(spec, str) and is_template(spec))
    plain = as_inputs([spec for spec in sources if not (isinstance(spec, str) and is_template(spec))])
    return (*(one for each in gathered for one in each.inputs), *plain), gathered


def gather(template: str, recipe: Recipe) -> Gathered:
    """Open the shards that `recipe` takes from the repositories that `template` stands for.

    Types without a repository are left to other inputs; norms in F32, for example, are in all of them.  Raises
    `SourceError` or `FormatError` for files that cannot be read, and `PlanError` if no type has a repository, or two
    maps list different tensors.
    """
    repositories, absent = _find(template, recipe)
    if not repositories:
        reasons = listed([f"{type_alias(type_id)}: {reason}" for type_id, reason in absent.items()], 4)
        raise PlanError(f"no type of the recipe has a repository: {reasons}", source=template)
    mapped = [one for one in repositories if one.map is not None]
    wanted = _assign(recipe, mapped) if mapped else {}
    inputs, lines = [], {}
    for one in repositories:
        if one.map is None:
            inputs.append(_input(open_model(one.folder), one.type_id))
            continue
        chosen = wanted.get(one.type_id, ())
        if not chosen and one is not mapped[0]:
            continue
        files = {canonical(_file(one, entry.file)): entry for entry in chosen}
        first = _first_shard(one) if one is mapped[0] else ()
        model = open_model(*first, *files, this_file_only=True)
        lines.update(files)
        inputs.append(_input(model, one.type_id))
    return Gathered(inputs=tuple(inputs), repositories=tuple(repositories), entries=lines)


def _input(model: Model, type_id: int) -> Input:
    # A set of few shards lacks the others on purpose: the check of the output finds what is missing.
    return Input(model=replace(model, remarks=()), given=(normal_label(type_alias(type_id)),))


def _find(template: str, recipe: Recipe) -> tuple[list[Repository], dict[int, str]]:
    """The repositories of the recipe's types, and the reasons for types without one."""
    types = tuple(dict.fromkeys(rule.type_id for rule in recipe.rules if rule.type_id is not None))
    absent: dict[int, str] = {}

    def look(type_id: int) -> Repository | None:
        try:
            return _repository(template, type_id)
        except SourceError as error:
            absent[type_id] = error.message
            return None

    found = for_each(types, look, remote=is_url(template))
    return [one for one in found if one is not None], absent


def _repository(template: str, type_id: int) -> Repository:
    alias = type_alias(type_id)
    filled = template.replace(_UPPER, alias.upper()).replace(_LOWER, alias.lower())
    folder = filled.rstrip("/") + "/"
    if not can_list(folder):
        name = f"{folder}tensors.map"
        return Repository(type_id=type_id, folder=folder, map=name, entries=read_map(name))
    maps = siblings(folder, ".map")
    names = frozenset(base_name(name) for name in siblings(folder, ".gguf"))
    if not names and not maps:
        raise AbsentError("no *.gguf and no tensors.map", source=folder)
    plain = [name for name in maps if base_name(name) == "tensors.map"] or list(maps)
    if len(plain) > 1:
        raise PlanError(f"has several maps: {listed([base_name(name) for name in plain])}", source=folder)
    if not plain:
        return Repository(type_id=type_id, folder=folder, map=None, names=names)
    return Repository(type_id=type_id, folder=folder, map=plain[0], entries=read_map(plain[0]), names=names)


# --- which shards ----------------------------------------------------------------------------------------------------


def _assign(recipe: Recipe, repositories: Sequence[Repository]) -> dict[int, list[MapEntry]]:
    """The lines of the shards to take, by the type of the repository."""
    lines = {one.type_id: {entry.tensor: entry for entry in one.entries} for one in repositories}
    _refuse_other_tensors(repositories, lines)
    names = list(next(iter(lines.values())))
    rules, notes = recipe.assign(names), Notes()
    wanted: dict[int, list[MapEntry]] = {}
    for name in names:
        rule = rules[name]
        if rule is not None and rule.type_id is None:
            continue  # taken from another input, by its label
        found = _source_of(name, None if rule is None else rule.type_id, lines)
        if found is None and rule is None:
            notes.problem("no rule matches it, and the maps have it in several types", name)
        elif found is not None:
            wanted.setdefault(found, []).append(lines[found][name])
    if notes.problems:
        raise PlanError("cannot gather shards", problems=grouped(notes.problems))
    return wanted


def _source_of(name: str, type_id: int | None, lines: Mapping[int, Mapping[str, MapEntry]]) -> int | None:
    """The repository to take a tensor from: its own type's, else one that has it in that type, else its own."""
    holders = [key for key in lines if name in lines[key]]
    if type_id is None:
        kinds = {lines[key][name].dtype for key in holders}
        return holders[0] if len(kinds) == 1 else None
    exact = [key for key in holders if lines[key][name].type_id == type_id]
    if exact:
        return type_id if type_id in exact else exact[0]
    if type_id in holders:
        return type_id  # not pure: merge reports the type that it has there
    entry = lines[holders[0]][name]
    return holders[0] if keeps_type(name, entry.shape) else None


def _refuse_other_tensors(repositories: Sequence[Repository], lines: Mapping[int, Mapping[str, MapEntry]]) -> None:
    """Raise `PlanError` if the maps list different tensors: then they belong to different models."""
    first = repositories[0]
    for other in repositories[1:]:
        odd = sorted(lines[first.type_id].keys() ^ lines[other.type_id].keys())
        if odd:
            shown = listed([printable(name, 80) for name in odd], _FEW_NAMES)
            raise PlanError(f"{first.map} and {other.map} belong to different models: only one of them lists {shown}")


def _file(one: Repository, name: str) -> str:
    """The shard of a map's line, next to the map; a line must not make us read anything else."""
    if parse_shard_name(name) is None or "/" in name or "\\" in name:
        raise PlanError(f"'{printable(name, 120)}' is not the name of a shard", source=one.map)
    if one.names and name not in one.names and name + PACKED in one.names:
        name += PACKED
    return one.folder + name


def _first_shard(one: Repository) -> tuple[str, ...]:
    """Shard 1, which has the metadata and no line in the map."""
    shard = parse_shard_name(one.entries[0].file) if one.entries else None
    if shard is None:
        raise PlanError("lists no shards", source=one.map)
    return (_file(one, str(replace(shard, number=1))),)


def first_shard(gathered: Gathered) -> str | None:
    """The shard with the metadata, which no map has a hash of; None without maps."""
    mapped = [one for one in gathered.repositories if one.map is not None]
    return _first_shard(mapped[0])[0] if mapped else None
