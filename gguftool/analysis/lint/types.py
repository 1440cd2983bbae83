"""Rules about tensor types: which engine knows them, which shapes its kernels take, what a type is suited for.

Sources: llama.cpp ggml/src/gguf.cpp; ik_llama.cpp ggml/src/ggml.c, ggml/src/iqk/iqk_mul_mat.cpp and
iqk_quantize.cpp, src/llama-quantize.cpp. The numbers are in format/ggml.py and format/engine_facts/types.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gguftool.analysis.lint.kinds import kind_in_words
from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity, hits_by_message, rule, undecided
from gguftool.analysis.lint.target import LintTarget, TensorView, formula_is_plain
from gguftool.analysis.lint.way_out import MAX_COMMAND, filled, model_name, new_file_name
from gguftool.errors import command_line
from gguftool.format.engine_facts.engines import BOTH, IK, IK_LLAMA_CPP, LLAMA_CPP, MAINLINE
from gguftool.format.engine_facts.operands import why_not_computable
from gguftool.format.engine_facts.other_meanings import other_meanings
from gguftool.format.engine_facts.types import ImatrixPolicy, TypeFacts, type_facts
from gguftool.format.ggml import find_type, layout_nbytes
from gguftool.format.quants.repacks import REPACKS
from gguftool.record import replace

_HALVES = ("F16", "BF16")
_SWAP_OUT = "swap the tensors for ones of a type that the engine knows"


def _ruled(target: LintTarget) -> Iterator[tuple[TensorView, TypeFacts]]:
    """Yield the weights with types that ik_llama.cpp has rules for, with these rules."""
    for tensor in target.weights:
        rules = type_facts(tensor.info.type)
        if rules is not None and tensor.traits is not None and IK_LLAMA_CPP in tensor.traits.engines:
            yield tensor, rules


# --- T: types --------------------------------------------------------------------------------------------------------


_PLAIN_AGAIN = "'gguftool quantize FILE --repack -o NEW' makes them plain, without loss"


@rule("T01", Severity.ERROR, engines=MAINLINE, way_out=f"run it in ik_llama.cpp if that knows them, or {_SWAP_OUT}")
def not_in_mainline(target: LintTarget) -> Iterator[Hit]:
    """llama.cpp refuses the tensor's type."""
    foreign = (t for t in target.tensors if t.traits is None or LLAMA_CPP not in t.traits.engines)
    for hit in hits_by_message(foreign, lambda t: f"{t.type} (id {t.info.type}) is not a type of llama.cpp"):
        known = all(_is_plain_in_mainline(target.by_name[name].type) for name in hit.tensors)
        yield replace(hit, way_out=filled(_PLAIN_AGAIN, target)) if known else hit


def _plain_again(target: LintTarget, tensor: TensorView) -> str:
    """Write the command that makes an interleaved tensor plain; "" for another type."""
    return filled(_PLAIN_AGAIN, target) if tensor.type in REPACKS else ""


def _is_plain_in_mainline(name: str) -> bool:
    """Whether the type is an interleaved form of one that llama.cpp has."""
    base = find_type(REPACKS[name].base) if name in REPACKS else None
    return base is not None and LLAMA_CPP in base.engines


@rule("T02", Severity.ERROR, engines=IK, way_out=f"run it in llama.cpp if that knows them, or {_SWAP_OUT}")
def not_in_ik(target: LintTarget) -> Iterator[Hit]:
    """ik_llama.cpp ends without a message (SIGFPE) or aborts on the tensor's type."""
    foreign = (
        t for t in target.tensors if t.traits is None or (IK_LLAMA_CPP not in t.traits.engines and t.traits.in_files)
    )
    yield from hits_by_message(foreign, lambda t: f"{t.type} (id {t.info.type}) is not a type of ik_llama.cpp")


@rule("T03", Severity.ERROR, engines=BOTH, way_out="quantize these tensors again, to a type for weights")
def not_for_files(target: LintTarget) -> Iterator[Hit]:
    """The type is one that engines use while running, never for weights in a file."""
    transient = (t for t in target.tensors if t.traits is not None and not t.traits.in_files)
    yield from hits_by_message(transient, lambda t: f"{t.type} is an activation or run-time type")


