"""The inputs of a mix: models with the labels under which a recipe may know them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from gguftool.errors import GGUFToolError, PlanError, listed, printable
from gguftool.format.labels import is_label_of, label_of_name, normal_label
from gguftool.model.companions import find_maps
from gguftool.model.model import Model
from gguftool.model.opening import open_models
from gguftool.record import record, replace
from gguftool.storage.sources.source import place_of

_LABELLED = re.compile(r"(?P<label>[A-Za-z0-9_.+-]+)=(?P<spec>.+)", re.DOTALL)


@record
class Input:
    """One model to take tensors from; `given` are the labels that the user gave it, `claimed` those of names and maps.

    Both are normalized. What was given comes before what is claimed, also of another input.
    """

    model: Model
    given: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, the given ones first."""
        return (*self.given, *self.claimed)

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.model.name

    def is_labelled(self, type_id: int, *, given: bool) -> bool:
        """Whether it is labelled tensor type `type_id`: by the user, or else by a name or a map."""
        return any(is_label_of(label, type_id) for label in (self.given if given else self.claimed))


def open_inputs(arguments: Sequence[str]) -> tuple[Input, ...]:
    """Open ``MODEL`` and ``LABEL=MODEL`` arguments, in their order; a file named twice counts once.

    Neighbouring arguments without a label are pooled, so that a glob that the shell expanded is one input.
    """
    inputs: dict[frozenset[object], Input] = {}
    for label, specs in _runs(arguments):
        given = () if label is None else (normal_label(label),)
        for model in open_models(*specs):
            files = frozenset(place_of(source) for source in model.sources)
            known = next((other for other in inputs if files <= other), None)
            if known is None:
                inputs[files] = Input(model=model, given=given, claimed=tuple(_claimed(model)))
            else:
                inputs[known] = replace(inputs[known], given=(*given, *inputs[known].given))
    return tuple(inputs.values())


def models_named(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return what ``MODEL`` and ``LABEL=MODEL`` arguments name, without labels."""
    return tuple(spec for _, specs in _runs(arguments) for spec in specs)


def find_inputs(inputs: Sequence[Input], label: str) -> list[Input]:
    """Return the inputs under `label` (a folder may hold several); `PlanError` lists the labels there are."""
    wanted = normal_label(label)
    found = [one for one in inputs if wanted in one.given] or [one for one in inputs if wanted in one.claimed]
    if found:
        return found
    known = sorted({known for candidate in inputs for known in candidate.labels})
    raise PlanError(f"no input is labelled '{printable(label)}'; the labels are {listed(known) or 'none'}")


def _runs(arguments: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Group neighbouring arguments without a label; each labelled one stands alone."""
    pending: list[str] = []
    for argument in arguments:
        match = None if os.path.lexists(argument) else _LABELLED.fullmatch(argument)
        if match is None:
            pending.append(argument)
            continue
        if pending:
            yield None, pending
            pending = []
        yield match["label"], [match["spec"]]
    if pending:
        yield None, pending


def _claimed(model: Model) -> Iterator[str]:
    by_name = label_of_name(model.files[0].source.name)
    if by_name is not None:
        yield by_name
    try:
        maps = find_maps(model.files)
    except GGUFToolError:
        return  # a map that cannot be read gives no label; verifying says what is wrong with it
    if len(maps) == 1:  # several maps beside one set mean a mix, which has no label of its own
        entries = next(iter(maps.values()))
        by_map = label_of_name(entries[0].file) if entries else None
        if by_map is not None:
            yield by_map
