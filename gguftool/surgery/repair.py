"""Repair: find the damaged parts of a local file, and fetch only those again.

An interrupted download leaves traces that show without the original: a file that is too short, holes, pages of zeros.
The head is compared byte for byte, and tensors if their hashes are known.  Zeros may be correct (embeddings of unused
tokens are zeros), so some are fetched in vain: that is the price of not having the original.  A recorded sha256 of the
whole file tells, before and after, whether anything is left to repair.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gguftool.errors import GGUFToolError, PlanError, SourceError
from gguftool.model.companions import MapIndex, find_maps
from gguftool.model.model import Model, ModelFile, tensors_of
from gguftool.model.opening import ModelLike, StrPath, as_source, open_model, read_header
from gguftool.record import record
from gguftool.storage.execute.resume import Ranges, joined
from gguftool.storage.execute.streaming import MAX_GAP
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.digest import Progress, digest_all, no_progress
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.system.fileio import leading_hole, read_fully, read_some

MAX_MANIFEST = 64 << 20  # bytes
_PAGE = 4096  # bytes: a crash leaves whole pages unwritten
_BLOCK = 1 << 20
_ZEROS = bytes(_BLOCK)
_NO_PAGE = bytes(_PAGE)


@record
class Damage:
    """The damage of a file: (start, end) ranges to fetch in bytes, and a sentence for each kind of damage.

    `sha256`: the recorded hash of the whole file, or None; `is_proven`: the file has that hash now.
    """

    ranges: tuple[tuple[int, int], ...]
    found: tuple[str, ...]
    sha256: str | None
    is_proven: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes to fetch."""
        return sum(end - start for start, end in self.ranges)


@record
class DamageOptions:
    """How to look for damage: `hashes` maps tensor names to the sha256 of their data; `jobs` threads hash.

    Ranges at most `max_gap` bytes apart are joined, and ranges farther apart if there are more than `max_ranges`: an
    undo journal has room for four times the default.
    """

    hashes: Mapping[str, str] | None = None
    jobs: int | None = None
    progress: Progress = no_progress
    max_gap: int = MAX_GAP
    max_ranges: int = 100_000


def find_damage(
    local: Source | StrPath, original: ModelFile | ModelLike, options: DamageOptions | None = None
) -> Damage:
    """Compare `local` with `original`; reads all of `local` and the head of `original`.

    Raises `PlanError` if `local` is not a local file, or another model.
    """
    options = options or DamageOptions()
    local, original = as_source(local), _one_file(original)
    _refuse_other_model(local, original)
    expected = original.source.sha256 or _in_a_map(original)
    zeros, sha256 = _scan(local, min(local.size, original.source.size), options.progress)
    if expected is not None and sha256 == expected and local.size == original.source.size:
        return Damage(ranges=(), found=(), sha256=expected, is_proven=True)
    head_end = min(original.header.data_offset, local.size, original.source.size)
    kinds = {
        "of the head differ": _head_differences(local, original.source, head_end),
        "are zeros": [(max(start, head_end), end) for start, end in zeros if end > head_end],
        "are missing at the end": [(local.size, original.source.size)] if local.size < original.source.size else [],
        "belong to tensors with another sha256": _other_tensors(local, original, options.hashes or {}, options.jobs),
    }
    found = [f"{_total(ranges):,} bytes {kind}{_count(ranges)}" for kind, ranges in kinds.items() if ranges]
    if local.size > original.source.size:
        found.append(f"{local.size - original.source.size:,} bytes too many at the end")
    ranges = _few(joined(one for ranges in kinds.values() for one in ranges), options.max_gap, options.max_ranges)
    return Damage(ranges=ranges, found=tuple(found), sha256=expected)