@rule("T06", Severity.ERROR, engines=BOTH, way_out="swap the tensors for ones in F32, or quantize the original again")
def not_computable(target: LintTarget) -> Iterator[Hit]:
    """A norm, bias or scale is not F32, or a weight is F64 or an integer: engines abort or end with a fault."""
    if kind_in_words(target):
        return
    found = (t for t in target.tensors if why_not_computable(t.name, t.info.type))
    for hit in hits_by_message(found, lambda t: why_not_computable(t.name, t.info.type)):
        yield replace(hit, way_out=_as_f32(target, [target.by_name[name] for name in hit.tensors]))


def _as_f32(target: LintTarget, tensors: Sequence[TensorView]) -> str:
    """Write the command that turns half-precision `tensors` into F32, without loss; "" for other types."""
    if any(tensor.type not in _HALVES for tensor in tensors):
        return ""
    patterns = {t.name if t.layer is None else rf"\.{re.escape(t.role)}$": None for t in tensors}
    words = [word for pattern in patterns for word in ("--tensor", f"{pattern}=F32")]
    if sum(map(len, words)) > MAX_COMMAND:
        return ""
    command = command_line("quantize", model_name(target), *words, "-o", new_file_name(target))
    return f"{command} writes them as F32, without loss"


@rule("T04", Severity.WARNING, way_out="load it with the fork it was made for, or quantize again")
def forks_type(target: LintTarget) -> Iterator[Hit]:
    """A tensor's space fits what a fork means by this type id, not what the engines mean."""
    for tensor in target.tensors:
        if tensor.is_last or (tensor.nbytes is not None and tensor.nbytes <= tensor.room < tensor.nbytes + 32):
            continue
        fitting = [
            f"{other.name} ({other.holder})"
            for other in other_meanings(tensor.info.type)
            if (size := layout_nbytes(other, tensor.info.dims)) and size <= tensor.room < size + 32
        ]
        if fitting:
            message = f"{tensor.room:,} bytes do not fit {tensor.type}; they fit {' or '.join(fitting)}"
            yield Hit(message=message, tensors=(tensor.name,))


@rule("T05", Severity.WARNING, engines=IK, way_out="quantize these tensors again with a current ik_llama.cpp")
def old_layout(target: LintTarget) -> Iterator[Hit]:
    """The tensor has a layout that ik_llama.cpp dropped, or its file may be that old."""
    for tensor in target.tensors:
        old = _old_row_meta(tensor)
        if old is not None:
            meta, date = old
            message = f"the space fits {tensor.type} from before {date}, with {meta} bytes of row metadata"
            yield Hit(message=message, tensors=(tensor.name,))
    for hit in hits_by_message(filter(_layout_changed, target.tensors), _describe_change):
        yield undecided(f"{hit.message}, of the same size, and a file does not record when it was made", hit.tensors)


def _layout_changed(tensor: TensorView) -> str:
    rules = type_facts(tensor.info.type)
    return rules.layout_changed if rules else ""


def _describe_change(tensor: TensorView) -> str:
    return f"{tensor.type} meant other bytes before {_layout_changed(tensor)}"


def _old_row_meta(tensor: TensorView) -> tuple[int, str] | None:
    rules = type_facts(tensor.info.type)
    old = rules.old_row_meta if rules else None
    if old is None or tensor.traits is None or tensor.nbytes is None or tensor.is_last:
        return None
    size = tensor.nbytes + (old[0] - tensor.traits.row_meta_size) * tensor.rows
    fits_now = tensor.nbytes <= tensor.room < tensor.nbytes + 32
    return old if not fits_now and size <= tensor.room < size + 32 else None


# --- S: shapes -------------------------------------------------------------------------------------------------------


@rule("S01", Severity.ERROR, engines=BOTH, way_out="use a type with smaller blocks for these tensors, such as Q8_0")
def rows_not_whole_blocks(target: LintTarget) -> Iterator[Hit]:
    """The row length is not a multiple of the type's block size."""
    for tensor in target.tensors:
        if formula_is_plain(tensor) and tensor.traits and tensor.ne0 % tensor.traits.block_size:
            message = (
                f"rows of {tensor.ne0:,} elements are not whole blocks of {tensor.traits.block_size} ({tensor.type})"
            )
            yield Hit(message=message, tensors=(tensor.name,))


