"""Hashes in the formats that other tools read, and the verdicts of checking them."""

from __future__ import annotations

from collections.abc import Sequence

from gguftool.analysis.verify import Hash, Verdict
from gguftool.errors import printable
from gguftool.format.manifests import render_sum


def manifest_text(hashes: Sequence[Hash]) -> str:
    """The manifest of llama-gguf-hash: ``sha256    HEX  FILE:TENSOR``, the whole file's data last."""
    return "".join(f"sha256    {one.sha256}  {printable(one.name, 1 << 16)}\n" for one in hashes)


def sums_text(hashes: Sequence[Hash]) -> str:
    """Lines for ``sha256sum --check``; names are unescaped, fit for a pipe and not for a terminal."""
    return "".join(render_sum(one.name, one.sha256) + "\n" for one in hashes)


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """A line for each file or tensor with another hash than promised, and the counts."""
    bad = [verdict for verdict in verdicts if verdict.ok is False]
    unknown = sum(verdict.ok is None for verdict in verdicts)
    good = sum(verdict.ok is True for verdict in verdicts)
    lines = [f"BAD  {printable(verdict.name, 4096)}: {verdict.detail}" for verdict in bad]
    lines.append(f"{good:,} as promised, {len(bad):,} not, {unknown:,} without a hash to compare")
    return "\n".join(lines) + "\n"
