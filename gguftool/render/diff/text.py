"""A diff as text and markdown: a one-line summary, tables, and long texts as unified diffs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from gguftool.analysis.diff.data import By, DataDiff, DataTotal, DataVerdict, TensorData
from gguftool.analysis.diff.figures import Errors
from gguftool.analysis.diff.metadata import KVChange
from gguftool.analysis.diff.models import HeaderDiff
from gguftool.analysis.diff.tensors import TensorGroup
from gguftool.analysis.diff.text import TextDifference
from gguftool.errors import printable
from gguftool.record import record
from gguftool.render.diff.values import (
    describe_change,
    dims_text,
    key_text,
    type_text,
    unweighted,
    value_text,
    with_not_finite,
)
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.screen import fitted
from gguftool.render.table import Table, columns, render_markdown
from gguftool.render.units import format_size

_LINE = 4096  # characters to show of a line of a text diff


@record
class Lines:
    """Lines of text, safe for a terminal, with no blank line after them: the summary, or a unified diff."""

    lines: tuple[str, ...]

    def as_text(self) -> str:
        """Join the lines, with a final newline."""
        return "\n".join(self.lines) + "\n"

    def as_rich(self, width: int, /) -> str:
        """Join the lines, broken where they are wider than `width` columns."""
        return fitted(self.as_text(), width)


def summary(report: HeaderDiff) -> str:
    """Sum up the difference in one line, without any text from a file."""
    parts = [_headers_clause(report)]
    change = report.b.tensor_bytes - report.a.tensor_bytes
    if change:
        parts.append(f"B is {format_size(abs(change))} {'larger' if change > 0 else 'smaller'}")
    if report.data:
        parts.append(_data_clause(report.data.whole))
    elif not report.differs:
        parts.append("their data was not compared (--data does)")
    return "; ".join(parts)


def _headers_clause(report: HeaderDiff) -> str:
    layout = len(report.layout or ())
    counts = (
        (len(report.metadata), "metadata key", "metadata keys"),
        (len(report.tensors), "tensor", "tensors"),
        (layout, "property of the layout", "properties of the layout"),
    )
    parts = [_number(*count) for count in counts if count[0]]
    if not parts:
        keys = _number(report.a.metadata, "metadata key", "metadata keys")
        return f"no differences in {keys} and {_number(report.a.tensors, 'tensor', 'tensors')}"
    verb = "differs" if sum(number for number, *_ in counts) == 1 else "differ"
    return f"{_and(parts)} {verb}"


def _number(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _data_clause(total: DataTotal) -> str:
    if total.same == total.tensors:
        of_all = "the data of " + ("all " if total.tensors > 1 else "") + _number(total.tensors, "tensor", "tensors")
        return f"{of_all} is the same" if total.tensors else "no tensor is in both"
    counts = (
        (total.same, "same"),
        (total.different, "same type, different bytes"),
        (total.other_type, "of another type"),
        (total.not_compared, "not compared"),
    )
    found = ", ".join(f"{number:,} {what}" for number, what in counts if number)
    return f"data of {_number(total.tensors, 'tensor', 'tensors')} in both: {found}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


@renders(HeaderDiff, Format.TEXT)
def diff_parts(report: HeaderDiff) -> Iterator[Table | Lines]:
    """Yield the summary, tables, and unified diffs of long texts."""
    yield Lines(lines=(summary(report),))
    yield from _sections(report)


@renders(HeaderDiff, Format.MARKDOWN)
def render_diff_markdown(report: HeaderDiff) -> str:
    """Render the whole diff in GitHub's markdown."""
    parts = [f"**{summary(report)}**\n"]
    for section in _sections(report):
        parts.append(render_markdown(section) if isinstance(section, Table) else _fenced(section.lines))
    return "\n".join(parts)


def _fenced(lines: Iterable[str]) -> str:
    """Put `lines` into a code block, with a fence longer than any run of backticks inside."""
    body = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}diff\n{body}\n{fence}\n"


def _sections(report: HeaderDiff) -> Iterator[Table | Lines]:
    yield _sides_table(report)
    if report.metadata:
        yield _metadata_table(report.metadata)
        yield from (_text_diff(key_text(change), change.text) for change in report.metadata if change.text)
    if report.groups:
        yield _groups_table(report)
    if report.layout:
        rows = tuple((c.what, value_text(c.old), value_text(c.new), _many(c.count, c.where)) for c in report.layout)
        yield Table(title="layout", columns=columns("what", "A", "B", "how many", wrap="how many"), rows=rows)
    if report.data and report.data.whole.same != report.data.whole.tensors:
        yield _data_table(report.data) if report.data.by is By.TENSOR else _totals_table(report.data)


def _sides_table(report: HeaderDiff) -> Table:
    rows = tuple(
        (
            name,
            f"{side.metadata:,}",
            f"{side.tensors:,}",
            format_size(side.tensor_bytes),
            f"{side.model}{f' ({side.files:,} files)' if side.files > 1 else ''}",
        )
        for name, side in (("A", report.a), ("B", report.b))
    )
    heads = columns("", ">metadata", ">tensors", ">size", "model", start="model")
    return Table(title="", columns=heads, rows=rows, drop=("metadata", "tensors"))


def _many(count: int, where: str) -> str:
    return f"{count:,}, the first at {where}" if where else ""


# --- metadata --------------------------------------------------------------------------------------------------------


def _metadata_table(changes: Sequence[KVChange]) -> Table:
    rows = tuple((one.change.value, key_text(one), type_text(one), describe_change(one)) for one in changes)
    heads = columns("", "key", "type", "A -> B", middle="key", wrap="A -> B")
    return Table(title=f"metadata: {len(rows):,}", columns=heads, rows=rows, drop=("type",))


