"""Metadata values as people write them on a command line."""

from __future__ import annotations

import json
from typing import Any

from gguftool.format.kv import INTEGERS, ValueType

SHORT_NAMES = {
    "u8": ValueType.UINT8,
    "i8": ValueType.INT8,
    "u16": ValueType.UINT16,
    "i16": ValueType.INT16,
    "u32": ValueType.UINT32,
    "i32": ValueType.INT32,
    "u64": ValueType.UINT64,
    "i64": ValueType.INT64,
    "f32": ValueType.FLOAT32,
    "f64": ValueType.FLOAT64,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
}


def parse_value(text: str, kind: ValueType, *, is_array: bool) -> Any:
    """Return the value that `text` says: a JSON list of an array, else one literal; `ValueError` says what is wrong."""
    if not is_array:
        return _parse_literal(text, kind)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an array is written as a JSON list ({error})") from None
    if not isinstance(values, list):
        raise ValueError("an array is written as a JSON list")
    return [_check_item(value, kind) for value in values]


def _parse_literal(text: str, kind: ValueType) -> Any:
    if kind is ValueType.STRING:
        return text
    if kind is ValueType.BOOL:
        if text.lower() not in {"true", "false"}:
            raise ValueError(f"'{text}' is not true or false")
        return text.lower() == "true"
    try:
        return int(text, 0) if kind in INTEGERS else float(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a number of type {kind.name}") from None


def _check_item(value: object, kind: ValueType) -> Any:
    expected = str if kind is ValueType.STRING else bool if kind is ValueType.BOOL else int
    is_float = kind in {ValueType.FLOAT32, ValueType.FLOAT64} and type(value) in {int, float}
    if not is_float and type(value) is not expected:
        raise ValueError(f"{json.dumps(value)} in the list is not of type {kind.name}")
    return value
