"""Importance matrices in place of models, for all commands that accept one.

The modules that read and describe one are imported where they are used: `dump` of a model starts a twentieth faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gguftool.cli.shared.console import remark
from gguftool.cli.shared.show import show
from gguftool.errors import FormatError
from gguftool.format.header import is_imatrix
from gguftool.model.model import Model
from gguftool.render.format import Format
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Source

if TYPE_CHECKING:
    from gguftool.analysis.imatrix import ImatrixReport


def show_imatrix(
    source: Source, format: Format, *, model: Model | None = None, name_filter: str = "", full_paths: bool = False
) -> None:
    """Show the imatrix in `source`; with `model`, which of its tensors it covers."""
    from gguftool.analysis.imatrix import describe_imatrix
    from gguftool.model.companions import read_imatrix

    report = describe_imatrix(source.name, read_imatrix(source), model=model, name_filter=name_filter)
    show(report, format, full_paths=full_paths)


def describe_if_imatrix(model: Model, name_filter: str = "") -> ImatrixReport | None:
    """Describe the imatrix that was opened as `model`; return None if it is a model, warn if it is damaged."""
    source = imatrix_among((model,))
    if source is None:
        return None
    from gguftool.analysis.imatrix import describe_imatrix
    from gguftool.model.companions import read_imatrix

    try:
        return describe_imatrix(source.name, read_imatrix(source), name_filter=name_filter)
    except FormatError as error:
        remark(f"damaged imatrix: {error}")
        return None


def imatrix_among(models: Sequence[Model]) -> Source | None:
    """Find the imatrix in GGUF form that was opened as the only one of `models`, or return None."""
    if len(models) != 1 or len(models[0].files) != 1 or not is_imatrix(models[0].kvs):
        return None
    return models[0].files[0].source


def imatrix_instead(spec: str, error: FormatError) -> Source:
    """Open `spec` as a legacy imatrix; if it is not one either, raise `error`, which says why it is not a GGUF file."""
    from gguftool.format.imatrix import legacy_start

    if error.where == "magic" and error.source is not None and error.source == spec:
        source = open_source(spec)
        if legacy_start(source.read_at(0, min(source.size, 512))):
            return source
    raise error
