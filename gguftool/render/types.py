"""The table of types, and the description of one type."""

from __future__ import annotations

from gguftool.errors import PlanError, printable
from gguftool.format.dequantize import decoded_by
from gguftool.format.engine_facts.other_meanings import other_meanings
from gguftool.format.ftypes import no_such_type
from gguftool.format.ggml import TYPES, TypeTraits, find_type
from gguftool.record import record
from gguftool.render.table import Table, columns

_MOST_DIGITS = 10


@record
class TypeRow:
    """One tensor type as ``gguftool types --json`` prints it; sizes in bytes, `block` in elements.

    `dequantized_by` is ``numpy``, ``gguf`` or ``gguftool``; empty if nothing here decodes the bytes.
    `quantizers` are the back ends of `gguftool quantize` that make it, whether installed here or not.
    """

    id: int
    name: str
    alias: str
    block: int
    nbytes: int
    row_meta: int
    interleaved_rows: int
    bits_per_weight: float
    engines: tuple[str, ...]
    needs_imatrix: bool
    repack_of: tuple[str, ...]
    dequantized_by: str
    quantizers: tuple[str, ...]
    also_claimed_by: tuple[str, ...]


def type_rows(name: str | None = None) -> tuple[TypeRow, ...]:
    """List the types that can occur in files, or the one with this name or number.

    Raises `PlanError` for an unknown one, with an explanation.
    """
    if name is None:
        return tuple(_row(traits) for traits in TYPES.values() if traits.in_files)
    traits = _by_number(name) if name.isdecimal() and name.isascii() else find_type(name)
    if traits is None:
        raise PlanError(no_such_type(name))
    return (_row(traits),)


def _by_number(text: str) -> TypeTraits:
    """Find the type with a number; raise `PlanError` if there is none, and say who else uses the number."""
    number = int(text) if len(text) < _MOST_DIGITS else -1
    if number in TYPES:
        return TYPES[number]
    others = ", ".join(f"{other.name} ({other.holder})" for other in other_meanings(number))
    used = f"; elsewhere it is {others}" if others else ""
    raise PlanError(
        f"neither engine has a tensor type with the number {printable(text, 20)}{used}; see 'gguftool types'"
    )


def types_table(rows: tuple[TypeRow, ...]) -> Table:
    """Make a table of the rows."""
    sizes = (">block", ">bytes", ">row meta", ">rows", ">bpw")
    heads = columns(">id", "name", *sizes, "engines", "imatrix", "repack of", "dequantized", "made by", wrap="engines")
    cells = tuple(
        (
            str(row.id),
            row.name,
            str(row.block),
            str(row.nbytes),
            str(row.row_meta or ""),
            str(row.interleaved_rows) if row.interleaved_rows > 1 else "",
            f"{row.bits_per_weight:g}",
            " ".join(row.engines),
            "needed" if row.needs_imatrix else "",
            ", ".join(row.repack_of),
            row.dequantized_by,
            " ".join(row.quantizers),
        )
        for row in rows
    )
    drop = ("made by", "dequantized", "repack of", "row meta", "rows", "bytes", "block", "imatrix", "id")
    return Table(title="", columns=heads, rows=cells, drop=drop)


def describe_type(row: TypeRow) -> str:
    """State the facts about one type that are not in its row."""
    lines = [f"{row.name} (tensor type {row.id}, {row.alias} in recipes)"]
    if not TYPES[row.id].in_files:
        lines.append("An engine makes it at run time; it does not belong in a file.")
    if row.interleaved_rows > 1:
        packed = row.interleaved_rows
        lines.append(f"{packed} rows are packed together: the number of rows must be a multiple of {packed}.")
    if row.row_meta:
        lines.append(
            f"Each row starts with {row.row_meta} extra bytes: sizes computed from blocks alone are too small."
        )
    if row.quantizers:
        lines.append(f"'gguftool quantize' makes it with: {', '.join(row.quantizers)}.")
    if not row.dequantized_by:
        lines.append("It cannot be dequantized here: only its bytes can be compared and exported.")
    if row.also_claimed_by:
        lines.append(f"The number {row.id} is also used by: {', '.join(row.also_claimed_by)}.")
    return "\n".join(lines) + "\n"


def _row(traits: TypeTraits) -> TypeRow:
    return TypeRow(
        id=traits.id,
        name=traits.name,
        alias=traits.alias,
        block=traits.block_size,
        nbytes=traits.type_size,
        row_meta=traits.row_meta_size,
        interleaved_rows=traits.interleaved_rows,
        bits_per_weight=traits.bits_per_weight,
        engines=traits.engines,
        needs_imatrix=traits.needs_imatrix,
        repack_of=traits.repack_of,
        dequantized_by=decoded_by(traits.id),
        quantizers=traits.quantized_by,
        also_claimed_by=tuple(f"{other.name} ({other.holder})" for other in other_meanings(traits.id)),
    )
