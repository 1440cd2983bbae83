"""Whether a finished file is what somebody recorded of it, found out before it gets its name."""

from __future__ import annotations

from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.digests import digest, whole
from gguftool.storage.local import open_local_even_unfinished
from gguftool.storage.plan import OutputFile


def refuse_other_bytes(written: Path, output: OutputFile) -> None:
    """Raise `ExecuteError` where `output`, complete in the file `written`, has not the sha256 that it must have."""
    if output.sha256 is None:
        return
    found = digest([whole(open_local_even_unfinished(written))])
    if found != output.sha256:
        raise ExecuteError(
            f"arrived with sha256 {found}, recorded is {output.sha256}: bytes were damaged on the way or at their "
            "source; nothing was written, try again",
            source=str(output.path),
        )
