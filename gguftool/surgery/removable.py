"""Which inputs merge --consume may remove: files with all their tensors in the output."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from gguftool.errors import PlanError, listed
from gguftool.model.model import Model, ModelFile, Sizing, Tensor
from gguftool.record import replace
from gguftool.storage.execute.consume_journal import real_path
from gguftool.storage.plan import Consume, Plan, Request, Step
from gguftool.storage.sources.local import LocalSource
from gguftool.storage.sources.source import Source
from gguftool.surgery.metadata import SelectedTensor


def consuming(
    plan: Plan, anchor: Path, request: Request, chosen: Iterable[SelectedTensor], donor: Model, models: Iterable[Model]
) -> Plan:
    """Let `plan` remove the files of `models` with all their tensors among `chosen`; the others get a remark.

    A file without tensors is removed if the output has its metadata, as `donor`'s. Raises `PlanError` if nothing can
    be removed, or if the output takes bytes from a source that is not local: the journal must be enough to resume.
    """
    far = dict.fromkeys(source.name for source in _used(plan) if not isinstance(source, LocalSource))
    if far:
        raise PlanError(f"--consume goes with local inputs alone, fetch these first: {listed(tuple(far), 8)}")
    taken: dict[Source, dict[str, Tensor]] = {}
    for choice in chosen:
        taken.setdefault(choice.tensor.padded_extent.source, {})[choice.tensor.info.name] = choice.tensor
    reasons: dict[str, list[str]] = {}
    goes: set[Source] = set()
    inputs = {file.source: file for model in models for file in model.files}
    for source, file in inputs.items():
        reason = _why_needed(file, taken.get(source, {}), donor) or why_kept(source, plan.inputs)
        if reason is None:
            goes.add(source)
        else:
            reasons.setdefault(reason, []).append(source.name)
    stays = [f"{reason}: {listed(names, 8)}" for reason, names in reasons.items()]
    if not goes:
        raise PlanError("--consume can remove none of the inputs", problems=stays)
    steps = _steps(plan, goes)
    remarks = (*plan.remarks, *(f"not removed, {reason}" for reason in stays))
    return replace(plan, remarks=remarks, consume=Consume(anchor=anchor, steps=steps, request=request))


def _why_needed(file: ModelFile, taken: dict[str, Tensor], donor: Model) -> str | None:
    """Why `file` holds more than what the output takes from it, or None."""
    names = [info.name for info in file.header.tensors]
    if not names:
        is_donors = file.source == donor.files[0].source
        return None if is_donors else "no tensors, and the metadata is not in the output"
    missing = [name for name in names if name not in taken]
    if missing:
        return "no tensor is used" if len(missing) == len(names) else "only a part of the tensors is used"
    if any(tensor.sizing is Sizing.CONFLICT for tensor in taken.values()):
        return "sizes of tensors are in doubt"
    return None


def _steps(plan: Plan, goes: set[Source]) -> tuple[Step, ...]:
    """The order of copying: files to remove come first, as they make room, metadata last of them; then the others."""
    used = _used(plan)
    first: Sequence[Source] = [source for source in used if source in goes]
    without_data = [source for source in plan.inputs if source in goes and source not in used]
    rest = [source for source in used if source not in goes]
    return (
        *(Step(source=source, frees=True) for source in (*first, *without_data)),
        *(Step(source=source, frees=False) for source in rest),
    )


def _used(plan: Plan) -> tuple[Source, ...]:
    """The sources of the outputs' bytes, in the order of first use."""
    return tuple(dict.fromkeys(copy.extent.source for output in plan.outputs for copy in output.copies))


def why_kept(source: Source, inputs: Iterable[Source]) -> str | None:
    """Why the file of `source` must not be removed, or None if it may be; `inputs`: all sources that are read."""
    if not isinstance(source, LocalSource):
        return "no local file"
    names = {real_path(other.path) for other in inputs if isinstance(other, LocalSource) and _same_file(other, source)}
    if len(names) > 1:
        return "given under several names"
    try:
        status = os.lstat(source.path)
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISREG(status.st_mode):
        return "a symbolic link"
    if status.st_nlink > 1:
        return "several names (hard links)"
    if not os.access(os.path.dirname(source.path) or ".", os.W_OK | os.X_OK):
        return "its folder may not be written"
    return None


def _same_file(source: Source, other: Source) -> bool:
    return source.file_id == other.file_id
