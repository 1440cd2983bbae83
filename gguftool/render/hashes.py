"""Hashes in the formats that other tools read, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Sequence

from gguftool.analysis.verify import Hash, Verdict
from gguftool.errors import printable
from gguftool.format.manifests import render_sum


def manifest_text(hashes: Sequence[Hash]) -> str:
    """Write the manifest of llama-gguf-hash: ``sha256    HEX  FILE:TENSOR``, the hash of all data last."""
    return "".join(f"sha256    {one.sha256}  {printable(one.name, 1 << 16)}\n" for one in hashes)


def sums_text(hashes: Sequence[Hash]) -> str:
    """Write lines for ``sha256sum --check``; names are unescaped, fit for a pipe but not for a terminal."""
    return "".join(render_sum(one.name, one.sha256) + "\n" for one in hashes)


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """Write a line for each file or tensor that has another hash than promised, then the counts."""
    bad = [verdict for verdict in verdicts if verdict.ok is False]
    unknown = sum(verdict.ok is None for verdict in verdicts)
    good = sum(verdict.ok is True for verdict in verdicts)
    lines = [f"BAD  {printable(verdict.name, 4096)}: {verdict.detail}" for verdict in bad]
    lines.append(f"{good:,} match, {len(bad):,} do not, {unknown:,} have no hash to compare")
    return "\n".join(lines) + "\n"
