"""Compare shards with the tensors.map next to them, for commands that take shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguftool.analysis.verify import verify_against_map
from gguftool.cli.shared.console import progress_bar
from gguftool.errors import SourceError
from gguftool.format.tensors_map import MapEntry
from gguftool.model.companions import find_maps
from gguftool.model.model import Model, ModelFile
from gguftool.storage.plan import Plan


def verify_maps(models: Sequence[Model], plan: Plan) -> None:
    """Hash the shards that `plan` reads and a tensors.map lists; raise one `SourceError` that names all that differ."""
    bad: list[str] = []
    used = {use.name for use in plan.preview().uses}
    for model in models:
        # Hashing a remote file would fetch all of it, including what the plan does not use.
        files = [file for file in model.files if file.source.name in used and not file.source.is_remote]
        entries = tuple(entry for entries in find_maps(files).values() for entry in entries)
        if entries:
            bad += _differing(files, entries)
    if bad:
        raise SourceError(f"{len(bad)} shard(s) do not match their tensors.map: {'; '.join(bad)}")


def _differing(files: Sequence[ModelFile], entries: tuple[MapEntry, ...]) -> Iterator[str]:
    """Yield a line for each shard that differs from its entry."""
    with progress_bar(sum(file.source.size for file in files), "checking shards") as progress:
        verdicts = verify_against_map(files, entries, None, progress)
    yield from (f"{verdict.name}: {verdict.detail}" for verdict in verdicts if verdict.ok is False)
