"""Mixture-of-experts models of DeepSeek's width and any depth, in mixes as people make them.

The tensor data is a hole in the file, so that a model of hundreds of gigabytes takes a few kilobytes.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.report_model import Spec, gguf_head, kv_text, kv_u32

EMBD, FF, DENSE_FF, EXPERTS, VOCAB = 7168, 2048, 18432, 256, 129280
DENSE_LAYERS = 3


def write_big_moe(path: Path, *, layers: int = 61, up: str = "IQ3_K", down: str = "IQ4_KS") -> Path:
    """Write a model whose routed experts are `up` and `down`, a bit more in the first and last layers."""
    tensors = [Spec("token_embd.weight", (EMBD, VOCAB), "Q8_0")]
    for number in range(layers):
        tensors += _attention(number) + (
            _dense(number) if number < DENSE_LAYERS else _experts(number, layers, up, down)
        )
    tensors += [Spec("output_norm.weight", (EMBD,), "F32"), Spec("output.weight", (EMBD, VOCAB), "Q6_K")]
    kvs = [
        kv_text("general.architecture", "deepseek2"),
        kv_text("general.name", "Big MoE"),
        kv_text("general.license", "mit"),
        kv_text("tokenizer.chat_template", "{% for message in messages %}\n{{ message.content }}\n{% endfor %}\n" * 8),
        kv_u32("deepseek2.block_count", layers),
        kv_u32("deepseek2.expert_count", EXPERTS),
        kv_u32("general.file_type", 140),
    ]
    head, length = gguf_head(kvs, tensors)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + length)
    return path


def _attention(number: int) -> list[Spec]:
    blk = f"blk.{number}."
    return [
        Spec(f"{blk}attn_norm.weight", (EMBD,), "F32"),
        Spec(f"{blk}attn_q_a.weight", (EMBD, 1536), "Q6_K"),
        Spec(f"{blk}attn_q_b.weight", (1536, 24576), "Q6_K"),
        Spec(f"{blk}attn_kv_a_mqa.weight", (EMBD, 576), "Q8_0"),
        Spec(f"{blk}attn_output.weight", (16384, EMBD), "Q5_K" if number % 8 else "Q6_K"),
        Spec(f"{blk}ffn_norm.weight", (EMBD,), "F32"),
    ]


def _dense(number: int) -> list[Spec]:
    blk = f"blk.{number}."
    return [
        Spec(f"{blk}ffn_gate.weight", (EMBD, DENSE_FF), "Q6_K"),
        Spec(f"{blk}ffn_up.weight", (EMBD, DENSE_FF), "Q6_K"),
        Spec(f"{blk}ffn_down.weight", (DENSE_FF, EMBD), "Q8_0"),
    ]


def _experts(number: int, layers: int, up: str, down: str) -> list[Spec]:
    blk, edge = f"blk.{number}.", number < 6 or number >= layers - 4
    up, down = (down, "IQ5_K") if edge else (up, down)
    return [
        Spec(f"{blk}ffn_gate_inp.weight", (EMBD, EXPERTS), "F32"),
        Spec(f"{blk}ffn_gate_exps.weight", (EMBD, FF, EXPERTS), up),
        Spec(f"{blk}ffn_up_exps.weight", (EMBD, FF, EXPERTS), up),
        Spec(f"{blk}ffn_down_exps.weight", (FF, EMBD, EXPERTS), down),
        Spec(f"{blk}ffn_gate_shexp.weight", (EMBD, FF), "Q6_K"),
        Spec(f"{blk}ffn_up_shexp.weight", (EMBD, FF), "Q6_K"),
        Spec(f"{blk}ffn_down_shexp.weight", (FF, EMBD), "Q6_K"),
    ]
