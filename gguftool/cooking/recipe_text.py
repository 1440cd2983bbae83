"""The recipe of a mix: a header that describes its origin, without folders of this machine, and few rules."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.analysis.recipe_compact import compact
from gguftool.cooking.mix import Mix
from gguftool.errors import printable
from gguftool.format.recipe import render_recipe
from gguftool.storage.sources.locate import base_name


def recipe_text(mix: Mix, *, everything: bool) -> str:
    """The recipe of `mix`; `everything`: also rules for tensors without a choice, which merges need."""
    types = {tensor.name: tensor.type for tensor in mix.tensors if tensor.chosen or everything}
    header = "".join(f"# {line}\n" for line in _header(mix))
    return header + (render_recipe(compact(types)) if types else "")


def _header(mix: Mix) -> Iterator[str]:
    yield f"{mix.made_by} plan"
    yield f"model: {printable(base_name(mix.model), 1000)}"
    yield f"target: {printable(mix.target, 1000)}; engine: {mix.engine}"
    yield f"tensors: {mix.nbytes:,} bytes, {mix.bits_per_weight:.4g} bits per weight"
    yield f"basis: {printable(mix.basis, 1000)}"
    yield damage_words(mix)
    yield f"at most {mix.gap:.2%} from the best mix under this model of damage"
    for file in mix.inputs:
        yield f"input: {printable(base_name(file.name), 1000)} sha256:{file.sha256}"
    if mix.arguments:
        yield f"run with: {printable(mix.arguments, 4000)}"


def damage_words(mix: Mix) -> str:
    """The expected damage in a line."""
    if mix.unit is None:
        return "expected KLD: not known, as nothing was measured"
    between = f", nine times in ten {mix.low:.4g} to {mix.high:.4g}" if mix.low is not None else ""
    return f"expected {mix.unit}: {mix.damage:.4g}{between}"
