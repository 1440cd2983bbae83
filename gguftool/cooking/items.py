"""From offers to items: tensors that must have one type together, and the types that locks, floors and ceilings allow.

All contradictions are collected, so that one message lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from gguftool.cooking.offers import Offer
from gguftool.errors import Notes, printable
from gguftool.format.ftypes import no_such_type
from gguftool.format.ggml import find_type
from gguftool.format.pattern import BadPatternError, NamePattern, compile_pattern, literal, near_tensor
from gguftool.record import record

UP_GATE = "up-gate"
QKV = "qkv"
FUSED = (UP_GATE, QKV)
# Tensors that an engine computes as one if their types are the same. Source: ik_llama.cpp
# src/llama-build-context.cpp (-fmoe, fused up and gate, merged qkv).
_FUSED = {
    UP_GATE: re.compile(r"(?P<block>.*)ffn_(?:up|gate)(?P<kind>_exps|_shexp|_shexps|_chexps|)\.weight", re.DOTALL),
    QKV: re.compile(r"(?P<block>.*)attn_[qkv](?P<kind>)\.weight", re.DOTALL),
}


@record
class TypeRule:
    """A rule of --lock, --floor or --ceiling: tensors that `pattern` finds, and a type."""

    pattern: str
    regex: NamePattern
    type: str

    def matches(self, name: str) -> bool:
        """Whether the rule is about the tensor."""
        return bool(self.regex.search(name))


@record
class Constraints:
    """The user's constraints; `fuse`: which kinds of tensors get one type together."""

    fuse: tuple[str, ...] = (UP_GATE,)
    locks: tuple[TypeRule, ...] = ()
    floors: tuple[TypeRule, ...] = ()
    ceilings: tuple[TypeRule, ...] = ()


@record
class Item:
    """Tensors that get one type together: for each type on offer, the bytes of all of them."""

    tensors: tuple[str, ...]
    types: tuple[str, ...]
    nbytes: tuple[int, ...]
    device: str = ""
    locked: bool = False


def parse_type_rules(option: str, texts: Iterable[str], names: Iterable[str], notes: Notes) -> tuple[TypeRule, ...]:
    """Parse ``PATTERN=TYPE`` texts; a pattern that is one of `names` means only that tensor.

    Invalid texts are problems in `notes`.
    """
    known = frozenset(names)
    rules = []
    for text in texts:
        pattern, equals, target = text.rpartition("=")
        traits = find_type(target)
        if not equals or not pattern:
            notes.problem("is not REGEX=TYPE", f"{option} {text}")
        elif traits is None:
            notes.problem(no_such_type(target), f"{option} {text}")
        else:
            try:
                regex = compile_pattern(f"^{literal(pattern)}$" if pattern in known else pattern)
                rules.append(TypeRule(pattern=pattern, regex=regex, type=traits.alias))
            except BadPatternError as error:
                notes.problem(str(error), f"{option} {pattern}")
    return tuple(rules)


def make_items(
    offers: Sequence[Offer], constraints: Constraints, device_of: Callable[[str], str], notes: Notes
) -> tuple[Item, ...]:
    """Make the items of all offers that leave a choice; problems and remarks go to `notes`."""
    _report_idle(offers, constraints, notes)
    limits = _Limits(constraints, notes)
    allowed = {offer.name: limits.types_of(offer) for offer in offers if offer.choice}
    by_name = {offer.name: offer for offer in offers if offer.choice}
    items = []
    for members in _fused(list(by_name), constraints.fuse, device_of, notes):
        common = [text for text in allowed[members[0]] if all(text in allowed[name] for name in members)]
        if not common:
            if all(allowed[name] for name in members):  # else that tensor's own problem was reported
                own = "; ".join(f"{name}: {', '.join(allowed[name])}" for name in members)
                notes.problem(f"no type is left that all of these fused tensors can have ({own})", members[0])
            continue
        sizes = [dict(zip(by_name[name].types, by_name[name].nbytes, strict=True)) for name in members]
        items.append(
            Item(
                tensors=tuple(members),
                types=tuple(common),
                nbytes=tuple(sum(size[text] for size in sizes) for text in common),
                device=device_of(members[0]),
                locked=any(limits.is_locked(name) for name in members),
            )
        )
    return tuple(items)


class _Limits:
    """The types that the rules leave of each offer."""

    def __init__(self, constraints: Constraints, notes: Notes) -> None:
        self._rules, self._notes = constraints, notes

    def is_locked(self, name: str) -> bool:
        return any(rule.matches(name) for rule in self._rules.locks)

    def types_of(self, offer: Offer) -> tuple[str, ...]:
        """The types that are left for one tensor; none after a problem."""
        locks = {rule.type: rule for rule in self._rules.locks if rule.matches(offer.name)}
        if len(locks) > 1:
            both = " and ".join(f"{printable(rule.pattern, 80)}={rule.type}" for rule in locks.values())
            self._notes.problem(f"--lock {both} contradict each other", offer.name)
            return ()
        if locks:
            wanted = next(iter(locks))
            if wanted not in offer.types:
                self._notes.problem(f"--lock: {wanted} is not on offer ({', '.join(offer.types)})", offer.name)
                return ()
            return (wanted,)
        return self._between(offer)

    def _between(self, offer: Offer) -> tuple[str, ...]:
        """The types between all floors and ceilings, by their bits per weight."""
        low = max((_bits(rule.type) for rule in self._rules.floors if rule.matches(offer.name)), default=0.0)
        high = min((_bits(rule.type) for rule in self._rules.ceilings if rule.matches(offer.name)), default=1e9)
        left = tuple(text for text in offer.types if low <= _bits(text) <= high)
        if not left:
            asked = f"--floor and --ceiling ask for {low:g} to {high:g} bits"
            self._notes.problem(f"{asked}, which no type on offer has ({', '.join(offer.types)})", offer.name)
        return left


def _bits(type_text: str) -> float:
    traits = find_type(type_text)
    return traits.bits_per_weight if traits is not None else 0.0


def _report_idle(offers: Sequence[Offer], constraints: Constraints, notes: Notes) -> None:
    """Report rules that match no tensor: they are mistyped, or for another model."""
    chosen = [offer.name for offer in offers if offer.choice]
    fixed = [offer.name for offer in offers if not offer.choice]
    for option in ("locks", "floors", "ceilings"):
        for rule in getattr(constraints, option):
            if any(rule.matches(name) for name in chosen):
                continue
            what = "only tensors that stay as they are" if any(rule.matches(name) for name in fixed) else "no tensor"
            near = near_tensor(rule.pattern, chosen) if what == "no tensor" else ""
            notes.problem(f"--{option[:-1]} matches {what}", f"{rule.pattern}={rule.type}{near}")


def _fused(
    names: Sequence[str], kinds: Sequence[str], device_of: Callable[[str], str], notes: Notes
) -> list[list[str]]:
    """The names, grouped by fused tensors; not across devices, because engines cannot fuse those."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        match = next(((kind, found) for kind in kinds if (found := _FUSED[kind].fullmatch(name))), None)
        key: tuple[str, ...] = (name,)
        if match is not None:
            key = (match[0], match[1]["block"], match[1]["kind"], device_of(name))
        groups.setdefault(key, []).append(name)
    blocks: dict[tuple[str, ...], int] = {}
    for key in groups:
        if len(key) == 4:
            blocks[key[:3]] = blocks.get(key[:3], 0) + 1
    apart = sum(count > 1 for count in blocks.values())
    if apart:
        notes.remark(
            "fused tensors are on different devices, so their types are chosen separately", f"{apart:,} groups"
        )
    return list(groups.values())
