"""Devices: which tensors go where, how much space a device has left for weights, and the engine options to place them.

A rule works like ``-ot``: it is searched in the name, and the first that matches decides.  A device without a rule
takes the rest.  In addition to weights, a device holds:

- the KV cache, on GPUs where there are any (analysis/kv_cache.py has the formula).
- compute buffers:  4 * ubatch * (vocabulary + 8 * width + 3 * widest feed-forward layer in use) + 4 * ubatch * cells.
  An upper bound of the "compute buffer size" in llama.cpp's log with flash attention; docs/cooking.md compares.

Source: llama.cpp src/llama-context.cpp, b11434.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from gguftool.analysis.kv_cache import attention_layers, kv_cache, padded_context
from gguftool.analysis.recipe_compact import compact
from gguftool.cooking.offers import Offer
from gguftool.errors import PlanError, printable
from gguftool.format.engine_facts.caches import NO_CACHE, OTHER_CACHE
from gguftool.format.engine_facts.embeddings import TOKEN_EMBD
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.pattern import BadPatternError, NamePattern, compile_pattern
from gguftool.model.hparams import numbers
from gguftool.model.hparams import text as text_of
from gguftool.model.model import Model
from gguftool.model.roles import tensor_places
from gguftool.record import record

CPU = "CPU"
_CPU_NAMES = frozenset({"CPU", "RAM", "HOST"})
_NUMBERED = re.compile(r"(?:GPU|VRAM)([0-9]{0,2})")
_DEVICE = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_]{0,31})=(?P<size>[^:]+)(?::(?P<pattern>.+))?", re.DOTALL)
_ATTENTION = re.compile(r"blk\.([0-9]{1,6})\.attn_(?:k|kv|qkv|kv_a_mqa)\.weight")


@record
class Device:
    """A place for weights: `size` bytes, and its rule for ``-ot``; without a rule it takes the rest."""

    name: str
    size: int
    pattern: str | None = None
    regex: NamePattern | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether it is the main memory."""
        return self.name.upper() in _CPU_NAMES

    @property
    def buffer(self) -> str:
        """The name of its buffer type in ``-ot``: GPU is CUDA0, GPU1 is CUDA1, other names are kept."""
        if self.is_cpu:
            return CPU
        numbered = _NUMBERED.fullmatch(self.name.upper())
        return f"CUDA{int(numbered[1] or 0)}" if numbered else self.name


@record
class Context:
    """What needs memory besides weights: `cells` of context, the type of K and V, tokens in a batch; 0: no reserve."""

    ctx: int = 0
    kv_type: str = "f16"
    ubatch: int = 512


@record
class Reserve:
    """Memory of a device that is not for weights, in bytes."""

    kv_cache: int
    compute: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.kv_cache + self.compute


def parse_devices(texts: Iterable[str], parse_size: Callable[[str], int]) -> tuple[Device, ...]:
    """Parse ``NAME=SIZE[:REGEX]`` texts; raise a `ValueError` that lists all invalid ones."""
    devices, problems = [], []
    for text in texts:
        match = _DEVICE.fullmatch(text)
        if match is None:
            problems.append(f"'{printable(text, 80)}' is not NAME=SIZE:REGEX, such as GPU=11GiB:exps")
            continue
        pattern = match["pattern"]
        try:
            size = parse_size(match["size"])
            regex = None if pattern is None else compile_pattern(pattern)
        except (ValueError, BadPatternError) as error:
            problems.append(f"'{printable(text, 80)}': {error}")
            continue
        if pattern is not None and ("," in pattern or "=" in pattern):
            problems.append(f"'{printable(text, 80)}': a rule of -ot must not contain a comma or '='")
            continue
        devices.append(Device(name=match["name"], size=size, pattern=pattern, regex=regex))
    names: dict[str, int] = {}
    for device in devices:
        names.setdefault(device.name, device.size)
        if names[device.name] != device.size:
            problems.append(f"{device.name} has two sizes")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(devices)


class Placement:
    """The placement of tensors on `devices`; the rest is free to be shared by several devices without a rule."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self.rules: tuple[Device, ...] = tuple(device for device in devices if device.regex is not None)
        self.rest: tuple[str, ...] = tuple(dict.fromkeys(device.name for device in devices if device.regex is None))
        self.names: tuple[str, ...] = tuple(dict.fromkeys(device.name for device in devices))
        self._cpu = next((device for device in devices if device.is_cpu), None)
        self._devices = {device.name: device for device in devices}

    def __getitem__(self, name: str) -> Device:
        """The device of a name."""
        return self._devices[name]

    @property
    def gpus(self) -> tuple[str, ...]:
        """The names of all devices but the main memory."""
        return tuple(name for name in self.names if not self._devices[name].is_cpu)

    def device_of(self, tensor: str) -> str:
        """The name of the tensor's device; empty if the placement is free, or if no device takes the tensor."""
        for device in self.rules:
            if device.regex is not None and device.regex.search(tensor):
                return device.name
        if tensor == TOKEN_EMBD and self._cpu is not None:
            return self._cpu.name  # engines look tokens up there, whatever -ngl says
        return self.rest[0] if len(self.rest) == 1 else ""


