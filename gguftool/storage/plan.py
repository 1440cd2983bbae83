"""A plan: the files to write, as head bytes plus copies of extents at offsets.

`Plan`, `OutputFile` and `Copy` are pure data; `execute` carries them out. `Plan.preview` counts what a plan would do.
`in_place` turns an output into a change of an existing file. `chunks` cuts an output into pieces that are written one
after another. `execute` returns a `Receipt`: paths, sizes and digests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from gguftool.errors import PlanError
from gguftool.record import record, replace
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.sources.virtual import parts_of

# Bytes. XFS and btrfs share whole blocks of this size, the default of both on all common machines.
BLOCK = 4096
_USUAL_ALIGNMENT = 32


@record
class Copy:
    """One extent and its offset in the output file."""

    extent: Extent
    offset: int


@record
class Mark:
    """A named range of an output, which can have a digest: a tensor's data without padding."""

    name: str
    offset: int
    length: int


@record
class OutputFile:
    """A file to write: `head` at offset 0, then `copies` in ascending order, zeros between them, `size` bytes in all.

    With a `base`, the file at `path` is that source and is changed in place: bytes outside the head and the copies
    stay as they are. With `replaces`, the file at `path` is that source and the output replaces it as a whole.
    `marks` are named ranges of the output, or None if it has no such names; they change no byte. `sha256` is the
    expected checksum in hex, or None if unknown; it is verified before publishing.

    Raises `PlanError` if copies overlap or end after the file's end.
    """

    path: Path
    head: bytes
    copies: tuple[Copy, ...]
    size: int
    base: Source | None = None
    replaces: Source | None = None
    marks: tuple[Mark, ...] | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        end = len(self.head)
        for copy in self.copies:
            if copy.offset < end:
                raise PlanError(f"copies overlap at offset {copy.offset:,}", source=str(self.path))
            end = copy.offset + copy.extent.length
        if end > self.size:
            raise PlanError(f"copies end at {end:,}, after the file's end at {self.size:,}", source=str(self.path))

    @property
    def changed_ranges(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of every range that head and copies write."""
        head = ((0, len(self.head)),) if self.head else ()
        return (*head, *((copy.offset, copy.extent.length) for copy in self.copies))


@record
class SourceUse:
    """The number of bytes that a plan takes from one source."""

    name: str
    nbytes: int


@record
class Request:
    """The command that a plan was made for: the `models` that it names, and its other `options`, spelled out."""

    models: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@record
class Step:
    """Copy all bytes of one source; with `frees`, remove its file once they are safe."""

    source: Source
    frees: bool


@record
class Consume:
    """Remove each source after its bytes are safely copied, in `steps` order.

    The journal is kept next to `anchor`, the output's name on the command line (for a set, its prefix), so that the
    same command finds it after the sources are removed. `begun` is the digest of the journal that the plan was read
    from, empty for a new plan.
    """

    anchor: Path
    steps: tuple[Step, ...]
    request: Request = Request()
    begun: str = ""

    @property
    def freed(self) -> tuple[Source, ...]:
        """Sources to remove, without those that an earlier run removed already."""
        return tuple(step.source for step in self.steps if step.frees and step.source.file_id is not None)


@record
class Preview:
    """A preview of a plan, for people and for `--json`; `freed` are the sources that it removes, with their sizes.

    `bytes_fetched` is the part of `bytes_copied` that comes over a network. `bytes_congruent` are in whole blocks at
    offsets congruent to their source's: a file system that can share blocks (XFS, btrfs) clones them.
    `bytes_congruent_padded` is the same count if the data were moved by less than a block, as `--pad` does.
    """

    outputs: tuple[tuple[str, int], ...]
    uses: tuple[SourceUse, ...]
    bytes_written: int
    bytes_copied: int
    bytes_fetched: int
    bytes_congruent: int
    bytes_congruent_padded: int
    remarks: tuple[str, ...]
    freed: tuple[SourceUse, ...] = ()


@record
class Plan:
    """Everything needed to write the outputs; `inputs` are all sources that they depend on, even only for metadata.

    `remarks` tell the user about the outcome. `first_shard` is the file from which engines start, if it is not the
    first output: while a set is published, no file has this name. `sequence` lists the names of marks in the order of
    the digest over all of them, if they are stored in another order. With `consume`, each input is removed as soon as
    its bytes are safe in the outputs.
    """

    outputs: tuple[OutputFile, ...]
    inputs: tuple[Source, ...]
    remarks: tuple[str, ...] = ()
    first_shard: Path | None = None
    consume: Consume | None = None
    sequence: tuple[str, ...] = ()

    @property
    def first_shard_path(self) -> Path:
        """The file from which engines start: shard 1 of a set."""
        return self.first_shard or self.outputs[0].path

    @property
    def publishing_order(self) -> tuple[int, ...]:
        """Indices of the outputs; the first output, from which engines start, comes last."""
        return (*range(1, len(self.outputs)), 0)

    @property
    def fingerprint(self) -> str:
        """sha256 over targets, heads, copies and source identities: equal plans write equal bytes."""
        from hashlib import sha256

        digest = sha256()
        for part in self._fingerprint_parts():
            data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def _fingerprint_parts(self) -> Iterator[str | bytes]:
        for source in self.inputs:
            yield source.identity
        for output in self.outputs:
            yield from (str(output.path), output.head, str(output.size), output.base.identity if output.base else "")
            for copy in output.copies:
                extent = copy.extent
                yield f"{extent.source.identity} {extent.offset} {extent.length} {copy.offset}"

    def preview(self) -> Preview:
        """Count the bytes to write, by output and by source."""
        uses: dict[str, int] = {}
        fetched = 0
        for output in self.outputs:
            for copy in output.copies:
                name = copy.extent.source.name
                uses[name] = uses.get(name, 0) + copy.extent.length
                fetched += copy.extent.length if copy.extent.source.is_remote else 0
        return Preview(
            outputs=tuple((str(output.path), output.size) for output in self.outputs),
            uses=tuple(SourceUse(name=name, nbytes=nbytes) for name, nbytes in uses.items()),
            bytes_written=sum(output.size for output in self.outputs),
            bytes_copied=sum(uses.values()),
            bytes_fetched=fetched,
            bytes_congruent=sum(congruent_bytes(output.copies) for output in self.outputs),
            bytes_congruent_padded=sum(_congruent_if_moved(output) for output in self.outputs),
            remarks=self.remarks,
            freed=tuple(SourceUse(name=source.name, nbytes=source.size) for source in self._freed()),
        )

    def _freed(self) -> tuple[Source, ...]:
        return self.consume.freed if self.consume is not None else ()


def copies_of(extent: Extent, offset: int) -> Iterator[Copy]:
    """Copy `extent` to `offset`: one copy, or one for each piece of an extent that is joined from several."""
    for part in parts_of(extent):
        yield Copy(extent=part, offset=offset)
        offset += part.length


def coalesce(copies: Iterable[Copy]) -> tuple[Copy, ...]:
    """Join adjacent copies that are adjacent in their source too: fewer and larger calls to the kernel."""
    joined: list[Copy] = []
    for copy in copies:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.extent.source == copy.extent.source
            and last.extent.end == copy.extent.offset
            and last.offset + last.extent.length == copy.offset
        ):
            extent = Extent(
                source=copy.extent.source,
                offset=last.extent.offset,
                length=last.extent.length + copy.extent.length,
            )
            joined[-1] = Copy(extent=extent, offset=last.offset)
        elif copy.extent.length:
            joined.append(copy)
    return tuple(joined)


def congruent_bytes(copies: Iterable[Copy], shift: int = 0) -> int:
    """Count bytes in whole blocks at offsets congruent to the source's, with the target moved by `shift`.

    Only local files count: bytes that come over a network or are computed cannot be shared.
    """
    total = 0
    for copy in copies:
        offset = copy.offset + shift
        if copy.extent.source.file_id is not None and (copy.extent.offset - offset) % BLOCK == 0:
            end = offset + copy.extent.length
            total += max(0, end // BLOCK - -(-offset // BLOCK)) * BLOCK
    return total


def _congruent_if_moved(output: OutputFile) -> int:
    """Count the congruent bytes of `output` at the best shift of its data that keeps the alignment of its copies."""
    if output.base is not None or not output.head:
        return congruent_bytes(output.copies)
    step = math.gcd(_USUAL_ALIGNMENT, *(copy.offset for copy in output.copies))
    votes: dict[int, int] = {0: 0}
    for copy in output.copies:
        shift = (copy.extent.offset - copy.offset) % BLOCK
        if shift % step == 0 and copy.extent.source.file_id is not None:
            votes[shift] = votes.get(shift, 0) + copy.extent.length
    best = max(votes, key=lambda shift: votes[shift])
    return max(congruent_bytes(output.copies, shift) for shift in (0, best))


NEW_FILE = "; -o OUT writes a new file"  # default hint at the end of error messages


def in_place(output: OutputFile, base: Source) -> OutputFile:
    """Turn `output` into a change of `base` in place, which writes only the bytes that differ.

    Raises `PlanError` if `base` is not a local file, if kept bytes would move, or if the file's size would change.
    """
    if base.file_id is None:
        raise PlanError(f"is not a local file, and cannot be changed in place{NEW_FILE}", source=base.name)
    kept = [copy for copy in output.copies if copy.extent.source == base]
    moved = sum(copy.extent.length for copy in kept if copy.extent.offset != copy.offset)
    if moved or output.size != base.size:
        raise PlanError(
            f"cannot be changed in place: {moved:,} bytes would move, and the file would have {output.size:,} bytes "
            f"instead of {base.size:,}{NEW_FILE}",
            source=base.name,
        )
    copies = tuple(copy for copy in output.copies if copy.extent.source != base)
    return replace(output, copies=copies, base=base)


# --- an output in chunks ---------------------------------------------------------------------------------------------


def chunks(output: OutputFile, start: int, step: int) -> Iterator[tuple[OutputFile, int]]:
    """Cut `output` from offset `start` on into chunks of about `step` bytes.

    Yields each chunk (as an output of the same file) and the offset below which the file is then complete.
    """
    head = output.head if start < len(output.head) else b""
    piece: list[Copy] = []
    room = step - len(head)
    for copy in output.copies:
        done = max(0, start - copy.offset)
        while done < copy.extent.length:
            take = min(max(room, 1), copy.extent.length - done)
            part = Extent(source=copy.extent.source, offset=copy.extent.offset + done, length=take)
            piece.append(Copy(extent=part, offset=copy.offset + done))
            done, room = done + take, room - take
            if room <= 0 and copy.offset + done < output.size:
                yield replace(output, head=head, copies=tuple(piece)), copy.offset + done
                head, piece, room = b"", [], step
    if start < output.size:
        yield replace(output, head=head, copies=tuple(piece)), output.size


def bytes_below(output: OutputFile, offset: int) -> int:
    """Count the bytes of copies below `offset`."""
    return sum(min(copy.extent.length, max(0, offset - copy.offset)) for copy in output.copies)


# --- the result of a plan --------------------------------------------------------------------------------------------


@record
class Digest:
    """The sha256, in hex, of the file or named range `name`."""

    name: str
    sha256: str


@record
class Digests:
    """Digests of a plan's outputs.

    `files`: one for each output; `parts`: one for each named range, in the plan's sequence; `whole`: one over all named
    ranges in that sequence, or None if the outputs hold only some ranges of a set, or have no named ranges.
    """

    files: tuple[Digest, ...]
    parts: tuple[Digest, ...]
    whole: str | None


@record
class Receipt:
    """The written files: paths in the plan's order, total bytes, and the requested digests.

    `freed` are the names of removed sources.
    """

    paths: tuple[Path, ...]
    nbytes: int
    digests: Digests | None = None
    freed: tuple[str, ...] = ()
