"""Record the notes and the progress of a run."""

from __future__ import annotations

from gguftool.storage.execute.options import Options

CHECKPOINT = 300


class Told:
    """The notes of a run, and the bytes that its progress counts."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.progress = 0

    def options(self, **more: object) -> Options:
        return Options(checkpoint=CHECKPOINT, note=self.notes.append, progress=self._count, **more)  # type: ignore[arg-type]

    def _count(self, nbytes: int) -> None:
        self.progress += nbytes
