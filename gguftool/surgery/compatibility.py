"""Check inputs: is a model complete, and do several inputs belong to one model? Reports all contradictions at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from gguftool.errors import PlanError, grouped, listed, printable
from gguftool.format.engine_facts.engines import BOTH
from gguftool.format.engine_facts.operands import why_not_computable
from gguftool.format.file_names import KEY_TENSORS
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import KV, ValueType, find_kv
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model, Tensor, shape_text

if TYPE_CHECKING:
    from gguftool.surgery.inputs import Input

# The vocabulary keys that tensors depend on. Special token ids and templates differ between publishers of one model
# and change no tensor, so those of the metadata donor are used.
_VOCABULARY = frozenset(
    "tokenizer.ggml." + name for name in ("model", "pre", "tokens", "merges", "scores", "token_type")
)


def require_complete(model: Model) -> None:
    """Raise `PlanError` that lists what is missing, if `model` lacks shards or tensors."""
    if model.is_complete:
        return
    found = len(model.tensors)
    count = "" if model.expected_tensors is None else f": it has {found:,} of {model.expected_tensors:,} tensors"
    gaps = f"; missing: {listed(model.missing)}" if model.missing else f" ({KEY_TENSORS} is wrong, or shards are)"
    raise PlanError(f"the model is incomplete{count}{gaps}", source=model.name)


def refuse_not_computable(created: Iterable[Tensor], kept: Iterable[Tensor], options: OutputOptions) -> tuple[str, ...]:
    """Refuse `created` tensors of types on which engines abort; with `options.anyway`, only warn of them.

    `kept` tensors of such types only cause warnings. Both engines abort on the same types; `options.engines` names the
    engines that the output is for. Returns the warnings; raises one `PlanError` that names all refused tensors.
    """
    refused = grouped(_not_computable(created))
    named = " and ".join(options.engines or BOTH)
    if refused and not options.anyway:
        raise PlanError(f"{named} would abort on the output; --anyway writes it for other programs", problems=refused)
    abort = "abort" if len(options.engines) != 1 else "aborts"
    return tuple(f"{named} {abort} on {each}" for each in (*refused, *grouped(_not_computable(kept))))


def _not_computable(tensors: Iterable[Tensor]) -> dict[str, list[str]]:
    """Map each reason why engines abort to the names of the tensors concerned."""
    reasons: dict[str, list[str]] = {}
    for tensor in tensors:
        if reason := why_not_computable(tensor.info.name, tensor.info.type):
            reasons.setdefault(reason, []).append(tensor.info.name)
    return reasons


def contradictions(donor: Model, inputs: Sequence[Input], allowed: Collection[str]) -> Iterator[str]:
    """Describe every contradiction between the metadata of an input and of `donor`.

    Compares the architecture, its own keys, and the vocabulary. A key that only one side has, or one of `allowed`, is
    not a contradiction.
    """
    for source in inputs:
        if source.model is donor:
            continue
        for mine, theirs in _conflicts(donor.kvs, source.model.kvs):
            if theirs.key not in allowed:
                shown, other = _both_shown(mine, theirs)
                yield (
                    f"{printable(theirs.key)} differs: {shown} in {donor.name}, {other} in "
                    f"{source.name} (--allow-kv-mismatch {printable(theirs.key)} lets it pass)"
                )


def metadata_conflicts(ours: Sequence[KV], theirs: Sequence[KV]) -> Iterator[str]:
    """Yield the keys in which `theirs` contradict `ours`, by the rules of `contradictions`."""
    yield from (kv.key for _, kv in _conflicts(ours, theirs))


def _conflicts(ours: Sequence[KV], theirs: Sequence[KV]) -> Iterator[tuple[KV, KV]]:
    architecture = find_kv(ours, ARCHITECTURE_KEY)
    prefix = f"{architecture.value()}." if architecture and architecture.type is ValueType.STRING else None
    first = {kv.key: kv for kv in reversed(ours) if _matters(kv.key, prefix)}  # engines read the first of a key
    for kv in theirs:
        mine = first.get(kv.key)
        if mine is not None and (mine.type, mine.raw) != (kv.type, kv.raw):
            yield mine, kv


def shape_conflicts(reference: Model, names: Sequence[str], inputs: Sequence[Input]) -> Iterator[str]:
    """Describe each of `names` that has another shape in an input than in `reference`, apart from trailing ones."""
    for source in inputs:
        for name in names:
            tensor, expected = source.model.tensors.get(name), reference.tensors.get(name)
            if tensor is not None and expected is not None and tensor.info.shape != expected.info.shape:
                yield (
                    f"'{printable(name)}' is {shape_text(tensor.info.shape)} in {source.name}, "
                    f"{shape_text(expected.info.shape)} in {reference.name}"
                )


def _matters(key: str, prefix: str | None) -> bool:
    return key == ARCHITECTURE_KEY or key in _VOCABULARY or (prefix is not None and key.startswith(prefix))


def _both_shown(mine: KV, theirs: KV) -> tuple[str, str]:
    """Show both values; for arrays of equal length, the first elements that differ."""
    if mine.type is theirs.type is ValueType.ARRAY and mine.count == theirs.count:
        for index, pair in enumerate(zip(mine.value(), theirs.value(), strict=True)):
            if pair[0] != pair[1]:
                texts = (f"an array of {mine.count:,} with {_text(each)} as element {index:,}" for each in pair)
                return next(texts), next(texts)
    if mine.type is not theirs.type:
        return f"{_shown(mine)} ({mine.type.name.lower()})", f"{_shown(theirs)} ({theirs.type.name.lower()})"
    return _shown(mine), _shown(theirs)


def _shown(kv: KV) -> str:
    return f"an array of {kv.count:,}" if kv.type is ValueType.ARRAY else _text(kv.value())


def _text(value: object) -> str:
    return printable(str(value), 60)