def _text_diff(key: str, text: TextDifference) -> Lines:
    lines = text.lines
    if not lines:
        cut = "... " if text.at else ""
        lines = (f"@@ from character {text.at + 1:,} @@", f"-{cut}{text.old_excerpt}", f"+{cut}{text.new_excerpt}")
    heads = f"--- A: {printable(key)}", f"+++ B: {printable(key)}"
    return Lines(lines=(*heads, *(printable(line, _LINE) for line in lines)))


# --- tensors ---------------------------------------------------------------------------------------------------------


def _groups_table(report: HeaderDiff) -> Table:
    rows = tuple(
        (one.name, _group_change(one), _layers(one.layers), _signed(one.bytes_change)) for one in report.groups
    )
    heads = columns("tensor", "A -> B", "where", ">size change", middle="tensor", wrap="where")
    return Table(title=f"tensors: {len(report.tensors):,}", columns=heads, rows=rows, drop=("size change", "where"))


def _group_change(group: TensorGroup) -> str:
    if group.old_type is None or group.new_type is None:
        return f"{group.change.value} ({group.old_type or group.new_type})"
    parts = []
    if group.old_type != group.new_type:
        parts.append(f"{group.old_type} -> {group.new_type}")
    if group.old_dims is not None and group.new_dims is not None:
        parts.append(f"{dims_text(group.old_dims)} -> {dims_text(group.new_dims)}")
    return ", ".join(parts)


def _layers(layers: Sequence[int]) -> str:
    """``in 12 layers (0-5, 8-13)``."""
    if not layers:
        return ""
    runs = []
    for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        runs.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return f"in {len(layers):,} layer{'s' if len(layers) > 1 else ''} ({', '.join(runs)})"


def _signed(nbytes: int) -> str:
    return f"{'+' if nbytes > 0 else '-'}{format_size(abs(nbytes))}" if nbytes else "same"


# --- data ------------------------------------------------------------------------------------------------------------

_ERROR_COLUMNS = (">relative RMSE", ">SNR dB", ">cosine", ">max error")
_WEIGHTED_COLUMNS = (">weighted RMSE", ">weighted SNR dB")
_DROPPED = ("max error", "weighted SNR dB", "cosine", "weighted RMSE")  # on a narrow screen, in this order


def _error_columns(data: DataDiff) -> tuple[str, ...]:
    return (*_ERROR_COLUMNS, *(_WEIGHTED_COLUMNS if data.imatrix is not None else ()), "note")


def _data_table(data: DataDiff) -> Table:
    rows = [
        (one.name, types_text(one), *_figures(one.errors, data), with_not_finite(unweighted(one), one.errors))
        for one in data.tensors
        if one.verdict is not DataVerdict.SAME
    ]
    whole = data.whole
    if whole.errors and len(rows) > 1:
        name = f"all {whole.measured:,} measured"
        rows.append((name, "", *_figures(whole.errors, data), with_not_finite(_without_weights(whole), whole.errors)))
    heads = columns("tensor", "A -> B", *_error_columns(data), middle="tensor", wrap="note")
    return Table(title=_data_title(data), columns=heads, rows=tuple(rows), drop=_DROPPED)


def _totals_table(data: DataDiff) -> Table:
    rows = tuple(
        (
            total.name,
            f"{total.tensors:,}",
            f"{total.same:,}",
            f"{total.tensors - total.same:,}",
            *_figures(total.errors, data),
            with_not_finite("; ".join(filter(None, (_unmeasured(total), _without_weights(total)))), total.errors),
        )
        for total in (*data.totals, data.whole)
    )
    heads = columns(data.by.value, ">tensors", ">same", ">differ", *_error_columns(data), wrap="note")
    return Table(title=_data_title(data), columns=heads, rows=rows, drop=("tensors", "same", *_DROPPED))


def _data_title(data: DataDiff) -> str:
    differing = data.whole.tensors - data.whole.same
    weighted = "" if data.imatrix is None else f", also weighted by {printable(data.imatrix, 4096)}"
    return f"data: {differing:,} of {data.whole.tensors:,} tensors differ; errors of B relative to A{weighted}"


def types_text(one: TensorData) -> str:
    """Name the types of both sides; if they are the same, add the verdict on the bytes."""
    if one.old_type != one.new_type:
        return f"{one.old_type} -> {one.new_type}"
    return f"{one.old_type}, {'different bytes' if one.verdict is DataVerdict.DIFFERENT else one.verdict.value}"


def _figures(errors: Errors | None, data: DataDiff) -> tuple[str, ...]:
    """The cells under `_error_columns`, without the note."""
    if errors is None:
        return ("",) * (len(_error_columns(data)) - 1)
    figures = [
        (errors.relative_rmse, ".4g"),
        (errors.snr_db, ".2f"),
        (errors.cosine, ".6f"),
        (errors.max_abs_error, ".4g"),
    ]
    if data.imatrix is not None:
        figures += [(errors.weighted_relative_rmse, ".4g"), (errors.weighted_snr_db, ".2f")]
    return tuple("-" if figure is None else format(figure, form) for figure, form in figures)


def _without_weights(total: DataTotal) -> str:
    without = total.measured - (total.measured if total.weighted is None else total.weighted)
    return f"{without:,} not in the imatrix, so not in the weighted figures" if without else ""


def _unmeasured(total: DataTotal) -> str:
    missing = total.tensors - total.same - total.measured
    return f"{missing:,} not measured: {', '.join(total.notes)}" if missing else ""
