"""Who goes along while outputs grow: nobody, or the digests that a run is asked for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from gguftool.storage.execute.fill import Options
from gguftool.storage.execute.receipt import Digests
from gguftool.storage.plan import Plan


class Follower:
    """Who goes along while outputs grow; this one does nothing, see `Hashing`."""

    @property
    def piece(self) -> int:
        """How many bytes of one output to write before `reached` is called again."""
        return sys.maxsize

    def reached(self, index: int, path: Path, end: int) -> None:
        """Take note that output `index`, now at `path`, is complete below `end`."""

    def finish(self) -> Digests | None:
        """Return the digests that were asked for, None where none were; all outputs must be complete."""
        return None

    def close(self) -> None:
        """End what was begun."""


def follower_of(plan: Plan, options: Options) -> Follower:
    """Return who makes the digests that `options` ask for while outputs grow; to be closed, also after an error."""
    if not (options.hash_files or options.hash_parts):
        return Follower()
    from gguftool.storage.execute.output_digests import (
        Hashing,  # most runs hash nothing, and the library takes a while to load
    )

    return Hashing(plan, files=options.hash_files, parts=options.hash_parts, jobs=options.jobs)


def digests_of(plan: Plan, options: Options, paths: Sequence[Path] | None = None) -> Digests | None:
    """Return the digests of complete outputs, which lie at `paths`, or have their names already."""
    with contextlib.closing(follower_of(plan, options)) as follower:
        for index, output in enumerate(plan.outputs):
            follower.reached(index, paths[index] if paths else output.path, output.size)
        return follower.finish()
