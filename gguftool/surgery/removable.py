"""Which inputs merge --consume may remove: files with all their tensors in the output.

A resumed run takes its plan from a journal. The journal is a file like any other: somebody may have edited it, or
restored it from a backup. So the files that it would remove are checked again, against the heads of all files that
still exist.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, FormatError, PlanError, joined_problems, listed, printable
from gguftool.format.cursor import NeedMoreData
from gguftool.format.ggml import nbytes
from gguftool.format.header import ALIGNMENT_KEY, ARCHITECTURE_KEY, Header, TensorInfo, parse, serialize
from gguftool.format.kv import KV
from gguftool.model.model import Model, ModelFile, Sizing, Tensor, tensors_of
from gguftool.model.opening import read_header
from gguftool.record import record, replace
from gguftool.storage.execute.consume_journal import FreedSource, real_path
from gguftool.storage.execute.consume_state import find_unfinished
from gguftool.storage.plan import Consume, Copy, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import LocalSource
from gguftool.storage.sources.sidecars import consume_path
from gguftool.storage.sources.source import Source
from gguftool.surgery.compatibility import metadata_conflicts
from gguftool.surgery.metadata import MADE_TRUE, SelectedTensor, without_layout_keys, without_provenance


def consuming(
    plan: Plan, anchor: Path, request: Request, chosen: Iterable[SelectedTensor], donor: Model, models: Iterable[Model]
) -> Plan:
    """Let `plan` remove the files of `models` with all their tensors among `chosen`; the others get a remark.

    A file without tensors is removed if it gave the output's metadata, as the file of `donor`. Raises `PlanError` if
    nothing can be removed, or if the output takes bytes from a source that is not local: the journal must be enough to
    resume.
    """
    far = dict.fromkeys(source.name for source in _used(plan) if not isinstance(source, LocalSource))
    if far:
        raise PlanError(f"--consume works only with local inputs; fetch these first: {listed(tuple(far), 8)}")
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
        raise PlanError("--consume cannot remove any of the inputs", problems=stays)
    steps = _steps(plan, goes)
    remarks = (*plan.remarks, *(f"not removed, {reason}" for reason in stays))
    return replace(plan, remarks=remarks, consume=Consume(anchor=anchor, steps=steps, request=request))


def _why_needed(file: ModelFile, taken: dict[str, Tensor], donor: Model) -> str | None:
    """Why `file` holds more than the output takes from it, or None."""
    names = [info.name for info in file.header.tensors]
    if not names:
        is_donors = file.source == donor.files[0].source
        return None if is_donors else "no tensors, and the metadata is not in the output"
    missing = [name for name in names if name not in taken]
    if missing:
        return "no tensor is used" if len(missing) == len(names) else "only a part of the tensors is used"
    if any(tensor.sizing is Sizing.CONFLICT for tensor in taken.values()):
        return "sizes of tensors are in doubt"
    if any(taken[own.name].extent != own.extent for own in tensors_of(file.source, file.header)):
        return "only a part of a tensor is used"
    return None


def _steps(plan: Plan, goes: set[Source]) -> tuple[Step, ...]:
    """The order of copying: first files to remove, to make room, the one with metadata last; then the others."""
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
    """Why the file of `source` must stay, or None if it may be removed; `inputs`: all sources that are read."""
    if not isinstance(source, LocalSource):
        return "not a local file"
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
        return "its folder is not writable"
    return None


def _same_file(source: Source, other: Source) -> bool:
    return source.file_id == other.file_id


# --- resuming --------------------------------------------------------------------------------------------------------


def find_begun(anchor: Path, request: Request, plan_again: Callable[[], Plan]) -> Plan | None:
    """The plan that an earlier run of the same command began at `anchor`, or None.

    While no input is gone, the plan must be the one that `plan_again` makes. After that, the outputs must hold every
    tensor of each input that would still be removed, and its metadata if no other input gives them.
    Raises `ExecuteError` if they do not, or if another command began the run; `GGUFToolError` as `plan_again` and
    reading do.
    """

    def check(begun: Plan) -> None:
        if any(isinstance(source, FreedSource) for source in begun.inputs):
            problems = list(_uncovered(begun, request))
        else:
            problems = list(_differences(begun, plan_again()))
        if problems:
            raise ExecuteError(
                f"is not the journal of this merge, and would lose tensors or metadata: {joined_problems(problems)}. "
                f"Nothing was changed; move {consume_path(anchor).name} and the .only-copy files next to it away, and "
                "start again",
                source=str(consume_path(anchor)),
            )

    return find_unfinished(anchor, request, check)


def _differences(begun: Plan, now: Plan) -> Iterator[str]:
    """Describe how a plan differs from the one that the same command makes now; paths may be spelled differently."""
    if [output.path.name for output in begun.outputs] != [output.path.name for output in now.outputs]:
        yield "the outputs are different"
        return
    for old, new in zip(begun.outputs, now.outputs, strict=True):
        if old.head != new.head or old.size != new.size:
            yield f"the head of {new.path.name} is different"
        if [_place(copy) for copy in old.copies] != [_place(copy) for copy in new.copies]:
            yield f"the tensors of {new.path.name} come from other places"
    may_go = {real_path(source.name) for source in now.consume.freed} if now.consume is not None else set()
    strange = [source.name for source in _freed(begun) if real_path(source.name) not in may_go]
    if strange:
        yield f"{listed(strange, 8)} must stay"


def _place(copy: Copy) -> tuple[Path, int, int, int]:
    return real_path(copy.extent.source.name), copy.extent.offset, copy.extent.length, copy.offset


def _freed(plan: Plan) -> tuple[Source, ...]:
    return plan.consume.freed if plan.consume is not None else ()


def _uncovered(begun: Plan, request: Request) -> Iterator[str]:
    """Describe the data that `begun` would lose by removing the sources that still exist."""
    try:
        outputs = [_Held.of(output) for output in begun.outputs]
    except (FormatError, NeedMoreData, ValueError):
        yield "the outputs would not be GGUF files"
        return
    for held in outputs:
        empty = [name for name, info in held.infos.items() if not held.is_filled(info)]
        if empty:
            yield f"nothing fills {listed(empty, 8)} of {held.output.path.name}"
    for source in _freed(begun):
        header = read_header(source)
        lost = [t.info.name for t in tensors_of(source, header) if not any(held.holds(t) for held in outputs)]
        if lost:
            yield f"{source.name}: {listed(lost, 8)} not in the output"
        yield from (f"{source.name}: {problem}" for problem in _lost_metadata(source, header, outputs[0], request))


def _lost_metadata(source: Source, header: Header, held: _Held, request: Request) -> Iterator[str]:
    """Describe where the output's metadata differ from those of the file that gives them, or contradict another's."""
    theirs, ours = _kept(header.kvs), _kept(held.header.kvs)
    given = next((option.partition("=")[2] for option in request.options if option.startswith("--kv-from=")), None)
    is_donor = not header.tensors or (given is not None and real_path(given) == real_path(source.name))
    if header.get(ARCHITECTURE_KEY) is None:
        return
    if is_donor and theirs != ours:
        yield "its metadata is not in the output"
    elif not is_donor:
        allowed = {option.partition("=")[2] for option in request.options if option.startswith("--allow-kv-mismatch=")}
        keys = metadata_conflicts(held.header.kvs, header.kvs)
        yield from (f"{printable(key)} differs in the output" for key in keys if key not in allowed)


def _kept(kvs: Iterable[KV]) -> dict[str, tuple[object, bytes]]:
    """Type and bytes of the keys that a merge takes from the donor unchanged; for duplicate keys, of the last."""
    rest = without_provenance(without_layout_keys(kvs))
    return {
        kv.key: (kv.type, bytes(kv.raw)) for kv in rest if kv.key != ALIGNMENT_KEY and not kv.key.startswith(MADE_TRUE)
    }


@record
class _Held:
    """An output of a begun plan, with its head parsed: where its tensors are, and which copies fill them."""

    output: OutputFile
    header: Header
    infos: dict[str, TensorInfo]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, output: OutputFile) -> _Held:
        """Parse the head; raise `ValueError` if its bytes are not those that a writer of this package makes."""
        header = parse(output.head, output.size)
        if serialize(header) != output.head:
            raise ValueError
        starts = tuple(copy.offset for copy in output.copies)
        return cls(output=output, header=header, infos={info.name: info for info in header.tensors}, starts=starts)

    def is_filled(self, info: TensorInfo) -> bool:
        """Whether copies fill the data of a tensor of this output: one, or several without a gap."""
        length = nbytes(info.type, info.dims)
        place = self.header.data_offset + info.offset
        end = place + (1 if length is None else length)
        for copy in self.output.copies[max(bisect_right(self.starts, place) - 1, 0) :]:
            if not copy.offset <= place < end:
                break
            place = max(place, copy.offset + copy.extent.length)
        return place >= end

    def holds(self, tensor: Tensor) -> bool:
        """Whether this output has `tensor`, copied from where it is."""
        info = self.infos.get(tensor.info.name)
        if info is None or (info.type, info.shape) != (tensor.info.type, tensor.info.shape):
            return False
        if tensor.sizing is Sizing.CONFLICT or tensor.byte_order is not self.header.byte_order:
            return False
        copy = self._copy_at(info, tensor.nbytes) if tensor.nbytes else None
        if copy is None:
            return not tensor.nbytes
        start = copy.extent.offset + self.header.data_offset + info.offset - copy.offset
        return copy.extent.source == tensor.extent.source and start == tensor.extent.offset

    def _copy_at(self, info: TensorInfo, length: int) -> Copy | None:
        """The copy that holds all of `length` bytes from the start of a tensor, or None."""
        start = self.header.data_offset + info.offset
        index = bisect_right(self.starts, start) - 1
        if index < 0:
            return None
        copy = self.output.copies[index]
        return copy if start + length <= copy.offset + copy.extent.length else None
