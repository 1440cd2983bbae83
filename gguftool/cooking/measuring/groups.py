"""Choose which tensors are measured, and which of them together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from gguftool.errors import PlanError, did_you_mean, printable
from gguftool.format.engine_facts.fallback import keeps_type
from gguftool.format.pattern import BadPatternError, NamePattern, compile_pattern
from gguftool.model.model import Model
from gguftool.model.roles import tensor_place
from gguftool.model.scales import owner_of
from gguftool.record import record
from gguftool.surgery.selection import select_tensors

_BASE = re.compile(r"(?:[\w.]*?blk\.\d{1,6}\.)?(.+?)(?:\.weight)?", re.ASCII)


@record
class Grouping:
    """How to group: ``none`` (each tensor by itself), ``role``, ``layer``, or `rules` of (regex, name)."""

    way: str = "none"
    rules: tuple[tuple[str, str], ...] = ()


def parse_grouping(texts: Sequence[str]) -> Grouping:
    """Parse the values of --group; raises a `ValueError` that describes the problem."""
    words = [text for text in texts if text in _WAYS]
    if words and len(texts) > 1:
        raise ValueError(f"'{words[0]}' and another grouping exclude each other")
    if words:
        return Grouping(way=words[0])
    rules = []
    for text in texts:
        regex, found, name = text.rpartition("=")
        if not (found and regex and name):
            near = did_you_mean(text, _WAYS)
            raise ValueError(f"'{printable(text)}' is neither none, role, layer nor REGEX=NAME{near}")
        try:
            compile_pattern(regex)
        except BadPatternError as error:
            raise ValueError(f"'{printable(regex)}' {error}") from None
        rules.append((regex, name))
    return Grouping(way="rules", rules=tuple(rules)) if rules else Grouping()


def measurable(model: Model, engine: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """The tensors that the llama-quantize of `engine` quantizes, and that `patterns` match if there are any.

    Raises `PlanError` for patterns that match none of them.
    """
    names = [
        name
        for name, tensor in model.tensors.items()
        if tensor.info.elements
        and not keeps_type(name, tensor.info.dims, tensor.type_name, engine)
        and owner_of(model.tensors, name) is None
    ]
    if not names:
        raise PlanError("has no tensors that can be quantized", source=model.name)
    return select_tensors(patterns, tuple(names)) if patterns else tuple(names)


def grouped(names: Iterable[str], grouping: Grouping) -> dict[str, tuple[str, ...]]:
    """Map groups to their tensors, both in the order of `names`; a tensor without a rule is a group of its own."""
    found: dict[str, list[str]] = {}
    rules = [(compile_pattern(regex), name) for regex, name in grouping.rules]
    for name in names:
        found.setdefault(_group(name, grouping.way, rules), []).append(name)
    return {group: tuple(members) for group, members in found.items()}


def role_of(name: str) -> str:
    """The tensor's role within its layer, such as ``attn_v`` or ``ffn_down_exps``."""
    match = _BASE.fullmatch(name)
    return match[1] if match else name


def layer_of(name: str) -> str:
    """The tensor's layer, such as ``blk.7``; for a tensor outside layers, its role."""
    place = tensor_place(name)
    return role_of(name) if place.layer is None else f"{place.stack}.{place.layer}"


_WAYS: dict[str, Callable[[str], str]] = {"none": lambda name: name, "role": role_of, "layer": layer_of}


def _group(name: str, way: str, rules: Sequence[tuple[NamePattern, str]]) -> str:
    if way in _WAYS:
        return _WAYS[way](name)
    for regex, group in rules:
        match = regex.search(name)
        if isinstance(match, re.Match):
            try:
                return str(match.expand(group))
            except (re.error, IndexError) as error:
                raise PlanError(f"--group: '{printable(group)}': {error}") from None
    return name
