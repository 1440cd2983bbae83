"""Runs that remove their sources (`merge --consume`): copy one source after another, and remove each once it is safe.

For each source: copy all that the outputs take from it, fsync, read back and compare, record it durably in the
journal, check the file's identity once more, unlink, fsync its folder. Everything else (writing part files,
publishing) is as in any run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, SourceError
from gguftool.record import replace
from gguftool.storage.execute.consume_journal import consume_file, digest_in, real_path
from gguftool.storage.execute.consume_state import Consuming, open_consuming
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import check_sources, shared_bytes
from gguftool.storage.execute.fill import check_sizes, digests_of, sync_parts, write_outputs
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import PartFile, refuse_busy, refuse_only_copies, remove_quietly
from gguftool.storage.execute.preflight import check_targets, folders
from gguftool.storage.execute.publishing.one_file import publish_one
from gguftool.storage.execute.publishing.sets import HalfwayError, finish_set, publish_set
from gguftool.storage.plan import Consume, Copy, Digests, OutputFile, Plan
from gguftool.storage.sources.local import FileStamp, LocalSource
from gguftool.storage.sources.sidecars import MODE, OLD, helper_path, only_copy_path
from gguftool.storage.sources.source import Source
from gguftool.storage.system.fileio import WriteBack, close_quietly, drop_cached, read_fully, sync_folders
from gguftool.storage.system.locks import lock
from gguftool.storage.system.names import HAVE_FOLDER_DESCRIPTORS, unlink
from gguftool.storage.system.ownership import check_helper, require_owners
from gguftool.storage.system.reflink import own_bytes
from gguftool.storage.system.space import allocated_bytes, free_bytes

_READ = 1 << 20  # bytes

Write = Callable[[OutputFile], object]


def write_consuming(
    plan: Plan, consume: Consume, options: Options, write: Write
) -> tuple[tuple[str, ...], Digests | None]:
    """Write or resume a plan, and remove its sources as they are copied; return the removed names, and digests.

    `write` writes one file durably, and completely or not at all.

    After the first removal, part files and journal are kept, whatever goes wrong.
    """
    if not options.sync:
        raise ExecuteError("sources can be removed only once the output is durable; run it without --no-sync")
    if finish_set(plan.first_shard_path) is not None:
        options.note(f"finished publishing the set of {plan.first_shard_path.name}, which an interrupted run had begun")
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(folders(plan, sync=True))
        hold_folders(consume.freed, cleanup)
        run = _begin(plan, consume, cleanup, write)
        if run.is_published():
            digests = digests_of(run.plan, options)
        else:
            try:
                check_targets(plan, force=options.force)
                check_room(run)
                # A source that an earlier run copied is not needed: its bytes in the part files are compared by digest.
                copied = _settled_sources(run)
                needed = tuple(source for source in plan.inputs if source not in copied)
                check_sources(needed)
                _fill_only_copies(run, options)
                gone = {step.source.identity for step in run.steps if step.frees}
                check_sources(tuple(source for source in needed if source.identity not in gone))
                digests = digests_of(run.plan, options, [only_copy_path(output.path) for output in run.plan.outputs])
                _publish_only_copies(run, options)
            except HalfwayError:
                raise
            except BaseException as error:
                _keep_or_discard(run, error, options)
                raise
        if options.force:  # old files that could not be removed at once
            for output in plan.outputs:
                remove_quietly(helper_path(output.path, OLD))
        run.remove()
        return tuple(step.source.name for step in run.steps if step.frees), digests


def _begin(plan: Plan, consume: Consume, cleanup: contextlib.ExitStack, write: Write) -> Consuming:
    """Write the journal of a new plan, or open the one that `plan` was read from; hold its lock."""
    begun = consume.begun
    if not begun:
        refuse_only_copies((consume.anchor, *(output.path for output in plan.outputs)))
        refuse_busy(plan.outputs[0].path)
        require_owners(helper_path(consume.anchor, MODE), "inputs cannot be removed safely; merge without --consume")
        journal = consume_file(plan, consume)
        begun = digest_in(journal.head)
        write(journal)
    run = open_consuming(consume.anchor, cleanup)
    if run is None or run.begun.consume.begun != begun:
        raise ExecuteError(
            "another run changed this in the meantime; run the command again", source=str(consume.anchor)
        )
    return run


def _settled_sources(run: Consuming) -> set[Source]:
    """Sources that an earlier run copied and that need no further step: they stay, or are already removed."""
    return {
        step.source
        for number, step in enumerate(run.steps)
        if number in run.begun.copied and (run.is_freed(number) or not step.frees)
    }


def _fill_only_copies(run: Consuming, options: Options) -> None:
    """Copy one source after another into the part files; remove it, if it may go, once its bytes are safe there."""
    outputs = run.plan.outputs
    run.check_parts()
    is_new = [run.make_part(index) for index in range(len(outputs))]
    # Compared before the first write: if the part files are not this journal's, they stay as they are.
    safe = {number for number in range(len(run.steps)) if _is_safe(run, number)}
    for index, output in enumerate(outputs):
        with run.part(index) as part:
            _write_durably(part, replace(output, copies=()), options, fresh=True)
    sync_folders([outputs[0].path.parent])
    for number, step in enumerate(run.steps):
        if number in safe:
            options.progress(sum(copy.extent.length for _, copies in run.copies_of(number) for copy in copies))
            continue
        run.note_copied(number, _copy_step(run, number, options, is_new))
        if step.frees:
            run.check_before_removal()
            free(step.source)


def _copy_step(run: Consuming, number: int, options: Options, is_new: Sequence[bool]) -> str:
    """Copy all that the outputs take from one source, durably; read it back, compare it, and return its sha256."""
    digest = hashlib.sha256()
    for index, copies in run.copies_of(number):
        with run.part(index) as part:
            piece = replace(run.plan.outputs[index], head=b"", copies=copies)
            _write_durably(part, piece, options, fresh=is_new[index])
            read_back(copies, part, digest)
    return digest.hexdigest()


def _write_durably(part: PartFile, output: OutputFile, options: Options, *, fresh: bool) -> None:
    parts = [(part, output)]
    write_outputs(parts, CopyState.of(options, WriteBack(options.sizes.write_back)), fresh=fresh)
    sync_parts(parts)
    check_sizes(parts)


def _is_safe(run: Consuming, number: int) -> bool:
    """Whether an earlier run copied this source, and the part files still have its bytes.

    A source that still has to be removed is copied again, whatever the journal says: no run removes a file because of
    another run's record. Raises `ExecuteError` if both the source and its bytes are gone.
    """
    if number not in run.begun.copied or (run.steps[number].frees and not run.is_freed(number)):
        return False
    digest = hashlib.sha256()
    for index, copies in run.copies_of(number):
        with run.part(index) as part:
            digest_part(copies, part, digest)
    if digest.hexdigest() == run.begun.copied[number]:
        return True
    if run.is_freed(number):
        raise ExecuteError(
            "the part file next to the output no longer has the bytes that were read back from it before this file was "
            f"removed; nothing more is removed, and the part file and {run.path.name} are kept",
            source=run.steps[number].source.name,
        )
    return False


def _publish_only_copies(run: Consuming, options: Options) -> None:
    options.publishing()
    parts = run.parts()
    run.note_complete(parts)
    if len(parts) == 1:
        publish_one(parts[0], replace=options.force, sync=True)
    else:
        publish_set(run.plan, parts, None, replace=options.force, sync=True)


def _keep_or_discard(run: Consuming, error: BaseException, options: Options) -> None:
    """Keep part files and journal after a signal, or if sources are gone; otherwise remove them."""
    if run.something_is_freed():
        options.note(
            "source files were removed, and the part file next to the output is the only copy of their tensors: keep "
            "it; run the same command again to resume"
        )
    elif isinstance(error, Exception):
        run.discard()
    else:
        options.note("finished work is kept: run the same command again to resume, or with --no-resume to start over")


def hold_folders(sources: Iterable[Source], cleanup: contextlib.ExitStack) -> None:
    """Lock the folders of `sources`: two runs must not each take a part of one set into their part files.

    Windows cannot lock folders: there, the only guard is that each file is compared again before it is removed.
    """
    folders = {real_path(source.path).parent for source in sources if isinstance(source, LocalSource)}
    for folder in sorted(folders) if HAVE_FOLDER_DESCRIPTORS else ():
        fd = os.open(folder, os.O_RDONLY)
        cleanup.callback(close_quietly, fd)
        if not lock(fd):
            raise ExecuteError("another merge --consume is removing files here; wait for it", source=str(folder))


# --- one source ------------------------------------------------------------------------------------------------------


def read_back(copies: Iterable[Copy], part: PartFile, digest: hashlib._Hash) -> None:
    """Compare the bytes of `part` on disk with the sources of `copies`, and add them to `digest`.

    Raises `ExecuteError` if they differ.
    """
    drop_cached(part.fd)
    for copy in copies:
        place = copy.offset
        for data in copy.extent.source.stream(copy.extent.offset, copy.extent.length):
            found = _read_part(part, place, len(data))
            if found != data:
                raise ExecuteError(
                    "does not read back the bytes that were written", source=str(part.path), offset=place
                )
            digest.update(found)
            place += len(found)


def digest_part(copies: Iterable[Copy], part: PartFile, digest: hashlib._Hash) -> None:
    """Add the bytes of `part` in the ranges of `copies` to `digest`."""
    for copy in copies:
        for done in range(0, copy.extent.length, _READ):
            digest.update(_read_part(part, copy.offset + done, min(_READ, copy.extent.length - done)))


def _read_part(part: PartFile, offset: int, length: int) -> bytes:
    data = read_fully(part.fd, length, offset)
    if len(data) < length:
        raise ExecuteError("ends early", source=str(part.path), offset=offset + len(data))
    return data


def free(source: Source) -> None:
    """Remove the file of `source`, durably; raise `SourceError` if it is another file now, or has hard links."""
    if not isinstance(source, LocalSource):
        return
    path = real_path(source.path)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        status = None
    if status is None or FileStamp.of(status) != source.file_stamp:
        raise SourceError("is no longer the file that was copied, and is kept; put that file back", source=str(path))
    if status.st_nlink > 1:
        raise SourceError("has several names (hard links) now, and is kept; remove it or the others", source=str(path))
    unlink(path)
    sync_folders([path.parent])


# --- space ------------------------------------------------------------------------------------------------------------


def check_room(run: Consuming) -> None:
    """Refuse, before any write, a run that would not fit at some point, given the space that it has freed by then."""
    lacking = _folders_without_space(run, sharing=False)
    if lacking and (lacking := _folders_without_space(run, sharing=True)):
        folder, nbytes, free = lacking[0]
        raise ExecuteError(
            f"needs {nbytes:,} bytes at its peak, although it removes sources as it copies them, and {free:,} are free "
            "here; make room or choose another folder",
            source=str(folder),
        )


def _folders_without_space(run: Consuming, *, sharing: bool) -> list[tuple[Path, int, int]]:
    """Folders on which `run` would not fit, with bytes needed and free; `sharing`: subtract blocks that are shared."""
    need, peak, places = _BytesByDevice(), _BytesByDevice(), {}
    devices = [os.stat(output.path.parent).st_dev for output in run.plan.outputs]
    for index, output in enumerate(run.plan.outputs):
        places[devices[index]] = output.path.parent
        need.add(devices[index], len(output.head) - _rewritable_bytes(run, index))
    for number, step in enumerate(run.steps):
        if run.is_freed(number):
            continue
        stays = 0  # bytes of the source that removing it does not free: the outputs share these blocks
        for index, copies in run.copies_of(number):
            shared = shared_bytes(copies, run.plan.outputs[index].path.parent) if sharing else 0
            need.add(devices[index], sum(copy.extent.length for copy in copies) - shared)
            stays += shared
        for device, nbytes in need.items():
            peak[device] = max(peak.get(device, nbytes), nbytes)
        if step.frees and isinstance(step.source, LocalSource):
            status = os.stat(step.source.path)
            need.add(status.st_dev, stays - min(allocated_bytes(status), status.st_size))
    found = ((folder, max(peak.get(device, 0), need.get(device, 0))) for device, folder in places.items())
    room = ((folder, nbytes, free_bytes(folder)) for folder, nbytes in found)
    return [(folder, nbytes, free) for folder, nbytes, free in room if free is not None and nbytes > free]


class _BytesByDevice(dict[int, int]):
    """Numbers of bytes by device."""

    def add(self, device: int, nbytes: int) -> None:
        self[device] = self.get(device, 0) + nbytes


def _rewritable_bytes(run: Consuming, index: int) -> int:
    """Bytes that a part file occupies, without those of removed sources: they are written again, in place."""
    path = only_copy_path(run.plan.outputs[index].path)
    with contextlib.suppress(FileNotFoundError):
        check_helper(path, target=run.plan.outputs[index].path)
    own = own_bytes(path)
    freed = (copies for number in range(len(run.steps)) if run.is_freed(number) for copies in run.copies_of(number))
    return max(0, own - sum(copy.extent.length for at, copies in freed if at == index for copy in copies))