@rule("S02", Severity.ERROR, engines=IK, way_out="use another type for these tensors, such as Q8_0 or Q6_0")
def rows_too_odd_for_kernel(target: LintTarget) -> Iterator[Hit]:
    """The row length is not a multiple of what ik_llama.cpp's kernel takes: it aborts or computes garbage."""
    yield from hits_by_message((t for t, _ in _ruled(target) if not t.is_embedding and _odd_row(t)), _describe_row)


@rule("S06", Severity.ERROR, engines=IK, way_out="use another type for token_embd.weight, or add an output.weight")
def tied_embedding(target: LintTarget) -> Iterator[Hit]:
    """token_embd also serves as output (there is no output.weight), and its type cannot be multiplied with."""
    for tensor, rules in _ruled(target):
        if tensor.is_embedding and (_odd_row(tensor) or tensor.ne1 % rules.kernel_ne1):
            if target.missing:
                raise CannotEvaluate("the set is incomplete, so output.weight may be in another shard")
            message = f"{tensor.type} of {tensor.ne0:,} x {tensor.ne1:,}: the kernel takes multiples of "
            yield Hit(message=f"{message}{rules.kernel_ne0} x {rules.kernel_ne1}", tensors=(tensor.name,))


def _odd_row(tensor: TensorView) -> bool:
    """Whether the kernel needs more than whole blocks. Plain floats have other paths if the fast one refuses."""
    rules, traits = type_facts(tensor.info.type), tensor.traits
    if rules is None or traits is None or not (traits.is_quantized or traits.interleaved_rows > 1):
        return False
    return tensor.ne0 % traits.block_size == 0 and tensor.ne0 % rules.kernel_ne0 != 0


def _describe_row(tensor: TensorView) -> str:
    rules = type_facts(tensor.info.type)
    return f"rows of {tensor.ne0:,} elements; the {tensor.type} kernel needs multiples of {rules and rules.kernel_ne0}"


@rule("S03", Severity.ERROR, engines=IK, way_out="use the type without _R4/_R8/_R16 for these tensors")
def rows_not_interleavable(target: LintTarget) -> Iterator[Hit]:
    """The number of rows (of each expert) is not a multiple of the rows that the type packs together."""
    for tensor in target.tensors:
        rows = tensor.traits.interleaved_rows if tensor.traits else 1
        if tensor.ne1 % rows:
            message = f"{tensor.ne1:,} rows; {tensor.type} packs {rows} together"
            yield Hit(message=message, tensors=(tensor.name,))


@rule("S04", Severity.ERROR, engines=IK, way_out="use the type without _R4/_R8, or one that packs fewer rows")
def rows_too_odd_for_kernel_groups(target: LintTarget) -> Iterator[Hit]:
    """The number of rows is not a multiple of what ik_llama.cpp's kernel takes at once: it aborts."""
    for tensor, rules in _ruled(target):
        rows = tensor.traits.interleaved_rows if tensor.traits else 1
        if tensor.is_embedding or tensor.ne1 % rows:  # those are S06 and S03
            continue
        if tensor.ne1 % rules.kernel_ne1:
            message = f"{tensor.ne1:,} rows; the {tensor.type} kernel takes {rules.kernel_ne1} at once"
            yield Hit(message=message, tensors=(tensor.name,), way_out=_plain_again(target, tensor))
        elif tensor.ne1 % rules.avx512_ne1:
            message = f"{tensor.ne1:,} rows; on CPUs with AVX-512 the {tensor.type} kernel takes {rules.avx512_ne1}"
            out = _plain_again(target, tensor)
            yield Hit(message=message, tensors=(tensor.name,), severity=Severity.WARNING, way_out=out)


