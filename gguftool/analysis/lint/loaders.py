"""Rules about what loaders accept: header grammar, offsets, names, the set of tensors, the file type.

Sources: llama.cpp ggml/src/gguf.cpp and src/llama-model-loader.cpp; ik_llama.cpp ggml/src/ggml.c
(gguf_init_from_file) and src/llama-model-loader.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from gguftool.analysis.lint.heads.causes import set_layers
from gguftool.analysis.lint.kinds import kind_in_words
from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity, hits_by_message, rule, undecided
from gguftool.analysis.lint.target import LintTarget, integer_of
from gguftool.analysis.lint.way_out import edit_command, model_name
from gguftool.errors import command_line, listed, printable
from gguftool.format.engine_facts.embeddings import EMBEDDINGS_AND_OUTPUT
from gguftool.format.engine_facts.engines import BOTH, IK, MAINLINE
from gguftool.format.ftypes import FILE_TYPE_KEY, ftype_name, ftype_of_majority, ftypes_of
from gguftool.format.header import ALIGNMENT_KEY, DEFAULT_ALIGNMENT
from gguftool.format.kv import ValueType
from gguftool.model.model import ModelFile

MAX_NAME = 63  # bytes; GGML_MAX_NAME holds a final zero too
GGML_MAX_DIMS = 4  # ggml/include/ggml.h of both engines
MAX_LAYERS = 1 << 16  # bounds the work on a hostile block_count


def _shown(file: ModelFile) -> str:
    return printable(file.source.name, 4096)


@rule("P01", Severity.ERROR, engines=BOTH, way_out="convert the original model again; gguftool itself still reads it")
def version_1(target: LintTarget) -> Iterator[Hit]:
    """GGUF version 1 is refused by both engines."""
    for file in target.files:
        if file.header.version == 1:
            yield Hit(message="the file is GGUF version 1", where=_shown(file))


@rule("P02", Severity.ERROR, engines=MAINLINE, way_out="'gguftool edit FILE --remove \"\" -o NEW' removes it")
def empty_key(target: LintTarget) -> Iterator[Hit]:
    """A metadata key is empty."""
    for file in target.files:
        if any(not kv.key for kv in file.header.kvs):
            yield Hit(message="a metadata key is empty", where=_shown(file))


@rule("P03", Severity.ERROR, engines=BOTH, way_out="make the file again without it")
def nested_array(target: LintTarget) -> Iterator[Hit]:
    """A metadata value is an array of arrays: llama.cpp refuses the file, ik_llama.cpp aborts."""
    for file in target.files:
        for kv in file.header.kvs:
            if kv.type is ValueType.ARRAY and kv.element_type is ValueType.ARRAY:
                way_out = edit_command(target, "--remove", kv.key, does="removes it")
                message = f"'{printable(kv.key, 80)}' is an array of arrays"
                yield Hit(message=message, where=_shown(file), way_out=way_out)


@rule(
    "P04",
    Severity.ERROR,
    engines=BOTH,
    way_out="load it in ComfyUI-GGUF or stable-diffusion.cpp: engines take 4 dimensions",
)
def too_many_dims(target: LintTarget) -> Iterator[Hit]:
    """A tensor has more than 4 dimensions: both engines refuse the file."""
    many = (tensor for tensor in target.tensors if len(tensor.info.dims) > GGML_MAX_DIMS)
    yield from hits_by_message(many, lambda t: f"{len(t.info.dims)} dimensions; ggml takes at most {GGML_MAX_DIMS}")


@rule(
    "S08",
    Severity.ERROR,
    engines=MAINLINE,
    way_out="'gguftool merge FILE -o NEW --force-sizes type' writes dense offsets",
)
def offsets_not_dense(target: LintTarget) -> Iterator[Hit]:
    """Offsets are not what llama.cpp computes: dense, in header order, padded to the alignment."""
    for _, members in groupby(target.tensors, key=lambda tensor: tensor.file):
        expected = 0
        for tensor in members:
            if tensor.info.offset != expected:
                message = f"offset is {tensor.info.offset:,}, llama.cpp expects {expected:,}"
                yield Hit(message=message, tensors=(tensor.name,))
                break
            if tensor.padded is None:
                yield undecided(f"the size of {tensor.type} is unknown, and so are later offsets", (tensor.name,))
                break
            expected += tensor.padded


@rule("S09", Severity.WARNING, engines=BOTH, way_out="'gguftool merge FILE -o NEW --align 32' re-aligns")
def alignment_not_32(target: LintTarget) -> Iterator[Hit]:
    """general.alignment is not 32 as a u32, which all tools of the engines write by."""
    for file in target.files:
        kv = file.header.get(ALIGNMENT_KEY)
        if kv is None:
            continue
        if kv.type is not ValueType.UINT32:
            message = f"{ALIGNMENT_KEY} is {kv.type.name}; loaders refuse anything but UINT32"
            yield Hit(message=message, where=_shown(file), severity=Severity.ERROR)
        alignment = file.header.alignment
        if alignment < DEFAULT_ALIGNMENT and file.header.data_offset % DEFAULT_ALIGNMENT:
            message = (
                f"data starts at {file.header.data_offset:,}, not a multiple of 32: engines assert that under mmap"
            )
            yield Hit(message=message, where=_shown(file), severity=Severity.ERROR)
        elif alignment != DEFAULT_ALIGNMENT:
            message = (
                f"{ALIGNMENT_KEY} is {alignment:,}; llama-quantize and llama-gguf-split pad by 32 whatever it says"
            )
            yield Hit(message=message, where=_shown(file))


@rule("S10", Severity.ERROR, engines=MAINLINE, way_out="make the file again with names that the architecture knows")
def name_too_long(target: LintTarget) -> Iterator[Hit]:
    """A tensor name is longer than 63 bytes: llama.cpp refuses the file."""
    names = _long_names(target)
    if names:
        yield Hit(message=f"{len(names)} name(s) are longer than {MAX_NAME} bytes", tensors=names)


@rule("S10", Severity.WARNING, engines=IK, way_out="make the file again with names that the architecture knows")
def name_cut(target: LintTarget) -> Iterator[Hit]:
    """A tensor name is longer than 63 bytes: ik_llama.cpp cuts it, and names may become equal."""
    names = _long_names(target)
    if names:
        cut = Counter(name.encode("utf-8", "surrogateescape")[:MAX_NAME] for name in names)
        severity = Severity.ERROR if max(cut.values()) > 1 else Severity.WARNING
        message = f"{len(names)} name(s) are cut to {MAX_NAME} bytes"
        yield Hit(message=message, tensors=names, severity=severity)


def _long_names(target: LintTarget) -> tuple[str, ...]:
    return tuple(t.name for t in target.tensors if len(t.name) * 4 > MAX_NAME and len(_raw(t.name)) > MAX_NAME)


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@rule("S11", Severity.ERROR, engines=BOTH, way_out="fetch the missing tensors, or take them from the original model")
def missing_tensors(target: LintTarget) -> Iterator[Hit]:
    """Layers that the metadata counts have no tensors, there are more layers, or the token embedding is missing."""
    if kind_in_words(target):
        return
    if not target.has_metadata or target.missing:
        raise CannotEvaluate("the set is not complete")
    if not target.architecture:
        raise CannotEvaluate("the architecture is not known")
    if "token_embd.weight" not in target.by_name and target.architecture != "clip":
        yield Hit(message="token_embd.weight is missing")
    count = target.integer(f"{target.architecture}.block_count")
    if count is None:
        raise CannotEvaluate(f"{printable(target.architecture)}.block_count is absent")
    key = f"{target.architecture}.block_count"
    command = set_layers(target)
    out = f"fetch the missing tensors; if there are no more layers, {command}" if command else ""
    gaps = [layer for layer in range(min(count, MAX_LAYERS)) if layer not in target.layers]
    if gaps and target.architecture != "clip":
        layers = listed([str(layer) for layer in gaps])
        message = f"{len(gaps):,} of {count:,} layers have no tensor: {layers}"
        yield Hit(message=message, where=f"blk.{gaps[0]}", way_out=out, cause=key)
    extra = tuple(t.name for t in target.tensors if t.layer is not None and t.layer >= count)
    if extra:
        message = f"the metadata counts {count:,} layers, but there are tensors of more"
        yield Hit(message=message, tensors=extra, way_out=command, cause=key)


@rule("H02", Severity.ERROR, engines=BOTH, way_out="set it as u32")
def file_type_not_u32(target: LintTarget) -> Iterator[Hit]:
    """general.file_type has another type than u32: llama.cpp refuses the file, ik_llama.cpp aborts."""
    kv = next((kv for kv in target.kvs if kv.key == FILE_TYPE_KEY), None)
    if kv is not None and kv.type is not ValueType.UINT32:
        number = integer_of(kv)
        words = ("--remove", FILE_TYPE_KEY, *(("--set", f"{FILE_TYPE_KEY}=u32:{number}") if number is not None else ()))
        way_out = edit_command(target, *words, does="sets it as u32" if number is not None else "removes it")
        yield Hit(message=f"{FILE_TYPE_KEY} is {kv.type.name}", where=_shown(target.files[0]), way_out=way_out)


@rule(
    "H03",
    Severity.INFO,
    engines=BOTH,
    way_out="it is for display only",
)
def file_type_not_majority(target: LintTarget) -> Iterator[Hit]:
    """general.file_type does not match the type that most weights have."""
    number = integer_of(next((kv for kv in target.kvs if kv.key == FILE_TYPE_KEY), None))
    if number is None:
        return
    if target.missing:
        raise CannotEvaluate("the set is not complete")
    elements: Counter[str] = Counter()
    for tensor in target.tensors:
        if len(tensor.info.dims) > 1 and tensor.name not in EMBEDDINGS_AND_OUTPUT:
            elements[tensor.type] += tensor.info.elements
    most = max(elements.values(), default=0)
    majority = [name for name, count in elements.items() if count == most]
    claimed = {name for ftype in ftypes_of(number) for name in (ftype.tensor_type, ftype.majority_of)}
    if majority and not claimed & set(majority):
        message = f"{FILE_TYPE_KEY} {number} is {ftype_name(number)}, most weights are {majority[0]}"
        yield Hit(message=message, where=_shown(target.files[0]), way_out=_true_file_type(target, majority[0]))


def _true_file_type(target: LintTarget, majority: str) -> str:
    """Write the command that sets the file type of `majority`; "" if there is no such file type."""
    found = next((ftype for engine in BOTH if (ftype := ftype_of_majority(majority, engine))), None)
    if found is None:
        return ""
    command = command_line("edit", model_name(target), "--set", f"{FILE_TYPE_KEY}=u32:{found.id}", "--in-place")
    return f"it is for display only; {command} sets it"
