"""A record behaves as the frozen dataclass whose place it takes, and its class costs a fraction to make."""

from __future__ import annotations

import abc
import copy
import dataclasses
import pickle
import timeit
from collections.abc import Callable
from typing import Any

import pytest

from gguftool.record import record, replace

stock = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)


def make(decorator: Any) -> Any:
    @decorator
    class Shard:
        """One file."""

        name: str
        size: int
        labels: tuple[str, ...] = ()
        after: Shard | None = None

        def __post_init__(self) -> None:
            if self.size < 0:
                raise ValueError(self.size)

        @property
        def half(self) -> int:
            return self.size // 2

        @classmethod
        def empty(cls) -> Any:
            return cls(name="", size=0)

    return Shard


BOTH = pytest.mark.parametrize("kind", [make(record), make(stock)], ids=["record", "dataclass"])


@BOTH
def test_fields_defaults_and_methods(kind: Any) -> None:
    shard = kind(size=9, name="a")
    assert (shard.name, shard.size, shard.labels, shard.after, shard.half) == ("a", 9, (), None, 4)
    assert kind(name="a", size=9, labels=("x",), after=shard).after is shard
    assert kind.empty().size == 0
    assert (kind.__doc__, kind.__module__, kind.__name__) == ("One file.", __name__, "Shard")
    assert repr(shard) == "make.<locals>.Shard(name='a', size=9, labels=(), after=None)"


@record
class Point:
    """At the top of a module, as pickle wants it."""

    x: int
    y: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StockPoint:
    """The same."""

    x: int
    y: int = 0


@pytest.mark.parametrize("kind", [Point, StockPoint])
def test_copies_are_equal(kind: Any) -> None:
    point = kind(x=(1, 2))
    assert pickle.loads(pickle.dumps(point)) == point
    assert copy.copy(point) == point
    assert copy.deepcopy([point]) == [point]
    assert dataclasses.asdict(kind(x=frozenset({point}))) == {"x": frozenset({point}), "y": 0}
    if hasattr(copy, "replace"):
        assert copy.replace(point, y=2) == kind(x=(1, 2), y=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "lacks the argument 'x'$"),
        ({"x": 1, "colour": 2}, "has no argument 'colour'$"),
        ({"colour": 2}, "has no argument 'colour'$"),
        ({"x": 1, "y": 2, "z": 3}, "has no argument 'z'$"),
    ],
)
def test_what_is_wrong_with_arguments(given: dict[str, int], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Point(**given)


@BOTH
@pytest.mark.parametrize(
    "given", [{}, {"name": "a"}, {"name": "a", "size": 1, "colour": 2}, {"name": "a", "colour": 2}, {"size": 1, "x": 1}]
)
def test_arguments_missing_or_unknown(kind: Any, given: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=r"Shard|__init__"):
        kind(**given)


@BOTH
def test_arguments_are_named(kind: Any) -> None:
    with pytest.raises(TypeError):
        kind("a", 1)


@BOTH
def test_equality_and_hash_go_over_all_fields_of_one_class(kind: Any) -> None:
    one, same, other = kind(name="a", size=1), kind(name="a", size=1), kind(name="a", size=2)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    assert one != make(record)(name="a", size=1)  # of another class, whatever its name
    assert one != ("a", 1, (), None)


@BOTH
def test_nothing_changes(kind: Any) -> None:
    shard = kind(name="a", size=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        shard.size = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del shard.size
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        shard.colour = 2
    assert shard.size == 1
    assert not hasattr(shard, "__dict__")


@BOTH
def test_post_init_has_its_say(kind: Any) -> None:
    with pytest.raises(ValueError, match="-1"):
        kind(name="a", size=-1)
    with pytest.raises(ValueError, match="-1"):
        dataclasses.replace(kind(name="a", size=1), size=-1)
    with pytest.raises(ValueError, match="-1"):
        replace(kind(name="a", size=1), size=-1)


@BOTH
def test_replace(kind: Any) -> None:
    shard = kind(name="a", size=1, labels=("x",))
    assert replace(shard, size=2) == dataclasses.replace(shard, size=2) == kind(name="a", size=2, labels=("x",))
    with pytest.raises(TypeError):
        replace(shard, colour=2)


@BOTH
def test_the_functions_of_dataclasses_work(kind: Any) -> None:
    shard = kind(name="a", size=1)
    assert dataclasses.is_dataclass(kind)
    assert dataclasses.is_dataclass(shard)
    fields = [(f.name, f.type, f.default, f.kw_only) for f in dataclasses.fields(shard)]
    assert fields[1:3] == [("size", "int", dataclasses.MISSING, True), ("labels", "tuple[str, ...]", (), True)]
    assert [f.name for f in dataclasses.fields(kind)] == ["name", "size", "labels", "after"]
    assert dataclasses.replace(shard, size=3) == kind(name="a", size=3)
    assert dataclasses.asdict(shard) == {"name": "a", "size": 1, "labels": (), "after": None}


def test_a_base_may_have_methods_but_no_fields() -> None:
    class Named(abc.ABC):
        __slots__ = ()

        @property
        @abc.abstractmethod
        def name(self) -> str: ...

        def greeting(self) -> str:
            return f"hello {self.name}"

    @record
    class Person(Named):
        first: str

        @property
        def name(self) -> str:
            return self.first

    assert Person(first="a").greeting() == "hello a"
    assert (Person(first="a"), hash(Person(first="a"))) == (Person(first="a"), hash(Person(first="a")))
    assert not hasattr(Person(first="a"), "__dict__")
    with pytest.raises(TypeError, match="abstract"):
        record(type(Named)("Nameless", (Named,), {"__annotations__": {"a": "int"}}))(a=1)
    with pytest.raises(TypeError, match="no base with fields"):
        record(type(Named)("Child", (Person,), {"__annotations__": {"b": "int"}}))


def test_what_a_record_cannot_be() -> None:
    with pytest.raises(TypeError, match="has fields"):
        record(type("Empty", (), {}))
    with pytest.raises(TypeError, match="no base"):
        record(type("Child", (Exception,), {"__annotations__": {"a": "int"}}))
    with pytest.raises(TypeError, match="no __delattr__, __eq__"):
        record(type("Own", (), {"__annotations__": {"a": "int"}, "__eq__": lambda self, other: True}))
    with pytest.raises(TypeError, match="made again"):
        record(type("Field", (), {"__annotations__": {"a": "list[int]"}, "a": dataclasses.field(default_factory=list)}))
    with pytest.raises(TypeError, match="is mutable"):
        record(type("Listed", (), {"__annotations__": {"a": "list[int]"}, "a": []}))


def test_a_class_is_made_in_a_fraction_of_the_time() -> None:
    def best(decorator: Callable[[Any], Any]) -> float:
        return min(timeit.repeat(lambda: make(decorator), number=20, repeat=5))

    assert best(record) < best(stock) / 4
