"""Settings: turn `KEY=[TYPE:]VALUE`, as users write it, into metadata of the type that the model has under that key.

An existing key keeps its type: a setting without a type takes it, and one with another type is refused unless the
caller forces it.  `KEY[INDEX]` is one element of an array, unless the model has a key of exactly that name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gguftool.errors import PlanError, did_you_mean, printable
from gguftool.format.cursor import MAX_HEAD
from gguftool.format.kv import KV, ByteOrder, ValueType, find_kv
from gguftool.format.values import ANY_WIDTH, SHORT_NAMES, parse_kv, split_type, type_spelling, with_elements
from gguftool.record import record
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Source

_INDEXED = re.compile(r"(.*)\[(-?[0-9]{1,18})\]", re.DOTALL)
_END_OF_KEY = re.compile(r"(\[-?[0-9]{1,18}\])?=")
_SHOWN = 80  # characters of a setting in a message


@record
class Setting:
    """A value for `target`, which is a key or `KEY[INDEX]`; `spelling` is its type, None to keep the existing type.

    `source` is the file that `text` was read from, or None.
    """

    target: str
    spelling: str | None
    text: str
    source: Source | None = None


def split_assignment(text: str, keys: Iterable[str], usage: str) -> tuple[str, str]:
    """Split ``KEY=REST`` at the first ``=``, or after one of `keys` if it contains ``=``; the longest key wins."""
    for known in sorted((key for key in keys if "=" in key and text.startswith(key)), key=len, reverse=True):
        end = _END_OF_KEY.match(text, len(known))
        if end:
            return known + (end[1] or ""), text[end.end() :]
    key, separator, rest = text.partition("=")
    if not key or not separator:
        raise PlanError(f"'{printable(text, _SHOWN)}' is not of the form {usage}")
    return key, rest


def read_setting(text: str, keys: Iterable[str] = ()) -> Setting:
    """Read ``KEY[INDEX]=[TYPE:]VALUE``; `keys` are those of the model."""
    target, rest = split_assignment(text, keys, "--set KEY=[TYPE:]VALUE")
    spelling, value = split_type(rest)
    setting = Setting(target=target, spelling=spelling, text=value)
    _check_literal(setting)
    return setting


def read_file_setting(text: str, keys: Iterable[str] = ()) -> Setting:
    """Read ``KEY[INDEX]=[TYPE:][@]FILE`` and the file; `keys` are those of the model."""
    target, rest = split_assignment(text, keys, "--set-file KEY=[TYPE:]@FILE")
    spelling, path = split_type(rest)
    source = open_source(path.removeprefix("@"))
    if source.size > MAX_HEAD:
        raise PlanError(
            f"has {source.size:,} bytes; gguftool reads and writes heads of at most {MAX_HEAD:,}", source=source.name
        )
    content = source.read_at(0, source.size).decode("utf-8", "surrogateescape")
    setting = Setting(target=target, spelling=spelling, text=content, source=source)
    _check_literal(setting)
    return setting


def _check_literal(setting: Setting) -> None:
    """Check a value that names its full type; any other needs the model."""
    if setting.spelling is not None and setting.spelling not in ANY_WIDTH:
        _parsed(setting, setting.spelling, ByteOrder.LITTLE)


def _parsed(setting: Setting, spelling: str, byte_order: ByteOrder) -> KV:
    try:
        return parse_kv(setting.target, spelling, setting.text, byte_order)
    except ValueError as error:
        place = None if setting.source is None else setting.source.name
        raise PlanError(f"'{printable(setting.target, _SHOWN)}': {error}", source=place) from None


class Values:
    """Metadata that is being edited: `kvs`, and `remarks` on changes of types and lengths."""

    def __init__(self, kvs: Sequence[KV], byte_order: ByteOrder, *, force_type: bool) -> None:
        self.kvs: list[KV] = list(kvs)
        self.remarks: list[str] = []
        self._byte_order = byte_order
        self._force_type = force_type
        self._elements: dict[str, dict[int, bytes]] = {}  # collected, so that an array is rewritten once

    def apply(self, setting: Setting) -> None:
        """Set a whole value, or one element."""
        old = find_kv(self.kvs, setting.target)
        indexed = _INDEXED.fullmatch(setting.target) if old is None else None
        if indexed:
            self._apply_element(setting, indexed[1], int(indexed[2]))
            return
        self._elements.pop(setting.target, None)
        self.put(_parsed(setting, self._spelling(setting, old), self._byte_order))

    def put(self, new: KV) -> None:
        """Put `new` in the place of the value under its key, or at the end; raise `PlanError` for another type."""
        old = find_kv(self.kvs, new.key)
        if old is None:
            self.kvs.append(new)
            return
        have, given = type_spelling(old), type_spelling(new)
        if have != given:
            self._refuse_type(new.key, have, given)
            self.remarks.append(f"'{printable(new.key)}' was {have} and is now {given}")
        elif old.count != new.count:
            self.remarks.append(f"'{printable(new.key)}' had {old.count:,} element(s) and now has {new.count:,}")
        at = next(index for index, kv in enumerate(self.kvs) if kv.key == new.key)
        times = sum(kv.key == new.key for kv in self.kvs)
        if times > 1:
            self.remarks.append(f"'{printable(new.key)}' was in the metadata {times} times and is now there once")
        self.kvs = [kv for kv in self.kvs if kv.key != new.key]
        self.kvs.insert(at, new)

    def finish(self) -> tuple[KV, ...]:
        """Write the elements that were collected."""
        for key, elements in self._elements.items():
            old = find_kv(self.kvs, key)
            if old is not None:
                self.put(with_elements(old, elements))
        return tuple(self.kvs)

    def _spelling(self, setting: Setting, old: KV | None) -> str:
        """The type of the value to write: that of the setting, else that of the `old` value."""
        given = setting.spelling
        if old is None:
            if given is None and setting.source is not None:
                return "str"
            if given is None or given in ANY_WIDTH:
                raise PlanError(_needs_type(setting, [kv.key for kv in self.kvs]))
            return given
        if given is None and old.element_type is ValueType.ARRAY:
            raise PlanError(f"'{printable(setting.target)}' is an array of arrays, which gguftool does not write")
        if given is None or (given in ANY_WIDTH and old.type in ANY_WIDTH[given]):
            return type_spelling(old)
        if given in ANY_WIDTH:
            self._refuse_type(setting.target, type_spelling(old), given)
            raise PlanError(f"'{printable(setting.target)}': {given} has no width of its own; give {_widths(given)}")
        return given

    def _refuse_type(self, key: str, have: str, given: str) -> None:
        if self._force_type:
            return
        text = "; str: in front makes the whole text the value" if have == "str" else ""
        raise PlanError(
            f"'{printable(key)}' is {have}, not {given}: leave the type out to keep it, or change it "
            f"with --force-type{text}"
        )

    def _apply_element(self, setting: Setting, key: str, index: int) -> None:
        name, old = printable(key), find_kv(self.kvs, key)
        if old is None:
            near = did_you_mean(key, [kv.key for kv in self.kvs])
            raise PlanError(f"there is no key '{name}' with an element [{index}]{near}")
        if old.type is not ValueType.ARRAY:
            raise PlanError(f"'{name}' is {type_spelling(old)}, not an array: it has no element [{index}]")
        if old.element_type is ValueType.ARRAY:
            raise PlanError(f"'{name}' is an array of arrays; its elements cannot be changed one by one")
        if not -old.count <= index < old.count:
            what = f"{old.count:,} elements, [0] to [{old.count - 1}]" if old.count else "no elements"
            raise PlanError(f"'{name}' has {what}: [{index}] is out of range")
        have, given = type_spelling(old).removesuffix("[]"), setting.spelling
        if given is not None and given != have and old.element_type not in ANY_WIDTH.get(given, ()):
            raise PlanError(f"the elements of '{name}' are {have}, not {given}: leave the type out")
        element = _parsed(setting, have, self._byte_order)
        self._elements.setdefault(key, {})[index % old.count] = element.raw


def _widths(given: str) -> str:
    kinds = ANY_WIDTH[given]
    return " or ".join(name for name, kind in SHORT_NAMES.items() if kind in kinds)


def _needs_type(setting: Setting, keys: Sequence[str]) -> str:
    from shlex import quote

    key = setting.target
    shown = setting.text if len(setting.text) <= _SHOWN and setting.text.isprintable() else "TEXT"
    examples = (f"{key}=str:{shown}", f"{key}=u32:1", f"{key}=f32[]:[0.5, 1]")
    spelled = ", ".join(printable(f"--set {quote(example)}") for example in examples)
    return f"there is no key '{printable(key)}', and a new one needs a type: {spelled}{did_you_mean(key, keys)}"