def plan_repair(
    local: Source | StrPath, original: ModelFile | ModelLike, damage: Damage, output: StrPath | None
) -> Plan:
    """Plan `local` with the damaged ranges taken from `original`, as `output`.

    `output` None repairs the file itself: in place with an undo journal if the size is right, else with a new file that
    replaces the old one. Raises `PlanError` if the sha256 proves damage, but nothing shows where it is.
    """
    local, source = as_source(local), _one_file(original).source
    if not damage.found and damage.sha256 is not None and not damage.is_proven:
        raise PlanError(
            f"its sha256 is not the recorded {damage.sha256}, but no hole, no zeros and no difference in the head show "
            "where: give the tensors' hashes with --check MANIFEST, or fetch the whole file without --repair",
            source=local.name,
        )
    bad = [_copy(source, start, end) for start, end in damage.ranges]
    in_place = output is None and local.size == source.size
    good = [] if in_place else [_copy(local, *ends) for ends in _between(damage.ranges, min(local.size, source.size))]
    whole = OutputFile(
        path=Path(local.name) if output is None else Path(output),
        head=b"",
        copies=tuple(sorted((*good, *bad), key=lambda copy: copy.offset)),
        size=source.size,
        base=local if in_place else None,
        replaces=local if output is None and not in_place else None,
        sha256=damage.sha256,
    )
    fetched = f"fetches {damage.nbytes:,} of {source.size:,} bytes"
    unproven = () if damage.sha256 else ("no sha256 is recorded for the file, so other damage cannot be ruled out",)
    return Plan(outputs=(whole,), inputs=(local, source), remarks=(*damage.found, fetched, *unproven))


def _one_file(original: ModelFile | ModelLike) -> ModelFile:
    """The file `original`, or the only file of the model `original`: a set is repaired file by file."""
    if isinstance(original, ModelFile):
        return original
    model = original if isinstance(original, Model) else open_model(original, this_file_only=True)
    if len(model.files) != 1:
        raise PlanError(f"has {len(model.files):,} files; repair needs the one file to repair from", source=model.name)
    return model.files[0]


def _copy(source: Source, start: int, end: int) -> Copy:
    return Copy(extent=Extent(source=source, offset=start, length=end - start), offset=start)


def _between(ranges: Ranges, size: int) -> Iterator[tuple[int, int]]:
    """The parts of the first `size` bytes outside `ranges`."""
    at = 0
    for start, end in ranges:
        if at < min(start, size):
            yield at, min(start, size)
        at = end
    if at < size:
        yield at, size


def _few(ranges: Ranges, gap: int, most: int) -> tuple[tuple[int, int], ...]:
    """Join ranges so close that the bytes between are read anyway; then more of them, until there are few enough."""
    while True:
        found = tuple((start, end - gap) for start, end in joined((start, end + gap) for start, end in ranges))
        if len(found) <= most:
            return found
        gap *= 4


def _total(ranges: Ranges) -> int:
    return sum(end - start for start, end in joined(ranges))


def _count(ranges: Ranges) -> str:
    return f", in {len(ranges):,} ranges" if len(ranges) > 1 else ""


# --- finding damage --------------------------------------------------------------------------------------------------


def _refuse_other_model(local: Source, original: ModelFile) -> None:
    """Raise `PlanError` if both heads can be read and fewer than half of their tensors agree."""
    if local.file_id is None:
        raise PlanError("only a local file can be repaired", source=local.name)
    try:
        header = read_header(local)
    except GGUFToolError:
        return  # damaged: that is what repair is for
    ours = {info.name: (info.dims, info.type, info.offset) for info in header.tensors}
    theirs = {info.name: (info.dims, info.type, info.offset) for info in original.header.tensors}
    common = sum(ours.get(name) == place for name, place in theirs.items())
    if 2 * common < max(len(ours), len(theirs)):
        raise PlanError(
            f"only {common:,} of {len(theirs):,} tensors agree with {original.source.name}: this is another model, "
            "or another revision of it (name one as @REVISION)",
            source=local.name,
        )


def _in_a_map(original: ModelFile) -> str | None:
    """The sha256 in a tensors.map next to `original`, or None."""
    try:
        entries = [entry for entries in find_maps([original]).values() for entry in entries]
    except GGUFToolError:
        return None
    hashes = {entry.sha256 for entry in MapIndex(entries).entries_of(original) if entry.sha256}
    return hashes.pop() if len(hashes) == 1 else None


