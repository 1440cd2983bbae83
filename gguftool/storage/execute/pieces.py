"""An output in pieces, between which a run can stop and go on."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.record import replace
from gguftool.storage.plan import Copy, OutputFile
from gguftool.storage.sources.source import Extent


def pieces(output: OutputFile, start: int, step: int) -> Iterator[tuple[OutputFile, int]]:
    """Cut what `output` has from offset `start` on into pieces of about `step` bytes.

    Yields each piece (as an output of the same file) and the offset up to which the file is then complete.
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
