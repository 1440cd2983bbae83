"""Do these inputs belong to one model? Architecture, vocabulary, rope and shapes, all contradictions at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from gguftool.errors import printable
from gguftool.format.kv import KV, ValueType
from gguftool.model.model import Model

if TYPE_CHECKING:
    from gguftool.surgery.inputs import Input

# Vocabulary that embeddings and tensors depend on. Special token ids and templates differ between publishers of one
# model and change no tensor, so the metadata donor's are taken.
_VOCABULARY = frozenset(
    "tokenizer.ggml." + name for name in ("model", "pre", "tokens", "merges", "scores", "token_type")
)
_ARCHITECTURE = "general.architecture"


def contradictions(donor: Model, inputs: Sequence[Input], allowed: Collection[str]) -> Iterator[str]:
    """Yield what in the inputs' metadata contradicts `donor`'s; keys that only one side has do not."""
    architecture = donor.get(_ARCHITECTURE)
    prefix = f"{architecture.value()}." if architecture and architecture.type is ValueType.STRING else None
    ours = {kv.key: kv for kv in reversed(donor.kvs) if _matters(kv.key, prefix)}  # engines read the first of a key
    for source in inputs:
        if source.model is donor:
            continue
        for theirs in source.model.kvs:
            mine = ours.get(theirs.key)
            if mine is not None and theirs.key not in allowed and (mine.type, mine.raw) != (theirs.type, theirs.raw):
                shown, other = _both_shown(mine, theirs)
                yield (
                    f"{printable(theirs.key)} differs: {shown} in {donor.name}, {other} in "
                    f"{source.name} (--allow-kv-mismatch {printable(theirs.key)} lets it pass)"
                )


def shape_conflicts(reference: Model, names: Sequence[str], inputs: Sequence[Input]) -> Iterator[str]:
    """Yield tensors whose shape (trailing ones ignored) is not that of `reference`."""
    for source in inputs:
        for name in names:
            tensor, expected = source.model.tensors.get(name), reference.tensors.get(name)
            if tensor is not None and expected is not None and tensor.info.shape != expected.info.shape:
                yield (
                    f"'{printable(name)}' is {shape_text(tensor.info.shape)} in {source.name}, "
                    f"{shape_text(expected.info.shape)} in {reference.name}"
                )


def _matters(key: str, prefix: str | None) -> bool:
    return key == _ARCHITECTURE or key in _VOCABULARY or (prefix is not None and key.startswith(prefix))


def _both_shown(mine: KV, theirs: KV) -> tuple[str, str]:
    """Say both values; of arrays as long as each other, the first elements that differ."""
    if mine.type is theirs.type is ValueType.ARRAY and mine.count == theirs.count:
        for index, pair in enumerate(zip(mine.value(), theirs.value(), strict=True)):
            if pair[0] != pair[1]:
                said = (f"an array of {mine.count:,} with {_text(each)} as element {index:,}" for each in pair)
                return next(said), next(said)
    if mine.type is not theirs.type:
        return f"{_shown(mine)} ({mine.type.name.lower()})", f"{_shown(theirs)} ({theirs.type.name.lower()})"
    return _shown(mine), _shown(theirs)


def _shown(kv: KV) -> str:
    return f"an array of {kv.count:,}" if kv.type is ValueType.ARRAY else _text(kv.value())


def _text(value: object) -> str:
    return printable(str(value), 60)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it: ``256 x 6``."""
    return " x ".join(map(str, shape)) or "a scalar"
