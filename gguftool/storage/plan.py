"""A plan: the files to write, as head bytes plus copies of extents at offsets. Pure data; `execute` carries it out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from gguftool.errors import PlanError
from gguftool.record import record, replace
from gguftool.storage.sources.source import Extent, Source

# Bytes. XFS and btrfs share whole blocks of this size, the default of both on every common machine.
BLOCK = 4096
_USUAL_ALIGNMENT = 32


@record
class Copy:
    """One extent and the offset that it gets in the output file."""

    extent: Extent
    offset: int


@record
class Mark:
    """A range of an output under a name by which its digest can be asked for: a tensor's data without padding."""

    name: str
    offset: int
    length: int


@record
class OutputFile:
    """`head` at offset 0, `copies` behind it in ascending order, zeros between them, `size` bytes in all.

    With a `base` the file at `path` is that source, and it is changed in place: bytes that neither head nor copies
    cover stay as they are. With `replaces` the file at `path` is that source, whose place the output takes as a whole.
    `marks` name ranges of it, None where it has no such names; they change no byte. `sha256` is what the finished file
    must have, in hex, where somebody said so: it is verified before publishing.
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
            raise PlanError(f"copies end at {end:,}, behind the file's end at {self.size:,}", source=str(self.path))

    @property
    def changed_ranges(self) -> tuple[tuple[int, int], ...]:
        """The (offset, length) of everything that head and copies write."""
        head = ((0, len(self.head)),) if self.head else ()
        return (*head, *((copy.offset, copy.extent.length) for copy in self.copies))


@record
class SourceUse:
    """How many bytes a plan takes from one source."""

    name: str
    nbytes: int


@record
class Request:
    """The command that asked for a plan: the `models` it names, and its other `options`, spelled out."""

    models: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@record
class Step:
    """A source whose bytes are copied in one go; with `frees` its file is removed when they are safe."""

    source: Source
    frees: bool


@record
class Consume:
    """That sources make room as they are copied: in the order of `steps`.

    The journal lies beside `anchor`, what the user calls the output (of a set its prefix), so that the same command
    finds it when the sources are gone. `begun` names the journal that the plan was read back from, empty for a new
    plan.
    """

    anchor: Path
    steps: tuple[Step, ...]
    request: Request = Request()
    begun: str = ""

    @property
    def freed(self) -> tuple[Source, ...]:
        """The sources that go; those that an earlier run removed are no files any more, and not among them."""
        return tuple(step.source for step in self.steps if step.frees and step.source.file_id is not None)


@record
class Preview:
    """What a plan would do, for people and for `--json`; `freed` are sources that it removes, with their sizes.

    Of `bytes_copied`, `bytes_fetched` come over a network, and `bytes_congruent` lie in whole blocks at offsets that
    agree with their source's: a file system that can share blocks (XFS, btrfs) clones them. `bytes_congruent_padded`
    is what that would be were the data moved by less than a block, as `--pad` does.
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
    """Everything that is needed to write the outputs; `inputs` are all sources that they depend on, also by metadata.

    `remarks` say what a user should know about the outcome. `first_shard` is the file from which engines start, if it
    is not the first output: of several outputs it is without its name while the others get theirs. `sequence` names the
    marks in the order in which they make up the whole, where they do not lie so in the outputs. With `consume`, inputs
    are removed as soon as what the outputs take from them is safe.
    """

    outputs: tuple[OutputFile, ...]
    inputs: tuple[Source, ...]
    remarks: tuple[str, ...] = ()
    first_shard: Path | None = None
    consume: Consume | None = None
    sequence: tuple[str, ...] = ()

    @property
    def first_shard_path(self) -> Path:
        """The file from which engines start; shard 1 of a set."""
        return self.first_shard or self.outputs[0].path

    @property
    def publishing_order(self) -> tuple[int, ...]:
        """Indices of the outputs: the first, from which engines start, comes last."""
        return (*range(1, len(self.outputs)), 0)

    @property
    def fingerprint(self) -> str:
        """sha256 over targets, heads, copies and source identities: equal plans make equal bytes."""
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
        """Count what would be written and taken from where."""
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


def coalesce(copies: Iterable[Copy]) -> tuple[Copy, ...]:
    """Join neighbouring copies that are neighbours in their source too: fewer and larger calls to the kernel."""
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
    """Return how many bytes lie in whole blocks at offsets congruent to the source's, the target moved by `shift`.

    What is no file here does not count: bytes that come over a network or are computed cannot be shared.
    """
    total = 0
    for copy in copies:
        offset = copy.offset + shift
        if copy.extent.source.file_id is not None and (copy.extent.offset - offset) % BLOCK == 0:
            end = offset + copy.extent.length
            total += max(0, end // BLOCK - -(-offset // BLOCK)) * BLOCK
    return total


def _congruent_if_moved(output: OutputFile) -> int:
    """Return the congruent bytes of `output` at the best shift of its data that keeps the alignment of its copies."""
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


NEW_FILE = "; -o OUT writes a new file"  # the way out, where nothing better is known


def in_place(output: OutputFile, base: Source) -> OutputFile:
    """Return `output` as a change of `base` in place: only what differs is written.

    Raises `PlanError` where that cannot be: bytes that are kept would have to move, or the file's size would change.
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
    """Cut what `output` has from offset `start` on into chunks of about `step` bytes.

    Yields each chunk (as an output of the same file) and the offset up to which the file is then complete.
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
    """Return how many bytes the copies have below `offset`."""
    return sum(min(copy.extent.length, max(0, offset - copy.offset)) for copy in output.copies)


# --- what came of a plan ---------------------------------------------------------------------------------------------


@record
class Digest:
    """The sha256, in hex, of what `name` says: a file, or a named range."""

    name: str
    sha256: str


@record
class Digests:
    """What was hashed of a plan's outputs.

    `files`: each output; `parts`: each named range, in the plan's sequence; `whole`: all of these one after the other,
    None where the outputs hold only some of a set's, or have no named ranges.
    """

    files: tuple[Digest, ...]
    parts: tuple[Digest, ...]
    whole: str | None


@record
class Receipt:
    """What was written: the paths in the plan's order, the bytes of all of them, and the digests asked for.

    `freed` are the sources that were removed.
    """

    paths: tuple[Path, ...]
    nbytes: int
    digests: Digests | None = None
    freed: tuple[str, ...] = ()
