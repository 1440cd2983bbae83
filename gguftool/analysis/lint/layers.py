"""Rules about tensors that belong together in a layer, MLA attention, and types on CUDA devices.

Sources: ik_llama.cpp src/llama-build-context.cpp, src/llama-load-tensors.cpp, ggml/src/ggml-cuda.cu; llama.cpp
src/models/deepseek2.cpp. Findings are grouped: one for all layers that combine the same two types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity, hits_by_message, rule, undecided
from gguftool.analysis.lint.target import LintTarget, TensorView
from gguftool.format.engine_facts.engines import BOTH, IK, IK_LLAMA_CPP, MAINLINE
from gguftool.format.engine_facts.types import type_facts

_UP_EXPS, _GATE_EXPS, _BOTH_EXPS = "ffn_up_exps.weight", "ffn_gate_exps.weight", "ffn_gate_up_exps.weight"
_UP, _GATE = "ffn_up.weight", "ffn_gate.weight"
_MERGEABLE = (("attn_q.weight", "attn_k.weight", "attn_v.weight"), ("attn_q_a.weight", "attn_kv_a_mqa.weight"))
_EXPERT_ROWS = 16
_K_B, _V_B, _KV_B = "attn_k_b.weight", "attn_v_b.weight", "attn_kv_b.weight"
_MLA_MARK = "attn_kv_a_mqa.weight"
_LAYERS_SHOWN = 12

Judgement = tuple[str, tuple[str, ...]] | None  # a message and the roles that it concerns


def _in_layers(
    layers: Mapping[int, Mapping[str, TensorView]], judge: Callable[[Mapping[str, TensorView]], Judgement]
) -> Iterator[Hit]:
    """Yield a hit for each distinct message of `judge`, with its layers; `judge` returns message and roles, or None."""
    groups: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for layer, roles in layers.items():
        found = judge(roles)
        if found is not None:
            message, concerned = found
            groups.setdefault(message, []).append(
                (layer, tuple(roles[role].name for role in concerned if role in roles))
            )
    for message, places in groups.items():
        names = tuple(name for _, members in places for name in members)
        yield Hit(message=message, where=layers_in_words([layer for layer, _ in places]), tensors=names)


def layers_in_words(layers: list[int]) -> str:
    """Format sorted `layers` as ``blk.3``, or ``blk.3, blk.5-9 (6 layers)``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    shown = ", ".join(f"blk.{'-'.join(map(str, run))}" for run in runs[:_LAYERS_SHOWN])
    more = ", ..." if len(runs) > _LAYERS_SHOWN else ""
    return f"{shown}{more} ({len(layers)} layers)" if len(layers) > 1 else shown


# --- M: pairs --------------------------------------------------------------------------------------------------------


def _differ(roles: Mapping[str, TensorView], one: str, other: str, then: str) -> Judgement:
    up, gate = roles.get(one), roles.get(other)
    if up is None or gate is None:
        return None
    names = f"{one.removesuffix('.weight')} is {{}}, {other.removesuffix('.weight')} is {{}}: {then}"
    if up.info.type != gate.info.type:
        return names.format(up.type, gate.type), (one, other)
    if up.info.shape != gate.info.shape:
        return names.format(up.info.shape, gate.info.shape), (one, other)
    return None


_SAME_TYPE = "give both the same type, with --custom-q or a recipe, or swap one of them"


@rule("M01", Severity.WARNING, engines=IK, way_out=_SAME_TYPE)
def experts_of_two_types(target: LintTarget) -> Iterator[Hit]:
    """ffn_up_exps and ffn_gate_exps of a layer differ in type or shape: the fused MoE path is lost."""
    yield from _in_layers(target.layers, lambda roles: _differ(roles, _UP_EXPS, _GATE_EXPS, "no fused MoE"))


@rule("M02", Severity.WARNING, engines=IK, way_out=_SAME_TYPE)
def dense_of_two_types(target: LintTarget) -> Iterator[Hit]:
    """ffn_up and ffn_gate of a dense layer differ in type or shape: the fused path is lost."""
    yield from _in_layers(target.layers, lambda roles: _differ(roles, _UP, _GATE, "no fused up and gate"))


@rule("M03", Severity.INFO, engines=IK, way_out=_SAME_TYPE)
def experts_not_mergeable(target: LintTarget) -> Iterator[Hit]:
    """-muge does not merge ffn_up_exps and ffn_gate_exps of different type, row length or number of experts."""

    def judge(roles: Mapping[str, TensorView]) -> Judgement:
        up, gate = roles.get(_UP_EXPS), roles.get(_GATE_EXPS)
        if up is None or gate is None or _merge_key(up) == _merge_key(gate):
            return None
        return "-muge will not merge the two", (_UP_EXPS, _GATE_EXPS)

    yield from _in_layers(target.layers, judge)


