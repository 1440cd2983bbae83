"""An engine's requirements for a model's head: keys, their types, tensors and their dims, by architecture.

The facts are data, one file for each engine, with the release that they were read from; `fixtures/read_llama_cpp.py`
writes them from the sources.  Conditions, dims and flags are expressions in Python's syntax over plain names,
and `evaluate` computes them without running any code: an unknown value is None, never a guess.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from gguftool.format.engine_facts.names import engine_data
from gguftool.record import record

Value = int | None
Lookup = Callable[[str], Value]


@record
class KeyFact:
    """One place that reads a key; `name` has ``%s`` for the architecture.

    `type` names the value type, empty if unknown. `form` is scalar, array, or either (an array has one entry for each
    layer; `length` is their number). `field` is the value's name in expressions.
    """

    name: str
    type: str
    form: str
    required: bool
    conditions: tuple[str, ...]
    field: str
    length: str


@record
class TensorFact:
    """One tensor that the engine asks for; `name` has ``%d`` for the layer, `fused` is a tensor that may replace it."""

    name: str
    dims: tuple[str, ...]
    flags: str
    conditions: tuple[str, ...]
    fused: str


@record
class ArchitectureFacts:
    """One architecture; `assigned` names the values that the engine sets after reading, `computed` how, if simple.

    `values` are local names in the code that asks for tensors, `key_values` those in the code that reads keys.

    `complete` is false if the code asks for some tensors in a way that was not understood.
    """

    keys: tuple[KeyFact, ...]
    tensors: tuple[TensorFact, ...]
    assigned: frozenset[str]
    computed: Mapping[str, str]
    values: Mapping[str, str]
    key_values: Mapping[str, str]
    complete: bool


@record
class HeadFacts:
    """Everything about one release of one engine; `general` holds the keys that all architectures share.

    `limits` are the most layers and experts that it is built for.
    """

    release: str
    date: str
    general: tuple[KeyFact, ...]
    limits: Mapping[str, int]
    defaults: Mapping[str, int]
    scales: frozenset[str]
    tokenizers: frozenset[str]
    pre_tokenizers: frozenset[str]
    special_tokens: tuple[str, ...]
    architectures: Mapping[str, ArchitectureFacts]
    engine: str

    @property
    def shown(self) -> str:
        """The engine, its release and the release date, for people."""
        return f"{self.engine} {self.release} ({self.date})"


@cache
def head_facts(engine: str) -> HeadFacts | None:
    """The facts about `engine`, or None if there are none."""
    data = engine_data(engine)
    if data is None:
        return None
    keys = [_key(row) for row in data["keys"]]
    tensors = [_tensor(row) for row in data["tensors"]]
    vocabulary = data["vocabulary"]
    return HeadFacts(
        engine=engine,
        release=data["release"],
        date=data["date"],
        general=tuple(_key(row) for row in data["general"]),
        limits=data["limits"],
        defaults=data["defaults"],
        scales=frozenset(data["scales"]),
        tokenizers=frozenset(vocabulary["models"]),
        pre_tokenizers=frozenset(vocabulary["pre"]),
        special_tokens=tuple(vocabulary["special"]),
        architectures={
            name: ArchitectureFacts(
                keys=tuple(keys[number] for number in each["keys"]),
                tensors=tuple(tensors[number] for number in each["tensors"]),
                assigned=frozenset(each["assigned"]),
                computed=each["computed"],
                values=each["values"],
                key_values=each["key_values"],
                complete=each["complete"],
            )
            for name, each in data["architectures"].items()
        },
    )


def _key(row: list[Any]) -> KeyFact:
    name, kind, form, required, conditions, field, length = row
    return KeyFact(
        name=name,
        type=kind,
        form=form,
        required=required,
        conditions=tuple(conditions),
        field=field,
        length=length,
    )


def _tensor(row: list[Any]) -> TensorFact:
    name, dims, flags, conditions, fused = row
    return TensorFact(name=name, dims=tuple(dims), flags=flags, conditions=tuple(conditions), fused=fused)


# --- expressions -----------------------------------------------------------------------------------------------------

_ARITHMETIC: Final[dict[type[ast.operator], Callable[[int, int], int]]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.BitOr: lambda a, b: a | b,
    ast.BitAnd: lambda a, b: a & b,
}
_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[int, int], bool]]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


@cache
def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:  # "?"
        return None


def evaluate(text: str, lookup: Lookup) -> Value:
    """Compute an expression; None if it depends on a value that `lookup` does not know."""
    tree = _parsed(text)
    return None if tree is None else _value(tree, lookup)


def _value(node: ast.expr, lookup: Lookup) -> Value:
    match node:
        case ast.Constant(value=bool() | int() as number):
            return int(number)
        case ast.Name():
            return lookup(node.id)
        case ast.BoolOp():
            return _joined(node, lookup)
        case ast.UnaryOp(op=ast.Not()):
            inner = _value(node.operand, lookup)
            return None if inner is None else int(not inner)
        case ast.UnaryOp(op=ast.USub()):
            inner = _value(node.operand, lookup)
            return None if inner is None else -inner
        case ast.IfExp():
            test = _value(node.test, lookup)
            return None if test is None else _value(node.body if test else node.orelse, lookup)
        case ast.BinOp():
            return _computed(_ARITHMETIC.get(type(node.op)), node.left, node.right, lookup)
        case ast.Compare(ops=[op], comparators=[right]):
            return _computed(_COMPARISONS.get(type(op)), node.left, right, lookup)
    return None


def _joined(node: ast.BoolOp, lookup: Lookup) -> Value:
    """`and` is false if one part is false, whatever the others are; `or` is true if one part is true."""
    decisive = isinstance(node.op, ast.Or)
    parts = [_value(part, lookup) for part in node.values]
    if any(part is not None and bool(part) is decisive for part in parts):
        return int(decisive)
    return None if None in parts else int(not decisive)


def _computed(operation: Callable[[int, int], int] | None, left: ast.expr, right: ast.expr, lookup: Lookup) -> Value:
    a, b = _value(left, lookup), _value(right, lookup)
    if operation is None or a is None or b is None:
        return None
    try:
        return int(operation(a, b))
    except ZeroDivisionError:
        return None