def _scan(local: Source, size: int, progress: Progress) -> tuple[list[tuple[int, int]], str]:
    """Ranges of zeros (whole pages, and zeros next to them) in the first `size` bytes, and their sha256."""
    sha256 = hashlib.sha256()
    zeros: list[tuple[int, int]] = []
    fd_context = local.descriptor()
    if fd_context is None:
        raise PlanError("only a local file can be repaired", source=local.name)
    with fd_context as fd:
        at = 0
        while at < size:
            nbytes = min(_BLOCK, size - at)
            is_hole = leading_hole(fd, at, nbytes) == nbytes
            data = _ZEROS[:nbytes] if is_hole else _read(fd, nbytes, at, local)
            sha256.update(data)
            zeros += [(at + start, at + end) for start, end in _zero_pages(data)]
            at += nbytes
            progress(nbytes)
        return [_widened(fd, start, end, size) for start, end in joined(zeros)], sha256.hexdigest()


def _widened(fd: int, start: int, end: int, size: int) -> tuple[int, int]:
    """Extend a range of zero pages by the zeros next to it: a download can break off anywhere in a page."""
    before = read_some(fd, min(_PAGE, start), max(0, start - _PAGE))
    behind = read_some(fd, min(_PAGE, size - end), end) if end < size else b""
    return start - (len(before) - len(before.rstrip(b"\0"))), end + len(behind) - len(behind.lstrip(b"\0"))


def _read(fd: int, length: int, offset: int, local: Source) -> bytes:
    try:
        data = read_fully(fd, length, offset)
    except OSError:
        return bytes(length)  # a bad sector: fetched like bytes that were never written
    if len(data) < length:
        raise SourceError("became shorter while it was read", source=local.name, offset=offset)
    return data


def _zero_pages(data: bytes) -> Iterator[tuple[int, int]]:
    if data == _ZEROS[: len(data)]:
        yield 0, len(data)
        return
    for start in range(0, len(data), _PAGE):
        page = data[start : start + _PAGE]
        if page == _NO_PAGE[: len(page)]:
            yield start, start + len(page)


def _head_differences(local: Source, remote: Source, size: int) -> list[tuple[int, int]]:
    """The pages of the first `size` bytes in which the two differ."""
    found = []
    for at in range(0, size, _BLOCK):
        nbytes = min(_BLOCK, size - at)
        ours, theirs = local.read_at(at, nbytes), remote.read_at(at, nbytes)
        if ours != theirs:
            pages = range(0, nbytes, _PAGE)
            found += [
                (at + start, at + min(start + _PAGE, nbytes))
                for start in pages
                if ours[start : start + _PAGE] != theirs[start : start + _PAGE]
            ]
    return list(joined(found))


def _other_tensors(
    local: Source, original: ModelFile, hashes: Mapping[str, str], jobs: int | None
) -> list[tuple[int, int]]:
    """The ranges of tensors with another sha256 in `local` than in `hashes`."""
    places = [tensor for tensor in tensors_of(original.source, original.header) if tensor.info.name in hashes]
    inside = [tensor for tensor in places if tensor.extent.end <= local.size]
    extents = [Extent(source=local, offset=tensor.extent.offset, length=tensor.nbytes) for tensor in inside]
    digests = digest_all([[extent] for extent in extents], jobs)
    return [
        (extent.offset, extent.end)
        for tensor, extent, sha256 in zip(inside, extents, digests, strict=True)
        if sha256 != hashes[tensor.info.name]
    ]


def hashes_of_tensors(lines: Mapping[str, str]) -> dict[str, str]:
    """Map tensor names to sha256, from the lines ``FILE:TENSOR`` of a manifest."""
    base = min(lines, key=len, default="")
    prefix = os.path.basename(base) + ":"
    return {name[len(prefix) :]: sha256 for name, sha256 in lines.items() if name.startswith(prefix)}
