"""The contents of a model card for a mix: sizes, types, how it was made, what to expect of it, how to run it.

Everything comes from the plan's own heads and from the recipe, so a card can be written before the model.
"""

from __future__ import annotations

from gguftool.errors import PlanError
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.ggml import TYPES, nbytes, type_alias
from gguftool.format.header import Header, parse
from gguftool.format.kv import KV, ValueType, find_kv
from gguftool.record import record
from gguftool.storage.plan import Plan

_RUN = "run with: "  # cooking/recipe_text.py writes it
_TITLES = ("general.name", "general.basename")
_ORIGINS = ("general.base_model.0.repo_url", "general.source.repo_url", "general.source.url", "general.url")
_MAX_TEXT = 300  # characters of a title or an address


@record
class CardType:
    """All tensors of one type; bytes without padding."""

    type: str
    tensors: int
    elements: int
    nbytes: int


@record
class Card:
    """A model card: `files` with their sizes in bytes, `notes` of the recipe's header, `engines` that have all types.

    `command` made the model, `arguments` are options for the engine. `origin` and `license` are empty if the metadata
    does not give them.
    """

    title: str
    origin: str
    license: str
    files: tuple[tuple[str, int], ...]
    elements: int
    nbytes: int
    types: tuple[CardType, ...]
    engines: tuple[str, ...]
    notes: tuple[str, ...]
    arguments: str
    command: str
    recipe: str

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of all tensors."""
        return self.nbytes * 8 / self.elements if self.elements else 0.0


def make_card(plan: Plan, recipe: str, command: str) -> Card:
    """The card of the model that `plan` writes by the text `recipe`; `command` is the user's command."""
    heads = [parse(output.head, output.size) for output in plan.outputs]
    types = _types(heads)
    lines = _comments(recipe)
    found = (line.removeprefix(_RUN) for line in lines if line.startswith(_RUN))
    return Card(
        title=_first_text(heads[0], _TITLES) or plan.first_shard_path.stem,
        origin=_first_text(heads[0], _ORIGINS),
        license=_first_text(heads[0], ("general.license",)),
        files=tuple((output.path.name, output.size) for output in plan.outputs),
        elements=sum(one.elements for one in types),
        nbytes=sum(one.nbytes for one in types),
        types=types,
        engines=tuple(name for name in ENGINES if all(_has(name, head) for head in heads)),
        notes=tuple(line for line in lines if line and not line.startswith(_RUN)),
        arguments=next(found, ""),
        command=command,
        recipe=recipe,
    )


def _comments(recipe: str) -> list[str]:
    """The comment lines above the first rule."""
    lines = []
    for line in recipe.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return lines


def _types(heads: list[Header]) -> tuple[CardType, ...]:
    sums: dict[int, list[int]] = {}
    for head in heads:
        for info in head.tensors:
            size = nbytes(info.type, info.dims)
            if size is None:
                raise PlanError(
                    f"a card needs the sizes of all types, but that of {type_alias(info.type)} is not known"
                )
            one = sums.setdefault(info.type, [0, 0, 0])
            for at, more in enumerate((1, info.elements, size)):
                one[at] += more
    found = [
        CardType(type=type_alias(type_id), tensors=count, elements=elements, nbytes=size)
        for type_id, (count, elements, size) in sums.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.nbytes))


def _has(engine: str, head: Header) -> bool:
    return all(info.type in TYPES and engine in TYPES[info.type].engines for info in head.tensors)


def _first_text(head: Header, keys: tuple[str, ...]) -> str:
    """The first of `keys` that is a string in the metadata, cut; empty if none is."""
    for key in keys:
        kv: KV | None = find_kv(head.kvs, key)
        if kv is not None and kv.type is ValueType.STRING and kv.value():
            return str(kv.value())[:_MAX_TEXT]
    return ""
