"""Options of a run: what a caller may choose."""

from __future__ import annotations

from collections.abc import Callable

from gguftool.record import record

MIB = 1 << 20


@record
class Sizes:
    """Sizes in bytes and times in seconds, chosen by measurement (docs/benchmarks.md); tests choose small ones.

    `segment`: bytes that one thread copies in one go.
    `least_clone`: shorter ranges are copied, because sharing their blocks costs more metadata than it saves.
    `least_request`, `most_request`: limits of one request to a source without a descriptor. At 15 MB/s per connection
    and 100 ms to the host, the round trips of 64 MiB requests cost 2 %.
    `range_step`, `range_pause`: ranges of such sources are made durable and recorded after `range_step` bytes, but not
    more often than every `range_pause` seconds.
    `hash_step`: outputs are hashed while they are written, in steps of this size. Hashing is at most two steps behind
    the copy; the page cache should hold that much.
    `write_back`: bytes that a run writes before it starts write-back early.
    `grace`: how long to wait, at the end, for threads that hang in the connection to a dead server.
    """

    segment: int = 8 * MIB
    least_clone: int = 64 << 10
    least_request: int = 4 * MIB
    most_request: int = 64 * MIB
    range_step: int = 16 * MIB
    range_pause: float = 0.25
    hash_step: int = 256 * MIB
    write_back: int = 32 * MIB
    grace: float = 2.0


@record
class Options:
    """How to carry out a plan.

    `force` replaces existing outputs. `private`: outputs are journals, which nobody else may open. `sync` makes outputs
    durable before publishing; without it a run cannot be resumed. `resume` continues an interrupted run of the same
    plan. `checkpoint`: progress is recorded for a later run after this many bytes, at most after twice as many. `jobs`:
    number of threads that copy, and of threads that hash (default: chosen by measurement). `hash_files` and
    `hash_parts` add digests of the outputs and of their marks to the receipt.

    `progress` is called with the number of bytes just copied, `note` with messages for the user. `publishing` is called
    before outputs get their names: if a signal raises an exception after that, the names are still taken back, but
    little is left to do.
    """

    force: bool = False
    private: bool = False
    sync: bool = True
    resume: bool = True
    checkpoint: int = 1 << 30
    jobs: int | None = None
    hash_files: bool = False
    hash_parts: bool = False
    progress: Callable[[int], None] = lambda nbytes: None
    note: Callable[[str], None] = lambda text: None
    publishing: Callable[[], None] = lambda: None
    sizes: Sizes = Sizes()
