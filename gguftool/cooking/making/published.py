"""Check that gathered shards are the published ones: signature -> map -> hash -> shard.

Local shards are hashed when they are used (`analysis/verify.py`). For a remote shard, the hash that its server (such as
the Hub) records is compared, so that nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguftool.analysis.verify import header_differs
from gguftool.cooking.making.gather import Gathered, first_shard
from gguftool.cooking.making.signatures import Signature, Signed, check_signatures
from gguftool.errors import SourceError, joined_problems, listed
from gguftool.format.tensors_map import MapEntry
from gguftool.model.model import ModelFile

_SHOWN = 4  # files named in a remark


def check_published(gathered: Sequence[Gathered], keys: str | None = None) -> tuple[str, ...]:
    """Check maps by their signatures and shards by their maps; return remarks on what could not be proven.

    `keys`: a file of GPG keys; one of them must have signed every map. Default: the user's keys, and no signature is
    needed.  Raises one `SourceError` that lists every file that differs from the published one.
    """
    signed = check_signatures([name for each in gathered for name in _signed_files(each)], keys)
    shards = [(file, entry) for each in gathered for file, entry in _shards(each)]
    bad = [*_signature_problems(signed, required=keys is not None), *_shard_problems(shards)]
    if bad:
        raise SourceError(f"{len(bad):,} file(s) are not the published ones: {joined_problems(bad)}")
    return tuple(_remarks(signed, shards))


def _signed_files(gathered: Gathered) -> Iterator[str]:
    """The files that publishers sign: every map, and the shard with the metadata."""
    yield from (one.map for one in gathered.repositories if one.map is not None)
    first = first_shard(gathered)
    if first is not None:
        yield first


def _shards(gathered: Gathered) -> Iterator[tuple[ModelFile, MapEntry]]:
    for one in gathered.inputs:
        for file in one.model.files:
            entry = gathered.entries.get(file.source.name)
            if entry is not None:
                yield file, entry


def _signature_problems(signed: Sequence[Signed], *, required: bool) -> Iterator[str]:
    """Describe bad signatures; with `required`, also missing ones and those of unknown keys."""
    for one in signed:
        if one.signature is Signature.BAD:
            yield f"{one.name}: its signature is bad: this is not the file that was signed"
        elif required and one.signature is not Signature.GOOD:
            yield f"{one.name}: {one.signature.value}{f' ({one.signer})' if one.signer else ''}"


def _shard_problems(shards: Sequence[tuple[ModelFile, MapEntry]]) -> Iterator[str]:
    """Describe where a map contradicts the shard itself: its tensor, its type, its recorded hash."""
    for file, entry in shards:
        wrong = header_differs(file, entry)
        recorded = file.source.sha256
        if wrong is None and recorded is not None and entry.sha256 not in (None, recorded):
            wrong = f"its server records sha256 {recorded}, but the map says {entry.sha256}"
        if wrong is not None:
            yield f"{file.source.name}: {wrong}"


def _remarks(signed: Sequence[Signed], shards: Sequence[tuple[ModelFile, MapEntry]]) -> Iterator[str]:
    for state in Signature:
        names = [one.name for one in signed if one.signature is state]
        if names:
            yield f"signatures, {state.value}: {listed(names, _SHOWN)}"
    far = [file.source.name for file, _ in shards if file.source.is_remote and file.source.sha256 is None]
    if far:
        yield f"their server records no hash, so they are not compared with their map: {listed(far, _SHOWN)}"
