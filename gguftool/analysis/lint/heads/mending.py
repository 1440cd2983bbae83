"""The `alter` commands that fix what rules about tensors find: fused forms, single experts, MTP heads, encoders."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gguftool.analysis.lint.target import LintTarget
from gguftool.analysis.lint.way_out import alter_command
from gguftool.model.axes import tensor_axes
from gguftool.model.remap.fusing import FUSIONS, STACKS, Fusion, reads_parts

_ENCODER = re.compile(r"(?:v|a|mm|resampler)\.", re.ASCII)
_LAYER = re.compile(r"(blk\.([0-9]{1,6})\.)(.+)\.(?:weight|bias)", re.ASCII)


def mending(target: LintTarget, engine: str, name: str, trunk: int) -> str:
    """Write the command that fixes a tensor called `name` that `engine` misses, or has no use for; "" if none does.

    `trunk` is the number of layers that are not for MTP.
    """
    found = _LAYER.fullmatch(name)
    prefix, layer, base = (found[1], int(found[2]), found[3]) if found else ("", -1, name)
    fused = _fused(target, prefix, base)
    if fused is not None and reads_parts(fused.kind, target.architecture, engine):
        does = f"splits them for {engine}"
        return alter_command(target, "--unfuse", fused.kind, "--engine", engine, does=does)
    if tensor_axes(name, target.architecture).expert is not None or _has_single_experts(target, prefix, base):
        return alter_command(target, "--fuse", "experts", does="puts the experts together")
    if base.startswith(("nextn.", "mtp.")) or layer >= trunk > 0:
        return alter_command(target, "--drop", ":mtp", does="leaves the MTP layers out and corrects the keys")
    if _ENCODER.match(name):
        return alter_command(target, "--drop", ":vision", does="leaves the encoder out")
    return ""


def _fused(target: LintTarget, prefix: str, base: str) -> Fusion | None:
    """Find the fused form that a tensor is, or that replaces it; None if the parts exist, too."""
    for fusion in FUSIONS.values():
        if not prefix or base not in (fusion.fused, *fusion.parts):
            continue
        has_parts = any(f"{prefix}{part}.weight" in target.by_name for part in fusion.parts)
        if f"{prefix}{fusion.fused}.weight" in target.by_name and not has_parts:
            return fusion
    return None


def _has_single_experts(target: LintTarget, prefix: str, base: str) -> bool:
    return base in STACKS and f"{prefix}{STACKS[base]}.0.weight" in target.by_name


def by_mending(target: LintTarget, engine: str, names: Iterable[str], trunk: int) -> dict[str, tuple[str, ...]]:
    """Map each command to the `names` that it fixes, and "" to those that no command fixes."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(mending(target, engine, name, trunk), []).append(name)
    return {command: tuple(members) for command, members in groups.items()}
