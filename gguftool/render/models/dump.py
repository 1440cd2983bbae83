"""A dump as tables, in the columns that users of gguf-dump know, plus size, bits per weight and offset."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.analysis.dump import Dump, KVEntry
from gguftool.errors import printable
from gguftool.format.engine_facts.enums import enum_name
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.table import Table, columns, markdown_text, render_csv, render_markdown
from gguftool.render.units import format_float32, format_size

_FLOAT = "FLOAT32"
_TEXT_LIMIT = 120  # characters to show of a string value


@renders(Dump, Format.TEXT)
def dump_parts(report: Dump, *, kvs: bool = True, tensors: bool = True) -> Iterator[str | Table]:
    """Yield the heading and the tables: files if there are several, metadata, tensors."""
    yield _heading(report)
    yield from _tables(report, kvs, tensors)


def _heading(report: Dump) -> str:
    first = report.files[0]
    total = sum(file.size for file in report.files)
    shards = f", {len(report.files):,} files" if len(report.files) > 1 else ""
    lines = [
        f"{printable(report.model, 4096)}: GGUF version {first.version}, {first.byte_order}-endian, "
        f"{format_size(total)}{shards}, alignment {first.alignment}, data from offset {first.data_offset:,}"
    ]
    if report.imatrix:
        from gguftool.render.cooking.imatrix import imatrix_heading

        lines.append(imatrix_heading(report.imatrix).rstrip("\n"))
    if report.missing:
        lines.append(f"missing: {', '.join(printable(name, 4096) for name in report.missing)}")
    if report.duplicate_keys:
        lines.append(f"keys that occur more than once: {', '.join(map(printable, report.duplicate_keys))}")
    return "\n".join(lines) + "\n"


@renders(Dump, Format.MARKDOWN)
def dump_markdown(report: Dump, *, kvs: bool = True, tensors: bool = True) -> str:
    """Render heading and tables in GitHub's markdown."""
    blocks = [f"{markdown_text(line)}\n" for line in _heading(report).splitlines()]
    return "\n".join([*blocks, *map(render_markdown, _tables(report, kvs, tensors))])


@renders(Dump, Format.CSV)
def dump_csv(report: Dump, *, kvs: bool = True, tensors: bool = True) -> str:  # noqa: ARG001 - as the other formats
    """Render the tensors as csv, or without `tensors` the metadata; with plain numbers and whole texts."""
    return render_csv(_flat_tensors(report) if tensors else _flat_kvs(report))


def _flat_tensors(report: Dump) -> Table:
    heads = ("index", "name", "type", "type_id", "shape", "elements", "bytes", "bits_per_weight", "offset", "file")
    rows = tuple(
        (
            str(tensor.index),
            tensor.name,
            tensor.type,
            str(tensor.type_id),
            "x".join(map(str, tensor.dims)),
            str(tensor.elements),
            str(tensor.nbytes),
            str(tensor.bits_per_weight),
            str(tensor.offset),
            report.files[tensor.file].path,
            tensor.sizing,
        )
        for tensor in report.tensors
    )
    return Table(title="", columns=columns(*heads, "sizing"), rows=rows)


def _flat_kvs(report: Dump) -> Table:
    rows = tuple(
        (
            str(kv.index),
            kv.key,
            kv.type,
            kv.element_type or "",
            str(kv.count),
            _value(kv) if kv.element_type or kv.type == _FLOAT else str(kv.value),
        )
        for kv in report.metadata
    )
    return Table(title="", columns=columns("index", "key", "type", "element_type", "count", "value"), rows=rows)


def _tables(report: Dump, kvs: bool, tensors: bool) -> Iterator[Table]:
    several = len(report.files) > 1
    if several:
        yield _files_table(report)
    if kvs:
        rows = tuple((str(kv.index), _type(kv), f"{kv.count:,}", f"{kv.key} = {_named(kv)}") for kv in report.metadata)
        title = f"{len(rows)} metadata KV"
        heads = columns(">#", "type", ">count", "key = value")
        yield Table(title=title, columns=heads, rows=rows, drop=("count", "#", "type"))
    if tensors:
        yield _tensors_table(report, several)
    if report.imatrix:
        from gguftool.render.cooking.imatrix import imatrix_table

        yield imatrix_table(report.imatrix)


def _files_table(report: Dump) -> Table:
    rows = tuple(
        (str(index), f"{file.tensors:,}", f"{file.size:,}", file.path)
        for index, file in enumerate(report.files, start=1)
    )
    heads = columns(">#", ">tensors", ">bytes", "file", start="file")
    return Table(title=f"{len(rows)} files", columns=heads, rows=rows, drop=("tensors",))


def _tensors_table(report: Dump, several: bool) -> Table:
    heads = [">#", ">elements", ">shape", "type", ">bytes", ">bpw", ">offset"] + [">file"] * several + ["name"]
    rows = tuple(
        (
            str(tensor.index),
            f"{tensor.elements:,}",
            " x ".join(map(str, tensor.dims)),
            tensor.type,
            f"{tensor.nbytes:,}{'' if tensor.sizing == 'by type' else '?'}",
            f"{tensor.bits_per_weight:.4g}",
            f"{tensor.offset:,}",
            *([str(tensor.file + 1)] * several),
            tensor.name,
        )
        for tensor in report.tensors
    )
    drop = ("offset", "#", "elements", "file", "bpw", "bytes", "shape")
    return Table(title=f"{len(rows)} tensors", columns=columns(*heads, middle="name"), rows=rows, drop=drop)


def _type(kv: KVEntry) -> str:
    return kv.type if kv.element_type is None else f"[{kv.element_type}]"


def _named(kv: KVEntry) -> str:
    """Format the value; a number that stands for a name is followed by it: ``15 (Q4_K_M)``."""
    is_number = isinstance(kv.value, int) and not isinstance(kv.value, bool)
    name = enum_name(kv.key, kv.value) if is_number else ""
    return _value(kv) + (f" ({name})" if name else "")


def _value(kv: KVEntry) -> str:
    shown = _float if _FLOAT in (kv.type, kv.element_type) else _scalar
    if kv.element_type is None:
        return shown(kv.value)
    items = ", ".join(map(shown, kv.value))
    more = ", ..." if kv.value else "..."
    return f"[{items}{more if kv.truncated else ''}]"


def _float(value: object) -> str:
    return format_float32(value) if isinstance(value, float) else _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    return f"'{printable(value, _TEXT_LIMIT)}'" if isinstance(value, str) else str(value)
