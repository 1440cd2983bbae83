"""Frozen records: defining one takes a twentieth of the time of a standard dataclass.

`@record` stands for ``@dataclass(frozen=True, slots=True, kw_only=True)``: keyword-only arguments, equality and hash
over all fields, `__post_init__`, copying and pickling, and what `dataclasses` offers (`fields`, `replace`, `asdict`).
A standard dataclass compiles six methods per class from text, which takes 0.3 ms at every start of the program, and a
command imports 60 to 150 such classes.  Records share methods that loop over the fields: creating an instance takes the
same time, comparing or printing one up to twice as long.

Not supported: inherited fields, `field()`, overriding the methods of records, a signature for `help()`, mutability.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from dataclasses import replace

    from typing_extensions import dataclass_transform
else:

    def replace(instance, /, **changes):
        """Copy `instance` with `changes`, as `dataclasses.replace` does."""
        return type(instance)(**{name: getattr(instance, name) for name in instance.__slots__} | changes)

    def dataclass_transform(**_: object) -> Callable[[Any], Any]:
        """Do nothing: the decorator is for type checkers."""
        return lambda decorator: decorator


__all__ = ["record", "replace"]

T = TypeVar("T")
Put = Callable[[object, object], None]
_MADE = frozenset({"__init__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__reduce__"})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen record with a slot for each annotated name; a value given there is its default.

    A base may define methods, but not fields. Raises TypeError for a class without fields, for a base with fields, for
    a method that records define themselves, and for a mutable default.
    """
    names = tuple(cls.__annotations__)
    body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    if not names or not all(map(_has_no_fields, cls.__bases__)) or _MADE & body.keys():
        raise TypeError(
            f"a record has fields, no base with fields, and no {', '.join(sorted(_MADE))}: {cls.__qualname__}"
        )
    defaults = {name: body.pop(name) for name in names if name in body}
    if any(type(value).__hash__ is None or type(value).__module__ == "dataclasses" for value in defaults.values()):
        raise TypeError(f"a default of {cls.__qualname__} is made again each time, or is mutable: {defaults}")
    kind: Any = type(cls)  # ABCMeta for a class with abstract methods
    made = kind(cls.__name__, cls.__bases__, {**body, "__slots__": names, "__qualname__": cls.__qualname__})
    made.__init__ = _initializer(made, names, defaults)
    made.__eq__, made.__hash__ = _comparison(operator.attrgetter(*names))
    if "__repr__" not in body:
        made.__repr__ = _repr
    made.__setattr__ = made.__delattr__ = _refuse
    made.__reduce__ = _reduce
    made.__replace__ = replace
    made.__dataclass_fields__ = _Fields(defaults)
    return made  # type: ignore[no-any-return]


def _has_no_fields(base: type) -> bool:
    return base is object or (vars(base).get("__slots__") == () and all(map(_has_no_fields, base.__bases__)))


def _initializer(made: Any, names: Sequence[str], defaults: Mapping[str, object]) -> Callable[..., None]:
    """Return an `__init__` that fills each slot through its descriptor, past the frozen `__setattr__`."""
    puts: list[tuple[str, Put]] = [(name, vars(made)[name].__set__) for name in names]
    finish: Callable[[object], None] | None = getattr(made, "__post_init__", None)

    def initialize(self: object, /, **given: object) -> None:
        values = given if len(given) == len(puts) else {**defaults, **given}
        try:
            for name, put in puts:
                put(self, values[name])
        except KeyError:
            raise _wrong_arguments(made, names, defaults, given) from None
        if len(values) != len(puts):
            raise _wrong_arguments(made, names, defaults, given)
        if finish is not None:
            finish(self)

    return initialize


def _wrong_arguments(
    made: Any, names: Sequence[str], defaults: Mapping[str, object], given: Mapping[str, object]
) -> TypeError:
    unknown = [name for name in given if name not in names]
    if unknown:
        return TypeError(f"{made.__qualname__}() has no argument {', '.join(map(repr, unknown))}")
    missing = [name for name in names if name not in given and name not in defaults]
    return TypeError(f"{made.__qualname__}() lacks the argument {', '.join(map(repr, missing))}")


def _comparison(values: Callable[[object], object]) -> tuple[Callable[[object, object], bool], Callable[[object], int]]:
    """Return `__eq__` and `__hash__` over the values that `values` reads from an instance."""

    def equal(self: object, other: object) -> bool:
        return values(self) == values(other) if type(self) is type(other) else NotImplemented

    def hashed(self: object) -> int:
        return hash(values(self))

    return equal, hashed


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
    return f"{type(self).__qualname__}({shown})"


def _reduce(self: Any) -> tuple[Any, ...]:
    """Copy and pickle by type and values."""
    return _again, (type(self), {name: getattr(self, name) for name in self.__slots__})


def _again(kind: type[T], values: Mapping[str, object]) -> T:
    return kind(**values)


def _refuse(self: object, name: str, *_: object) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"a {type(self).__qualname__} cannot change: {name!r}")


class _Fields:
    """The `__dataclass_fields__` of a record, made on first use by the functions of `dataclasses`."""

    def __init__(self, defaults: Mapping[str, object]) -> None:
        self._defaults = defaults

    def __get__(self, _: object, owner: Any) -> object:
        from dataclasses import dataclass

        # Without a docstring, dataclass would make one from the signature, which takes longer than everything else.
        body = {"__doc__": owner.__doc__ or "A record.", "__annotations__": owner.__annotations__, **self._defaults}
        like = type(owner.__name__, (), body)
        stock: Any = dataclass(init=False, repr=False, eq=False, kw_only=True)(like)
        owner.__dataclass_fields__ = stock.__dataclass_fields__
        return owner.__dataclass_fields__
