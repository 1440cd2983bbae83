"""How to carry out a plan: what a caller may choose."""

from __future__ import annotations

from collections.abc import Callable

from gguftool.record import record

MIB = 1 << 20


@record
class Sizes:
    """Sizes in bytes and times in seconds, chosen by measurement (docs/benchmarks.md); tests choose small ones.

    Copying: a thread takes a `segment` at once; ranges below `least_clone` are copied, as sharing their blocks costs
    more metadata than it saves.  Requests to sources without a descriptor: `least_request` and `most_request` (at
    15 MB/s a connection and 100 ms to the host, round trips of 64 MiB cost 2 %).  Ranges that came from such sources:
    made durable and recorded after `range_step` bytes, but not sooner than `range_pause` after the last time.
    Hashing: outputs are hashed while they grow, a `hash_step` at a time; hashers are behind the copy by two steps at
    most, which should still be in memory.  `write_back`: what a run writes before it starts write-back early.  `grace`:
    how long threads that wait for a dead server get to notice that all is over.
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

    `force` replaces existing outputs. `sync` makes outputs durable before they get a name; without it a run cannot be
    resumed. `resume` continues an interrupted run of the same plan. `checkpoint`: bytes, and twice as many at the most,
    after which progress is recorded for a later run. `jobs`: threads that copy, and threads that hash (default: chosen
    by measurement). `hash_files` and `hash_parts` add digests to the receipt: of the outputs, and of their marks.

    `progress` gets bytes as they are copied, `note` what a user should know. `publishing` is called when outputs begin
    to get their names: an exception raised by a signal from then on still takes the names back, but little is left to
    do.
    """

    force: bool = False
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
