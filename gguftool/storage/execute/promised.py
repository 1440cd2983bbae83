"""Whether a finished file is what somebody recorded of it, found out before it gets its name."""

from __future__ import annotations

import re
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.plan import OutputFile
from gguftool.storage.sources.local import open_local_even_unfinished
from gguftool.storage.sources.source import Source, whole

_SHA256 = re.compile("[0-9a-f]{64}")


def refuse_other_bytes(written: Path, output: OutputFile) -> None:
    """Raise `ExecuteError` where `output`, complete in the file `written`, has not the sha256 that it must have."""
    if output.sha256 is None:
        return
    from gguftool.storage.sources.digest import digest

    found = digest([whole(open_local_even_unfinished(written))])
    if found != output.sha256:
        raise ExecuteError(
            f"would have sha256 {found}, recorded is {output.sha256}: bytes were damaged on the way, at their source, "
            "or in what was here already; nothing was written, fetch the file anew",
            source=str(output.path),
        )


def recorded_sha256(source: Source) -> str | None:
    """Return the sha256 that the keeper of `source` recorded of all of it, in hex; None where none is known."""
    found = getattr(source, "sha256", None)  # sources of the Hub have it
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None
