"""Kinds of GGUF files that are not language models: what each is, and which program loads it.

A kind shows in `general.type`, in the architecture, or in the names of tensors; the first row that fits counts.

Sources: llama.cpp src/llama-adapter.cpp, tools/mtmd/clip.cpp, tools/cvector-generator; the loaders of
stable-diffusion.cpp, ComfyUI-GGUF, whisper.cpp and TTS.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gguftool.analysis.lint.target import LintTarget
from gguftool.record import record

GENERAL_TYPES = {
    "imatrix": "an importance matrix for llama-quantize, not a model",
    "mmproj": "a multimodal projector; --mmproj loads it with a model",
    "adapter": "a LoRA adapter; --lora loads it with a model",
    "vocab": "a vocabulary without weights",
    "controlvector": "a control vector; --control-vector loads it with a model",
}

# Architectures of other programs: name -> (what the file is, what loads it).
_IMAGE = "an image or video model of ComfyUI; ComfyUI-GGUF loads it, and stable-diffusion.cpp most of them"
_IMAGE_LORA = "a LoRA adapter of an image model; stable-diffusion.cpp loads it with sd-cli --lora-model-dir"
_SPEECH = "a speech model of TTS.cpp; its tts-cli loads it"
_ARCHITECTURES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2"),
            *("qwen_image", "pig"),
        ),
        _IMAGE,
    ),
    **dict.fromkeys(("parler-tts", "kokoro", "dia", "orpheus"), _SPEECH),
    "whisper": "a speech recognition model; whisper.cpp loads models of its own format, so ask who made this file",
    "controlvector": GENERAL_TYPES["controlvector"],
}


@record
class TensorNames:
    """The tensor names that identify a kind."""

    pattern: re.Pattern[str]
    words: str


# Of files without an architecture; the names are those of the original checkpoints.
_NAMES = (
    TensorNames(
        pattern=re.compile(r"(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\."),
        words="an image or video model of stable-diffusion.cpp, which has no metadata on purpose; "
        "sd-cli --model loads it, or --diffusion-model if the text encoders are separate files",
    ),
    TensorNames(
        pattern=re.compile(
            r"(?:double_blocks|single_blocks|joint_blocks|transformer_blocks|input_blocks|double_stream_modulation_img)\."
        ),
        words="a diffusion model without text encoders; stable-diffusion.cpp loads it with sd-cli --diffusion-model",
    ),
    TensorNames(
        pattern=re.compile(r"(?:first_stage_model|vae|decoder\.up_blocks|decoder\.up)\."),
        words="an image decoder (VAE); stable-diffusion.cpp loads it with sd-cli --vae",
    ),
    TensorNames(pattern=re.compile(r"(?:lora_unet_|lora_te|.*\.lora_(?:a|b|A|B|up|down)(?:\.weight)?$)"), words="lora"),
    TensorNames(pattern=re.compile(r"direction\.[0-9]+$"), words=GENERAL_TYPES["controlvector"]),
    TensorNames(pattern=re.compile(r"(?:v|a|mm)\."), words="projector"),
)


def kind_in_words(target: LintTarget) -> str:
    """Say what `target` is and what loads it; "" for a language model, and if no row fits."""
    if target.architecture == "clip" or target.kind == "mmproj":
        return _projector(target)
    if target.kind in GENERAL_TYPES:
        return f"general.type is {target.kind}: {GENERAL_TYPES[target.kind]}"
    if target.architecture in _ARCHITECTURES:
        return f"general.architecture is {target.architecture}: {_ARCHITECTURES[target.architecture]}"
    if any(kv.key.startswith("comfy.gguf.") for kv in target.kvs):
        return f"it has keys of ComfyUI-GGUF: {_IMAGE}"
    if not target.tensors:
        has_tokens = any(kv.key == "tokenizer.ggml.tokens" for kv in target.kvs)
        return GENERAL_TYPES["vocab"] if has_tokens and not target.missing and target.shard_count < 2 else ""
    return "" if target.architecture else _by_names(target)


def _by_names(target: LintTarget) -> str:
    """Find the kind that most tensor names of a file without an architecture indicate."""
    for row in _NAMES:
        if 2 * sum(bool(row.pattern.match(tensor.name)) for tensor in target.tensors) < len(target.tensors):
            continue
        if row.words == "lora":
            of_llama = any(".lora_a" in tensor.name for tensor in target.tensors)
            return GENERAL_TYPES["adapter"] if of_llama else _IMAGE_LORA
        return _projector(target) if row.words == "projector" else f"by its tensors' names, {row.words}"
    return ""


def _projector(target: LintTarget) -> str:
    """Describe a projector, and whether it names its type: llama.cpp refuses a type that it does not know."""
    keys = ("clip.projector_type", *(f"clip.{part}.projector_type" for part in ("vision", "audio", "gen.audio")))
    named = [target.string(key) for key in keys if target.string(key)]
    known = f"of type {', '.join(named)}" if named else "that names no type (clip.projector_type), like old files"
    return f"a multimodal projector {known}; --mmproj loads it with a model"