@rule("S05", Severity.ERROR, engines=IK, way_out="give the token embedding a plain type, such as Q8_0 or IQ4_K")
def embedding_type(target: LintTarget) -> Iterator[Hit]:
    """Single rows of the token embedding cannot be looked up in this type."""
    for tensor in target.tensors:
        rules = type_facts(tensor.info.type)
        if tensor.is_embedding and rules is not None and IK_LLAMA_CPP in rules.no_token_embd:
            packed = tensor.traits is not None and tensor.traits.interleaved_rows > 1
            why = "packs several rows together" if packed else "has no working conversion of single rows"
            out = _plain_again(target, tensor)
            yield Hit(message=f"{tensor.type} {why}", tensors=(tensor.name,), way_out=out)


@rule("S07", Severity.ERROR, engines=IK, way_out="leave the tensor out, or make the file again")
def empty_tensor(target: LintTarget) -> Iterator[Hit]:
    """A dimension is zero: llama.cpp accepts that, ik_llama.cpp aborts."""
    empty = (t for t in target.tensors if 0 in t.info.dims)
    yield from hits_by_message(empty, lambda t: f"dims {' x '.join(map(str, t.info.dims))}")


# --- B, Q: what a type is suited for ---------------------------------------------------------------------------------


@rule("B01", Severity.ERROR, engines=IK, way_out="quantize the original again, to a type for usual weights")
def ternary_type(target: LintTarget) -> Iterator[Hit]:
    """A type for ternary weights in a model that is not a BitNet: one scale per row destroys any other weights."""
    found = [t for t in target.tensors if t.traits and t.traits.kind == "ternary" and t.traits.row_meta_size]
    if found and not target.architecture:
        raise CannotEvaluate("the architecture is not known, so it may be a BitNet")
    if "bitnet" not in target.architecture:
        yield from hits_by_message(found, lambda t: f"{t.type} in a model that is not a BitNet")


@rule(
    "B02", Severity.ERROR, engines=IK, way_out="requantize it with ik_llama.cpp's llama-quantize, to IQ2_BN or IQ1_BN"
)
def no_kernel(target: LintTarget) -> Iterator[Hit]:
    """I2_S can only be requantized: there is no kernel to multiply with it."""
    yield from hits_by_message((t for t in target.tensors if t.type == "I2_S"), lambda t: "I2_S has no kernel")


@rule("B03", Severity.INFO, engines=IK, way_out="keep the original: quantize from that, not from this file")
def no_requantizing(target: LintTarget) -> Iterator[Hit]:
    """ik_llama.cpp cannot requantize from the type: its conversion to floats is missing or wrong."""
    found = (t for t in target.tensors if (rules := type_facts(t.info.type)) is not None and not rules.to_float)
    yield from hits_by_message(found, lambda t: f"{t.type} cannot be converted back to floats by ik_llama.cpp")


@rule("B04", Severity.ERROR, engines=IK, way_out="quantize to Q8_KV_R8 directly, not by --repack from Q8_KV")
def broken_repack(target: LintTarget) -> Iterator[Hit]:
    """Q8_KV_R8 with 4 unused bytes per row: made by llama-quantize --repack, all but the first 8 rows are corrupt."""

    def is_repacked(t: TensorView) -> bool:
        if t.type != "Q8_KV_R8" or t.nbytes is None:
            return False
        base = t.nbytes + 4 * t.rows
        return base <= t.room < base + 32

    found = (t for t in target.tensors if is_repacked(t))
    yield from hits_by_message(found, lambda t: "the space is that of Q8_KV, which has 4 more bytes in each row")


@rule("Q01", Severity.INFO, engines=BOTH, way_out="ask its author for the imatrix; without one these types are poor")
def no_imatrix(target: LintTarget) -> Iterator[Hit]:
    """The file has types that want an importance matrix, but it names none."""
    if not target.has_metadata:
        raise CannotEvaluate("the file with the metadata is missing")
    if any(kv.key.startswith("quantize.imatrix.") for kv in target.kvs):
        return
    wanting = (t for t in target.tensors if not t.is_embedding and t.name != "output.weight" and _wants_imatrix(t))
    yield from hits_by_message(wanting, lambda t: f"{t.type} without quantize.imatrix.* in the metadata")


def _wants_imatrix(tensor: TensorView) -> bool:
    rules = type_facts(tensor.info.type)
    return rules is not None and not {ImatrixPolicy.YES, ImatrixPolicy.ASSERTED}.isdisjoint(rules.imatrix.values())
