"""Which files are shards of one set: by their names, and if names are odd, by `split.no` and `split.count`.

Engines find shards only by name.  Browsers and importers change names, so a file without a shard's name is read to see
whether it is a shard.  The missing shards of a set are searched among the files next to it: under odd names, and under
other prefixes if these fill all gaps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from gguftool.errors import GGUFToolError, command_line, listed
from gguftool.format.file_names import KEY_COUNT, KEY_NO, KEY_TENSORS, ShardName, parse_shard_name
from gguftool.format.header import ARCHITECTURE_KEY, GENERAL_TYPE, Header
from gguftool.format.kv import INTEGERS, KV, ValueType
from gguftool.record import record, replace
from gguftool.storage.sources.locate import (
    base_name,
    can_list,
    for_each,
    is_url,
    open_source,
    siblings,
    unused_name,
    without_query,
)
from gguftool.storage.sources.source import Source

SUFFIX = ".gguf"
_NUMBERS = re.compile(r"-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})")
_ACCESSORIES = frozenset({"mmproj", "imatrix", "adapter", "controlvector", "clip"})
_ACCESSORY_NAME = re.compile(r"mmproj|imatrix")
_MAX_LOOKED_INTO = 64  # files of any name next to a set with gaps; files with a shard's numbers are all read

Reader = Callable[[Source], Header]


@record
class Member:
    """A file and its place in a set: by its name, else by its split keys; `header` if it was read to find out."""

    source: Source
    shard: ShardName | None
    header: Header | None = None


class Group:
    """The files of one set, in order, or one single file."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members: list[Member] = sorted(members, key=lambda member: member.shard.number if member.shard else 1)

    @property
    def count(self) -> int:
        """The number of shards of the set."""
        shard = self.members[0].shard
        return shard.count if shard else 1

    @property
    def numbers(self) -> set[int]:
        """The numbers of the existing shards."""
        return {member.shard.number if member.shard else 1 for member in self.members}

    @property
    def is_complete(self) -> bool:
        """Whether no shard is missing."""
        return len(self.numbers) == self.count

    @property
    def name(self) -> str:
        """The name of the first file."""
        return self.members[0].source.name

    @property
    def is_accessory(self) -> bool:
        """Whether this file accompanies a model: a projector, an imatrix, an adapter, a control vector."""
        head = self.members[0].header
        texts = [_text(head.get(key)) for key in (GENERAL_TYPE, ARCHITECTURE_KEY)] if head else []
        return bool(_ACCESSORIES.intersection(texts))

    @property
    def misnamed(self) -> tuple[Member, ...]:
        """The shards that engines would not find; `shard` has the names that they should have."""
        shard = self.members[0].shard
        if shard is None or shard.count < 2:
            return ()
        right = ((member, replace(member.shard or shard, prefix=shard.prefix)) for member in self.members)
        return tuple(
            replace(member, shard=name) for member, name in right if base_name(member.source.name) != _base(name)
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence if shards have names by which engines do not find them."""
        wrong = self.misnamed
        if not wrong or len(self.members) < 2:
            return ()
        names = listed([base_name(member.source.name) for member in wrong], 4)
        if len(wrong) == self.count:
            text = f"{self.count:,} shards of one set have wrong names"
        else:
            text = f"{len(wrong):,} of {self.count:,} shards of one set have wrong names: {names}"
        return (f"{text}; {self.merge_command()} merges them" if self.is_complete else text,)

    def merge_command(self) -> str:
        """The command that merges the set into one file."""
        shard, folder = self.members[0].shard, os.path.dirname(self.name)
        own = {member.source.name for member in self.members}
        whole_folder = not is_url(self.name) and set(siblings(self.name, SUFFIX)) == own
        stem = base_name(shard.prefix if shard else self.name)
        output = unused_name(f"{stem or 'model'}-merged{SUFFIX}")
        return command_line("merge", (folder or ".") if whole_folder else self.name, "-o", output)


def models_of(groups: Sequence[Group]) -> list[Group]:
    """The complete groups; if there are models among them, without the files that accompany these."""
    complete = [group for group in groups if group.is_complete]
    return [group for group in complete if not group.is_accessory] or complete


def models_among(names: Sequence[str]) -> list[str]:
    """The same from file names only, for files that cost a request each."""
    models = [name for name in names if not _ACCESSORY_NAME.search(base_name(name).lower())]
    return models or list(names)


def left_out(groups: Sequence[Group], model: Group) -> tuple[str, ...]:
    """Remarks on the files next to `model` that were left out."""
    others = [group for group in groups if group is not model]
    texts = (("of incomplete sets", False), ("that accompany a model", True))
    found = (
        (text, [one for group in others if group.is_complete == whole for one in group.members])
        for text, whole in texts
    )
    return tuple(
        f"left out {len(members)} file(s) {text} next to it: {listed([one.source.name for one in members], 3)}"
        for text, members in found
        if members
    )


def _base(name: ShardName) -> str:
    return base_name(str(name))


class Grouper:
    """Groups files; each head is read at most once."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._heads: dict[object, Header | None] = {}

    def group(self, sources: Sequence[Source], *, join: bool = True) -> list[Group]:
        """Group `sources`, in their order; with `join`, also join sets of several prefixes that fill their gaps."""
        named: dict[object, list[Member]] = {}
        others = []
        for source in sources:
            shard = parse_shard_name(source.name)
            if shard is None:
                others.append(source)
            else:
                named.setdefault((shard.prefix, shard.count), []).append(Member(source=source, shard=shard))
        groups = [Group(members) for members in named.values()]
        groups = self._with_odd_names(groups, self._members(others))
        groups = self._joined(groups) if join else groups
        places = {id(source): place for place, source in enumerate(sources)}
        return sorted(groups, key=lambda group: min(places[id(member.source)] for member in group.members))

    def with_gaps_filled(self, sources: Sequence[Source], *, join: bool) -> list[Group]:
        """Group `sources`, and files next to them that belong to a set among them."""
        groups = self.group(sources, join=join)
        known = {source.file_key for source in sources}
        beside = [one for group in groups if not group.is_complete for one in self._beside(group, known)]
        if not beside:
            return groups
        own = {id(source) for source in sources}
        every = self.group([*sources, *{source.file_key: source for source in beside}.values()])
        found = [group for group in every if any(id(member.source) in own for member in group.members)]
        return self.group([member.source for group in found for member in group.members], join=join)

    # -- heads

    def _head(self, source: Source) -> Header | None:
        """The head of `source`, or None if it cannot be read: whoever opens the file reports that."""
        if source.file_key not in self._heads:
            try:
                self._heads[source.file_key] = self._read(source)
            except GGUFToolError:
                self._heads[source.file_key] = None
        return self._heads[source.file_key]

    def _members(self, sources: Sequence[Source]) -> list[Member]:
        """The files without a shard's name, with their place by their split keys."""
        heads = for_each(sources, self._head, remote=any(source.is_remote for source in sources))
        return [
            Member(source=source, shard=_shard_by_keys(source, head), header=head)
            for source, head in zip(sources, heads, strict=True)
        ]

    def _read_whole(self, group: Group) -> Group:
        sources = [member.source for member in group.members]
        heads = for_each(sources, self._head, remote=any(source.is_remote for source in sources))
        return Group([replace(one, header=head) for one, head in zip(group.members, heads, strict=True)])

    # -- odd names

    def _with_odd_names(self, groups: list[Group], members: Iterable[Member]) -> list[Group]:
        """Put each file into the set that lacks it; the other files form sets among themselves."""
        found: dict[object, list[Member]] = {}
        prefixes = {_prefix(group) for group in groups}
        alike_first = sorted(members, key=lambda member: member.shard is None or member.shard.prefix not in prefixes)
        for member in alike_first:
            if member.shard is None:
                groups.append(Group([member]))
                continue
            home = self._home(groups, member)
            if home is not None:
                shard = home.members[0].shard or member.shard
                groups[groups.index(home)] = Group(
                    [*home.members, replace(member, shard=replace(member.shard, prefix=shard.prefix))]
                )
                continue
            key = (member.shard.prefix, member.shard.count, _total(member.header))
            alike = found.setdefault(key, [])
            if any(other.shard == member.shard for other in alike):
                groups.append(Group([member]))  # a second copy of a shard
            else:
                alike.append(member)
        return [*groups, *(Group(alike) for alike in found.values())]

    def _home(self, groups: Sequence[Group], member: Member) -> Group | None:
        """The one named set in the folder of `member` that lacks it, or the one with the same start of the name."""
        if member.shard is None:
            return None
        homes = [group for group in groups if self._takes(group, member)]
        if len(homes) > 1:
            alike = [group for group in homes if _prefix(group) == member.shard.prefix]
            homes = alike or [group for group in homes if member.source.name.startswith(_prefix(group))]
        return homes[0] if len(homes) == 1 else None

    def _takes(self, group: Group, member: Member) -> bool:
        first, shard = group.members[0], member.shard
        if shard is None or first.shard is None or parse_shard_name(first.source.name) is None:
            return False
        if group.count != shard.count or shard.number in group.numbers:
            return False
        if os.path.dirname(first.source.name) != os.path.dirname(member.source.name):
            return False
        totals = {total for head in (self._head(first.source), member.header) if (total := _total(head)) is not None}
        return len(totals) < 2

    # -- several prefixes

    def _joined(self, groups: list[Group]) -> list[Group]:
        """Join sets of one folder that fill each other's gaps, if their tensors are those of one model."""
        partial: dict[tuple[str, int], list[Group]] = {}
        for group in groups:
            if not group.is_complete:
                partial.setdefault((os.path.dirname(group.name), group.count), []).append(group)
        for (_, count), alike in partial.items():
            numbers = [number for group in alike for number in group.numbers]
            if len(alike) < 2 or sorted(numbers) != list(range(1, count + 1)):
                continue
            members = [member for group in alike for member in self._read_whole(group).members]
            if _are_one_model(members):
                groups = [*(group for group in groups if group not in alike), Group(members)]
        return groups

    # -- files next to a set with gaps

    def _beside(self, group: Group, known: set[object]) -> Iterator[Source]:
        """Open the files next to `group` that may be its missing shards."""
        if group.count < 2 or not can_list(group.name):
            return
        gaps = set(range(1, group.count + 1)) - group.numbers
        others = 0
        for name in siblings(group.name, SUFFIX):
            match = _NUMBERS.search(without_query(name))
            numbered = match is not None and int(match["count"]) == group.count and int(match["number"]) in gaps
            if not numbered:
                if is_url(name) or parse_shard_name(name) is not None or others >= _MAX_LOOKED_INTO:
                    continue
                others += 1
            try:
                source = open_source(name)
            except GGUFToolError:
                continue
            head = None if source.file_key in known else self._head(source)
            if head is not None and _integer(head.get(KEY_COUNT)) == group.count:
                yield source


def _prefix(group: Group) -> str:
    shard = group.members[0].shard
    return shard.prefix if shard else group.name


def _shard_by_keys(source: Source, head: Header | None) -> ShardName | None:
    """The place of a file by its split keys; its prefix is the part before the numbers in its name."""
    number, count = (_integer(head.get(key)) if head else None for key in (KEY_NO, KEY_COUNT))
    if number is None or count is None or not 0 <= number < count or count < 2:
        return None
    folder, base = os.path.split(without_query(source.name))
    match = _NUMBERS.search(base)
    return ShardName(
        prefix=os.path.join(folder, base[: match.start()] if match else ""), number=number + 1, count=count
    )


def _are_one_model(members: Sequence[Member]) -> bool:
    """Whether no tensor is there twice, and all shards agree on the byte order and the number of tensors."""
    heads = [member.header for member in members if member.header is not None]
    names = [info.name for head in heads for info in head.tensors]
    totals = {total for head in heads if (total := _total(head)) is not None}
    orders = {head.byte_order for head in heads}
    return len(heads) == len(members) and totals == {len(names)} == {len(set(names))} and len(orders) == 1


def _total(head: Header | None) -> int | None:
    return _integer(head.get(KEY_TENSORS)) if head else None


def _text(kv: KV | None) -> str:
    return str(kv.value()) if kv is not None and kv.type is ValueType.STRING else ""


def _integer(kv: KV | None) -> int | None:
    return int(kv.value()) if kv is not None and kv.type in INTEGERS else None