def _merge_key(tensor: TensorView) -> tuple[int, int, tuple[int, ...]]:
    return tensor.info.type, tensor.ne0, tensor.info.shape[2:]


@rule("M04", Severity.INFO, engines=IK, way_out="give them the same type if you run with -mqkv")
def attention_not_mergeable(target: LintTarget) -> Iterator[Hit]:
    """Attention tensors that -mqkv could merge have different types."""
    for group in _MERGEABLE:

        def judge(roles: Mapping[str, TensorView], group: tuple[str, ...] = group) -> Judgement:
            present = [roles[role] for role in group if role in roles]
            types = list(dict.fromkeys(tensor.type for tensor in present))
            if len(types) < 2:
                return None
            names = ", ".join(role.removesuffix(".weight") for role in group)
            return f"{names} have types {', '.join(types)}", group

        yield from _in_layers(target.layers, judge)


@rule("M05", Severity.ERROR, engines=BOTH, way_out="leave out either the merged tensor or the two separate ones")
def merged_and_separate(target: LintTarget) -> Iterator[Hit]:
    """ffn_gate_up_exps exists alongside ffn_gate_exps or ffn_up_exps, or its halves do not fit the type's packing."""

    def judge(roles: Mapping[str, TensorView]) -> Judgement:
        merged = roles.get(_BOTH_EXPS)
        if merged is None:
            return None
        if _UP_EXPS in roles or _GATE_EXPS in roles:
            return "ffn_gate_up_exps exists alongside the tensors in it", (_BOTH_EXPS, _UP_EXPS, _GATE_EXPS)
        rows = merged.traits.interleaved_rows if merged.traits else 1
        if merged.ne1 % (2 * rows):
            return f"{merged.ne1 // 2:,} rows of each half; {merged.type} packs {rows} together", (_BOTH_EXPS,)
        return None

    yield from _in_layers(target.layers, judge)


@rule("M06", Severity.WARNING, engines=IK, way_out="nothing to do in the file; expect asserts in the MoE path")
def expert_rows(target: LintTarget) -> Iterator[Hit]:
    """The number of an expert's rows is not a multiple of 16, by which prompt processing on the CPU packs them."""
    odd = (t for t in target.tensors if t.role.endswith("_exps.weight") and t.ne1 % _EXPERT_ROWS)
    yield from hits_by_message(odd, lambda t: f"{t.ne1:,} rows per expert, not a multiple of {_EXPERT_ROWS}")


# --- D: MLA attention ------------------------------------------------------------------------------------------------


@rule("D01", Severity.ERROR, engines=BOTH, way_out="use Q8_0, Q6_0, Q5_0, Q5_1, Q4_0 or IQ4_NL for attn_k_b")
def k_b_rows(target: LintTarget) -> Iterator[Hit]:
    """attn_k_b has short rows (the head size without rope, mostly 128), which blocks of 256 do not fit."""
    for tensor in target.tensors:
        rules = type_facts(tensor.info.type)
        if tensor.role != _K_B or rules is None or tensor.traits is None or not tensor.traits.is_quantized:
            continue
        if tensor.ne0 % tensor.traits.block_size or tensor.ne0 % rules.kernel_ne0:
            message = f"rows of {tensor.ne0:,} elements; {tensor.type} needs multiples of {rules.kernel_ne0}"
            yield Hit(message=message, tensors=(tensor.name,))


def _mla_layers(target: LintTarget) -> dict[int, Mapping[str, TensorView]]:
    layers = {layer: roles for layer, roles in target.layers.items() if _MLA_MARK in roles}
    if layers and target.missing:
        raise CannotEvaluate("the set is not complete")
    return layers


@rule(
    "D02", Severity.ERROR, engines=MAINLINE, way_out="convert the original again with a current convert_hf_to_gguf.py"
)
def mla_trio_mainline(target: LintTarget) -> Iterator[Hit]:
    """An MLA model needs attn_k_b and attn_v_b with three dimensions and no attn_kv_b in llama.cpp."""
    layers = _mla_layers(target)
    if layers and not target.architecture:
        raise CannotEvaluate("the architecture is not known")
    is_mla = bool(target.integer(f"{target.architecture}.attention.key_length_mla"))
    yield from _in_layers(layers, _judge_mla if is_mla else _judge_before_mla)


def _judge_mla(roles: Mapping[str, TensorView]) -> Judgement:
    split = tuple(role for role in (_K_B, _V_B) if role in roles)
    flat = tuple(role for role in split if len(roles[role].info.shape) != 3)
    if len(split) < 2:
        return "attn_k_b or attn_v_b is missing", (_MLA_MARK, *split)
    if flat:
        return f"{' and '.join(flat)} should have three dimensions", flat
    return ("attn_kv_b exists alongside attn_k_b and attn_v_b", (_KV_B,)) if _KV_B in roles else None


