"""Lists of numbers as users write them: ``0-10,7-10,11-``, ``!3,7`` (all but these), ``b:8-23`` (of another model)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gguftool.errors import PlanError, printable
from gguftool.format.file_names import normal_label
from gguftool.record import record

_SPAN = re.compile(r"(?:(?P<label>[A-Za-z0-9_.+-]+):)?(?P<first>[0-9]{1,9})(?P<dash>-(?P<last>[0-9]{1,9})?)?", re.ASCII)
_MAX_NUMBERS = 1 << 20  # in one list, with spans written out: four times the largest vocabulary
_MAX_SPANS = 1 << 16
FORM = "such as 0-10,7-10,11- or !3,7"


@record
class Span:
    """The numbers `first` to `last`, both included, or to the end; `label` names another model, None is the input."""

    first: int
    last: int | None
    label: str | None = None

    def __str__(self) -> str:
        label = "" if self.label is None else f"{self.label}:"
        if self.last == self.first:
            return f"{label}{self.first}"
        return f"{label}{self.first}-{'' if self.last is None else self.last}"


@record
class NumberList:
    """Spans in their order; `excludes`: all numbers but these."""

    spans: tuple[Span, ...]
    excludes: bool = False


def parse_list(text: str, option: str, *, labels: bool = False) -> NumberList:
    """Parse the LIST of `option`, such as "layers"; `labels`: spans may have ``LABEL:`` in front.

    Raises `PlanError` with the option and the form that is expected.
    """
    excludes = text.startswith("!")
    parts = text.removeprefix("!").split(",")
    if len(parts) > _MAX_SPANS:
        raise PlanError(f"--{option}: a list of {len(parts):,} parts; gguftool reads at most {_MAX_SPANS:,}")
    try:
        spans = tuple(_span(part.strip(), labels=labels and not excludes) for part in parts)
    except PlanError as error:
        raise PlanError(f"--{option}: {error}") from None
    return NumberList(spans=spans, excludes=excludes)


def _span(text: str, *, labels: bool) -> Span:
    found = _SPAN.fullmatch(text)
    if found is None or (found["label"] and not labels):
        form = f"{FORM}, or b:8-23 of the model labelled b" if labels else FORM
        raise PlanError(f"'{printable(text, 40)}' is not part of a list of numbers, {form}")
    first = int(found["first"])
    last = first if not found["dash"] else None if found["last"] is None else int(found["last"])
    if last is not None and last < first:
        raise PlanError(f"'{text}' counts down; to reverse, write the numbers one by one: {first},{first - 1},...")
    return Span(first=first, last=last, label=normal_label(found["label"]) if found["label"] else None)


def resolve(
    wanted: NumberList, count_of: Callable[[str | None], int], option: str, problems: list[str]
) -> list[tuple[str | None, int]]:
    """Write out `wanted` as pairs of label and number; `count_of` gives the count for a label.

    Numbers out of range are left out and added to `problems`; `option` is the list's option, such as "layers".
    """
    numbers: list[tuple[str | None, int]] = []
    for span in wanted.spans:
        count = count_of(span.label)
        last = count - 1 if span.last is None else span.last
        if span.first >= count or last >= count:
            of = "" if span.label is None else f" of '{printable(span.label)}'"
            problems.append(f"--{option} {span}: there are {count:,}{of}, 0 to {count - 1}")
            continue
        if len(numbers) + last - span.first >= _MAX_NUMBERS:
            raise PlanError(f"--{option}: more than {_MAX_NUMBERS:,} numbers, a limit of gguftool")
        numbers += [(span.label, number) for number in range(span.first, last + 1)]
    if not wanted.excludes:
        return numbers
    if count_of(None) > _MAX_NUMBERS:
        raise PlanError(f"--{option}: more than {_MAX_NUMBERS:,} numbers, a limit of gguftool")
    left_out = {number for _, number in numbers}
    return [(None, number) for number in range(count_of(None)) if number not in left_out]


def resolve_own(wanted: NumberList, count: int, option: str, problems: list[str]) -> list[int]:
    """Write out a list of `count` things without labels; see `resolve`."""
    return [number for _, number in resolve(wanted, lambda _: count, option, problems)]


def is_all(numbers: Sequence[int], count: int) -> bool:
    """Whether `numbers` are 0 to `count` - 1, in this order."""
    return len(numbers) == count and all(number == place for place, number in enumerate(numbers))


def listed_spans(numbers: Sequence[int], limit: int = 12) -> str:
    """Write `numbers` in the form of a LIST: ``0-10,7-10``; beyond `limit` spans they are only counted."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans[:limit])
    return shown if len(spans) <= limit else f"{shown}... ({len(numbers):,} numbers)"
