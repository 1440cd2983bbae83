"""Hyperparameters in a model's head. In a hostile file they may have any type, so they are checked here."""

from __future__ import annotations

from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import INTEGERS, ValueType
from gguftool.model.model import Model

MOST_LAYERS = 1024  # entries of an array by layer that are decoded; engines take 512 layers


def numbers(model: Model, key: str) -> tuple[int, ...]:
    """The integer under the architecture's `key`, or those of an array by layer; empty if there is none."""
    kv = model.get(f"{text(model, ARCHITECTURE_KEY)}.{key}")
    if kv is None:
        return ()
    if kv.type in INTEGERS:
        return (int(kv.value()),)
    if kv.type is ValueType.ARRAY and kv.element_type in (*INTEGERS, ValueType.BOOL):
        return tuple(map(int, kv.value(MOST_LAYERS)))
    return ()


def number(model: Model, key: str) -> int | None:
    """The integer under the architecture's `key`, or None."""
    found = numbers(model, key)
    return found[0] if len(found) == 1 else None


def text(model: Model, key: str) -> str:
    """The text under `key`; empty if there is none."""
    kv = model.get(key)
    return str(kv.value()) if kv is not None and kv.type is ValueType.STRING else ""