def _judge_before_mla(roles: Mapping[str, TensorView]) -> Judgement:
    if _KV_B in roles:
        return None
    return "attn_kv_b is missing, and attention.key_length_mla is not set", (_MLA_MARK,)


@rule(
    "D03", Severity.ERROR, engines=IK, way_out="leave attn_kv_b out, or attn_k_b and attn_v_b, which are then computed"
)
def mla_trio_ik(target: LintTarget) -> Iterator[Hit]:
    """attn_kv_b exists alongside attn_k_b and attn_v_b with three dimensions, but ik_llama.cpp wants them flat."""

    def judge(roles: Mapping[str, TensorView]) -> Judgement:
        deep = tuple(role for role in (_K_B, _V_B) if role in roles and len(roles[role].info.shape) == 3)
        return ("attn_kv_b alongside three-dimensional parts", (_KV_B, *deep)) if _KV_B in roles and deep else None

    yield from _in_layers(_mla_layers(target), judge)


@rule("D04", Severity.INFO, engines=IK, way_out="nothing to do; they take memory in addition to attn_kv_b")
def mla_computed(target: LintTarget) -> Iterator[Hit]:
    """attn_k_b and attn_v_b are absent: ik_llama.cpp computes them as Q8_0 when it loads the model."""
    layers = [layer for layer, roles in _mla_layers(target).items() if _KV_B in roles and not {_K_B, _V_B} & set(roles)]
    if layers:
        yield Hit(message="attn_k_b and attn_v_b are computed from attn_kv_b at load", where=layers_in_words(layers))


# --- G: devices ------------------------------------------------------------------------------------------------------


def _placed_without(target: LintTarget, lacks: Callable[[TensorView], bool]) -> Iterator[tuple[TensorView, str]]:
    """Yield the weights that lack something on CUDA, with their devices; unplaced tensors are left out."""
    for tensor in target.weights:
        device = target.device_of(tensor.name)
        if device is not None and lacks(tensor):
            yield tensor, device


def _no_places(target: LintTarget, lacks: Callable[[TensorView], bool]) -> tuple[str, ...]:
    return () if target.places else tuple(tensor.name for tensor in target.weights if lacks(tensor))


def _is_cuda(device: str) -> bool:
    return device.upper().startswith("CUDA")


def _no_cuda(tensor: TensorView) -> bool:
    rules, traits = type_facts(tensor.info.type), tensor.traits
    if rules is None or traits is None or rules.cuda or IK_LLAMA_CPP not in traits.engines:
        return False
    return traits.is_quantized or traits.interleaved_rows > 1


def _no_mmq(tensor: TensorView) -> bool:
    rules = type_facts(tensor.info.type)
    return (
        rules is not None and tensor.traits is not None and tensor.traits.is_quantized and rules.cuda and not rules.mmq
    )


@rule("G01", Severity.WARNING, engines=IK, way_out="use the type without _R4/_R8 for what the GPU multiplies")
def no_cuda_kernel(target: LintTarget) -> Iterator[Hit]:
    """CUDA cannot multiply with the type: on the GPU it fails or is slow; on the CPU, large batches stay there, too."""
    if names := _no_places(target, _no_cuda):
        yield undecided("no --place says what is on the GPU, and CUDA cannot multiply with these types", names)
    devices = [(t, device) for t, device in _placed_without(target, _no_cuda)]
    yield from hits_by_message(
        (t for t, device in devices if _is_cuda(device)), lambda t: f"{t.type} has no CUDA kernel"
    )
    if any(_is_cuda(rule.device) for rule in target.places):
        staying = (t for t, device in devices if not _is_cuda(device) and t.role.endswith("_exps.weight"))
        yield from hits_by_message(staying, lambda t: f"{t.type} experts stay on the CPU even for large batches")


@rule("G02", Severity.WARNING, engines=IK, way_out="prompt processing is slow there; use another type")
def no_quantized_multiplication(target: LintTarget) -> Iterator[Hit]:
    """CUDA has no quantized matrix multiplication for the type: it converts to floats first."""
    if names := _no_places(target, _no_mmq):
        yield undecided("no --place says what is on the GPU, and CUDA is slow with these types", names)
    slow = (t for t, device in _placed_without(target, _no_mmq) if _is_cuda(device))
    yield from hits_by_message(slow, lambda t: f"{t.type} has no quantized multiplication on CUDA")


@rule("G03", Severity.INFO, engines=IK, way_out="use a build of 2025-07-18 or later, or -no-fmoe")
def iq1_m_experts(target: LintTarget) -> Iterator[Hit]:
    """IQ1_M experts abort in the fused MoE path of ik_llama.cpp builds before 2025-07-18."""
    found = (t for t in target.tensors if t.type == "IQ1_M" and t.role.endswith("_exps.weight"))
    yield from hits_by_message(found, lambda t: "IQ1_M experts")