# --- memory besides weights -------------------------------------------------------------------------------------------


def kv_cache_bytes(model: Model, offers: Sequence[Offer], context: Context) -> int:
    """The bytes of the KV cache of the layers in `offers`, by their names.

    Raises `PlanError` for a model that llama.cpp caches more of than keys and values, a head that lacks the numbers, or
    a type that does not fit.
    """
    architecture = text_of(model, ARCHITECTURE_KEY)
    if architecture in NO_CACHE:
        return 0
    layers = attention_layers(tensor_places(offer.name for offer in offers))
    cache = kv_cache(model, layers)
    if cache is None and layers:
        why = (
            f"llama.cpp caches more than keys and values for {printable(architecture, 40)}"
            if architecture in OTHER_CACHE
            else "its metadata lacks the heads or their length"
        )
        raise PlanError(f"--ctx: {why}; leave it out, and give less than the device has as its size", source=model.name)
    return cache.nbytes(context.ctx, kv_type=context.kv_type, ubatch=context.ubatch) if cache is not None else 0


def compute_bytes(model: Model, offers: Sequence[Offer], context: Context) -> int:
    """An upper bound of the compute buffer of one device, in bytes, with flash attention."""
    width = _largest(model, "embedding_length")
    experts = _largest(model, "expert_used_count") * _largest(model, "expert_feed_forward_length")
    widest = max(_largest(model, "feed_forward_length"), experts)
    vocabulary = next((offer.dims[1] for offer in offers if offer.name == TOKEN_EMBD and len(offer.dims) > 1), 0)
    cells = padded_context(context.ctx)
    batch = min(context.ubatch, cells)
    return 4 * batch * (vocabulary + 8 * width + 3 * widest) + 4 * batch * cells


def _largest(model: Model, key: str) -> int:
    """The number under the architecture's `key`, the largest of an array by layer; 0 if there is none."""
    return max((0, *numbers(model, key)))


def reserves(
    placement: Placement, model: Model | None, offers: Sequence[Offer], context: Context
) -> Mapping[str, Reserve]:
    """The memory of each device that is not for weights. Raises `PlanError` if the model lacks the numbers."""
    if not context.ctx:
        return {name: Reserve(kv_cache=0, compute=0) for name in placement.names}
    if model is None:
        raise PlanError("--ctx needs a model to take the numbers of heads from, but there are only maps")
    compute = compute_bytes(model, offers, context)
    cache = kv_cache_bytes(model, offers, context)
    holders = layer_shares(placement, offers) or dict.fromkeys(placement.names[:1], 1.0)
    return {
        name: Reserve(kv_cache=-(-int(cache * holders.get(name, 0.0) * 1024) // 1024), compute=compute)
        for name in placement.names
    }


def layer_shares(placement: Placement, offers: Sequence[Offer]) -> dict[str, float]:
    """The share of layers on each GPU, by the place of their attention; if it is in main memory, on the first GPU."""
    gpus = placement.gpus
    if not gpus:
        return {}
    counts = dict.fromkeys(gpus, 0)
    for offer in offers:
        if _ATTENTION.fullmatch(offer.name):
            device = placement.device_of(offer.name)
            counts[device if device in counts else gpus[0]] += 1
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {gpus[0]: 1.0}


# --- the command line -------------------------------------------------------------------------------------------------


def engine_arguments(
    placement: Placement, offers: Sequence[Offer], context: Context, free: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The engine's arguments that place tensors as planned, for a shell: -ngl, -ts, -ot in order, -c.

    `free` maps tensors that no rule places to their devices.
    """
    words: list[str] = []
    if placement.names:
        gpus = placement.gpus
        words += ["-ngl", "999" if gpus else "0"]
        if len(gpus) > 1:
            shares = layer_shares(placement, offers)
            words += ["-ts", ",".join(f"{shares[name] * 100:.0f}" for name in gpus)]
        for pattern, buffer in override_rules(placement, free):
            words += ["-ot", f"{pattern}={buffer}"]
    if context.ctx:
        words += ["-c", str(context.ctx), "-ub", str(context.ubatch)]
        if context.kv_type.lower() != "f16":
            words += ["-fa", "on", "-ctk", context.kv_type.lower(), "-ctv", context.kv_type.lower()]
    return shlex.join(words)


def override_rules(placement: Placement, free: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The rules of ``-ot`` in order: those given, free tensors by name, token embeddings in main memory, the rest.

    No rule contains a comma or ``=``, which are separators of ``-ot``.
    """
    if len(placement.names) < 2:
        return ()
    rules = [(device.pattern or "", device.buffer) for device in placement.rules]
    targets = {name: f"@{placement[device].buffer}" for name, device in free.items()}
    rules += [(rule.pattern, rule.target[1:]) for rule in compact(targets).rules] if targets else []
    cpu = next((name for name in placement.names if placement[name].is_cpu), None)
    if placement.rest:
        rest = placement[placement.rest[0]]
        if cpu is not None and not rest.is_cpu:
            rules.append((r"^token_embd\.weight$", CPU))
        rules.append((".*", rest.buffer))
    return tuple(rules)
