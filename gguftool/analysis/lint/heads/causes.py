"""Find the key that many tensors contradict: with another value, all of them would match the metadata.

A wrong key shows in many tensors, and each is a contradiction by itself. So each number in the metadata is tried with
the values that the tensors suggest. A key is to blame if a value makes wrong tensors fit, and all others still fit.
Values are tried with one tensor of each kind first, and only the best of them with all; keys that these tensors do not
depend on are not tried. So the work is bounded, whatever a file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Final

from gguftool.analysis.lint.heads.hyperparameters import TOKENS, Hyperparameters
from gguftool.analysis.lint.target import LintTarget
from gguftool.analysis.lint.way_out import edit_command
from gguftool.format.engine_facts.heads import TensorFact
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import INTEGERS, ValueType, find_kv
from gguftool.record import record, replace

_PAIRS: Final = 6  # pairs of numbers, found and wanted, to derive values from
_KINDS: Final = 8  # tensors to try every value with
_TRIED: Final = 6  # values to try with all tensors
_LEAST: Final = 2  # tensors that speak against a key; a single one may be wrong itself
_COUNTS: Final = {"n_head": "attention.head_count", "n_expert": "expert_count"}
MAX_KEYS: Final = 3  # keys to name if each of them would explain it

Place = tuple[str, int]  # a tensor's name and its layer
Wanted = tuple[str, int, TensorFact]  # the same, and where an engine asks for it


@record
class Contradiction:
    """A tensor's dims, those that the metadata asks for, and both in words."""

    found: tuple[int, ...]
    wanted: tuple[int, ...]
    message: str


@record
class Judgement:
    """The tensors that were compared with the metadata, and those that contradict it."""

    places: frozenset[Place]
    wrong: Mapping[Place, Contradiction]


Judge = Callable[[Hyperparameters, Sequence[Wanted]], Judgement]


@record
class Blame:
    """A key, its value (for an array the number of elements), and the value `fitting` that `places` are made for."""

    key: str
    value: int
    fitting: int
    places: tuple[Place, ...]


def blamed(
    values: Hyperparameters, wanted: Sequence[Wanted], wrong: Mapping[Place, Contradiction], judge: Judge
) -> tuple[Blame, ...]:
    """Find keys that each explain most of what is `wrong`; empty if none explains several tensors.

    `judge` compares `wanted` tensors with other values.
    """
    kinds = {each.message: place for place, each in wrong.items()}
    few = frozenset(list(kinds.values())[:_KINDS])
    some = [each for each in wanted if each[:2] in few]
    tried: list[tuple[int, Blame]] = []
    for key, value in _numbers(values, _keys_behind(values, some, judge)):
        for fitting in sorted(_suggested(value, wrong)):
            judgement = judge(values.assuming({key: fitting}), some)
            if few <= judgement.places and (fixed := len(few) - len(judgement.wrong)):
                tried.append((fixed, Blame(key=key, value=value, fitting=fitting, places=())))
    best = sorted(tried, key=lambda each: -each[0])[:_TRIED]
    before = judge(values, wanted)
    found = [_explained(values, wanted, before, blame, judge) for _, blame in best]
    most = max((len(blame.places) for blame in found), default=0)
    return tuple(blame for blame in found if len(blame.places) == most >= _LEAST)


def _explained(
    values: Hyperparameters, wanted: Sequence[Wanted], before: Judgement, blame: Blame, judge: Judge
) -> Blame:
    """Add the tensors that a value explains: none if another tensor contradicts it or is then no longer asked for."""
    after = judge(values.assuming({blame.key: blame.fitting}), wanted)
    if after.places != before.places or not after.wrong.keys() <= before.wrong.keys():
        return blame
    return replace(blame, places=tuple(place for place in before.wrong if place not in after.wrong))


def _keys_behind(values: Hyperparameters, wanted: Sequence[Wanted], judge: Judge) -> Set[str]:
    """Find the keys that the dims of the `wanted` tensors depend on."""
    fresh = values.assuming({})
    judge(fresh, wanted)
    return fresh.keys_read


def _numbers(values: Hyperparameters, wanted: Set[str]) -> Iterator[tuple[str, int]]:
    """Yield the `wanted` keys that have numbers, in the engine's order, and the number of tokens."""
    keys = dict.fromkeys(values.name_of(fact) for fact in values.key_facts if fact.field)
    for key in filter(wanted.__contains__, keys):
        kv = values.kvs.get(key)
        if kv is not None and kv.type in INTEGERS and int(kv.value()) > 0:
            yield key, values.assumed.get(key, int(kv.value()))
    tokens = values.kvs.get(TOKENS)
    if tokens is not None and tokens.type is ValueType.ARRAY and TOKENS not in values.assumed:
        yield TOKENS, tokens.count


def _suggested(value: int, wrong: Mapping[Place, Contradiction]) -> Set[int]:
    """List values that dims suggest for a key of `value`: direct or inverse proportions, differences, and dims."""
    pairs: dict[tuple[int, int], None] = {}
    for each in wrong.values():
        pairs |= {(f, w): None for f, w in zip(each.found, each.wanted, strict=False) if f != w}
    made: set[int] = set()
    for found, wanted in list(pairs)[:_PAIRS]:
        made |= {found, value + found - wanted}
        for one, other in ((found, wanted), (wanted, found)):
            if other and value * one % other == 0:
                made.add(value * one // other)
    return {number for number in made if 0 < number != value}


def absent_cause(values: Hyperparameters, wrong: Mapping[Place, Contradiction]) -> str:
    """Find the absent key that makes engines compute dims of 0; "" if there is none."""
    if any(0 in each.wanted and 0 not in each.found for each in wrong.values()):
        for name, key in _COUNTS.items():
            full = f"{values.target.architecture}.{key}"
            if values.named(name) == 0 and full not in values.kvs:
                return full
    return ""


def set_number(target: LintTarget, key: str, number: int, *, does: str) -> str:
    """Write the command that changes a number in the metadata; "" if the key is absent or not a number."""
    kv = find_kv(target.kvs, key)
    if kv is None or kv.type not in INTEGERS:
        return ""
    force = () if kv.type is ValueType.UINT32 else ("--force-type",)  # engines read these numbers as u32
    return edit_command(target, "--set", f"{key}=u32:{number}", *force, does=does)


def set_layers(target: LintTarget) -> str:
    """Write the command that sets `block_count` to the layers present; "" if they are not consecutive and whole."""
    layers = len(target.layers)
    if not layers or max(target.layers) != layers - 1:
        return ""
    sizes = [len(roles) for roles in target.layers.values()]
    if 2 * sizes[-1] < max(sizes):  # the last is a scrap
        return ""
    return set_number(target, f"{target.architecture}.block_count", layers, does="counts the layers present")


def named_for(target: LintTarget) -> str:
    """Write the command that sets the architecture in the other keys' names; "" if they name no single other one."""
    names = {kv.key.removesuffix(".block_count") for kv in target.kvs if kv.key.endswith(".block_count")}
    if len(names) != 1 or target.architecture in names:
        return ""
    words = ("--remove", ARCHITECTURE_KEY) if find_kv(target.kvs, ARCHITECTURE_KEY) else ()
    setting = f"{ARCHITECTURE_KEY}=str:{names.pop()}"
    return edit_command(target, *words, "--set", setting, does="sets the one in the other keys' names")
