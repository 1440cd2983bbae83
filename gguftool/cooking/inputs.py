"""Open the inputs of `plan`: a model to quantize, or ready-made quants and tensors.maps."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gguftool.cooking.items import parse_type_rules
from gguftool.cooking.mix import MixOptions, Target
from gguftool.cooking.offers import Offer, Pool, ReadyMade, offers_of_ready, offers_of_source, ready_map, ready_model
from gguftool.cooking.rivals import mix_bytes, recipe_types
from gguftool.errors import Notes, did_you_mean
from gguftool.format.ggml import TYPES, find_type
from gguftool.model.companions import read_map
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike
from gguftool.record import record, replace
from gguftool.storage.sources.source import Source
from gguftool.surgery.inputs import as_inputs

_HEAD_SPARE = 4096  # bytes that writers may add to a head: keys of the imatrix, a file type
_PADDING = 31  # bytes after a tensor, at most
_INFO = 64  # bytes of a tensor's entry in a head, without its name


@record
class Offers:
    """The offers of all tensors, and a model for metadata (None if there are only maps).

    `head`: bytes that a file needs in addition to tensor data.  `ready`: the offers are those of existing quants, which
    are `quants`.  `sources`: the files of all models; no output may replace one of them.
    """

    offers: tuple[Offer, ...]
    name: str = "a model"
    model: Model | None = None
    head: int = 0
    ready: bool = False
    quants: tuple[ReadyMade, ...] = ()
    sources: tuple[Source, ...] = ()


def open_offers(models: ModelLike | Sequence[ModelLike], options: MixOptions, notes: Notes) -> Offers:
    """Open everything: one model is to be quantized, several are ready-made."""
    specs = [models] if isinstance(models, (Model, str, os.PathLike)) else list(models)
    maps = [spec for spec in specs if not isinstance(spec, Model) and os.fspath(spec).lower().endswith(".map")]
    opened = (
        [one.model for one in as_inputs([spec for spec in specs if spec not in maps])] if len(maps) < len(specs) else []
    )
    if not maps and len(opened) == 1:
        return _to_quantize(opened[0], options, notes)
    quants = [*map(ready_model, opened), *(ready_map(os.fspath(name), read_map(name)) for name in maps)]
    allowed = tuple(traits.alias for text in options.types if (traits := find_type(text)) is not None)
    offers = offers_of_ready(quants, allowed, options.engine, notes)
    model = opened[0] if opened else None
    name = ", ".join(quant.name for quant in quants[:3]) + (f" and {len(quants) - 3:,} more" if len(quants) > 3 else "")
    return Offers(
        name=name,
        offers=offers,
        model=model,
        head=_head(model, offers),
        ready=True,
        quants=tuple(quants),
        sources=tuple(source for one in opened for source in one.sources),
    )


def _to_quantize(model: Model, options: MixOptions, notes: Notes) -> Offers:
    extra: dict[str, list[str]] = {}
    for rule in parse_type_rules(
        "--lock", options.locks, model.tensors, Notes()
    ):  # problems are reported with the others
        for name in model.tensors:
            if rule.matches(name):
                extra.setdefault(name, []).append(rule.type)
    if options.start is not None:
        for name, found in options.start[1].assign(model.tensors).items():
            if found is not None and found.type_id is not None:
                extra.setdefault(name, []).append(found.target)
    pool = Pool(engine=options.engine, types=options.types, imatrix=options.imatrix)
    offers = offers_of_source(model, pool, extra, notes)
    for text in model.remarks:
        notes.remark(text, model.name)
    if not model.is_complete:
        notes.remark("the set is not complete: only the tensors in it are planned", model.name)
    return Offers(name=model.name, offers=offers, model=model, head=_head(model, offers), sources=model.sources)


def from_start(offered: Offers, options: MixOptions) -> MixOptions:
    """Add the recipe to start from to the comparison, and without another target use its size as the budget."""
    if options.start is None:
        return options
    recipe = options.start[1]
    options = replace(options, compare=(options.start, *options.compare))
    if options.devices or options.target.in_words:
        return options
    size = mix_bytes(recipe_types(recipe, offered.offers), offered.offers, options.engine)
    return replace(options, target=Target(tensor_bytes=size))


def check_types(options: MixOptions, notes: Notes) -> None:
    """Report types of the pool that the engine lacks."""
    for text in options.types:
        traits = find_type(text)
        if traits is None or options.engine not in traits.engines or not traits.in_files:
            known = [one.alias for one in TYPES.values() if options.engine in one.engines and one.in_files]
            notes.problem(f"--types: {options.engine} has no such type", text + did_you_mean(text, known))


def _head(model: Model | None, offers: Sequence[Offer]) -> int:
    """The most bytes that a file of these tensors has in addition to their data."""
    if model is None:
        return 0
    infos = sum(len(offer.name.encode("utf-8", "replace")) + _INFO for offer in offers) if len(model.files) > 1 else 0
    padding = sum(_PADDING for offer in offers if any(size % (_PADDING + 1) for size in offer.nbytes))
    return model.files[0].header.data_offset + infos + padding + _HEAD_SPARE
