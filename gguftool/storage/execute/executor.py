"""The one executor: it carries out any plan, whoever made it.

Order of events, for each output file: part file, bytes, sources checked again, data made durable, published under its
final name, folder made durable.  Of several outputs all are complete and durable before the first is published, and
the first output (shard 1 of a set, from which engines start) is published last.  So: after exit 0 the named outputs
are complete; otherwise they do not exist, or are the old ones.
"""

from __future__ import annotations

import contextlib
import sys

from gguftool.record import replace
from gguftool.storage.execute.batches import Parts, write_parts
from gguftool.storage.execute.copying import check_sources
from gguftool.storage.execute.fill import Options
from gguftool.storage.execute.following import digests_of, follower_of
from gguftool.storage.execute.part import refuse_busy, refuse_only_copies, remove_quietly
from gguftool.storage.execute.preflight import check_space, check_targets, folders, said_plainly
from gguftool.storage.execute.promised import refuse_other_bytes
from gguftool.storage.execute.publish import HalfwayError, finish_set, publish_one, publish_set
from gguftool.storage.execute.receipt import Digests, Receipt
from gguftool.storage.execute.resume import ResumeLog, read_resume, remove_resume, resume_path, worth_keeping
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.system.durable import bulk_sync

__all__ = ["Options", "execute"]

# Above this number of outputs on one file system, one checked syncfs costs less than an fsync for each.
_SYNCFS_FROM = 8


def execute(plan: Plan, options: Options | None = None) -> Receipt:
    """Write every output of `plan`.

    Raises `ExecuteError` where an output may not or cannot be written and `SourceError` where an input fails or
    changes; then no output exists under its final name that was not there before.
    """
    options = options or Options()
    receipt = Receipt(
        paths=tuple(output.path for output in plan.outputs), nbytes=sum(output.size for output in plan.outputs)
    )
    with said_plainly(plan):
        if plan.consume is not None:
            from gguftool.storage.execute.consume import write_consuming

            freed, digests = write_consuming(plan, plan.consume, options, _write_one)
            return replace(receipt, freed=freed, digests=digests)
        refuse_only_copies(output.path for output in plan.outputs)
        if _finished_before(plan, options):
            return replace(receipt, digests=digests_of(plan, options))
        check_targets(plan, force=options.force)
        with folders(plan, sync=options.sync):
            if plan.outputs[0].base is not None:  # needs room for its journal alone, which is a plan of its own
                from gguftool.storage.execute.in_place import change_in_place

                return change_in_place(plan, options, execute)
            check_space(plan)
            digests = _write_anew(plan, options)
    return replace(receipt, digests=digests)


def _write_one(output: OutputFile) -> None:
    execute(Plan(outputs=(output,), inputs=()), Options(resume=False))


def _finished_before(plan: Plan, options: Options) -> bool:
    """Finish what an interrupted run left half-published; return whether it was this very plan."""
    finished = finish_set(plan.gate_path)
    if finished is None:
        return False
    options.note(f"finished publishing the set of {plan.gate_path.name}, in which an earlier run was interrupted")
    if finished.fingerprint != plan.fingerprint:
        return False
    remove_quietly(resume_path(plan))
    return True


def _write_anew(plan: Plan, options: Options) -> Digests | None:
    """Write all parts, hash them where asked, publish them; on failure remove them, or keep them for a later run.

    The first output's part stays open and locked to the end: it is what keeps a second run on the same set away.
    """
    if options.resume:
        refuse_busy(plan.outputs[0].path)
        read_resume(plan)  # refuses what another plan left while nothing is touched
    with contextlib.ExitStack() as cleanup:
        parts = Parts(plan)
        first, found = parts.open(0)
        cleanup.callback(first.close)
        follower = follower_of(plan, options)
        cleanup.callback(follower.close)
        log: ResumeLog | None = None
        try:
            log = _begin_log(plan, options, cleanup)
            write_parts(parts, options, log, follower, found=found)
            for index, part in zip(plan.publishing_order, parts.in_order(), strict=True):
                refuse_other_bytes(part.path, plan.outputs[index])
            digests = follower.finish()
            check_sources(plan.inputs)
            _publish_all(plan, parts, log, options)
        except HalfwayError:
            raise
        except BaseException as error:
            if log is not None or not found:  # before the journal is read, what was there is not this run's to remove
                _give_up(plan, parts, log, error, options)
            raise
        return digests


def _give_up(plan: Plan, parts: Parts, log: ResumeLog | None, error: BaseException, options: Options) -> None:
    if log is not None and log.is_kept and worth_keeping(error, plan.inputs):
        options.note("what is done is kept: the same command goes on from there, --no-resume starts anew")
        return
    parts.remove()
    if log is not None:
        log.remove()


def _begin_log(plan: Plan, options: Options, cleanup: contextlib.ExitStack) -> ResumeLog:
    """Find out, with the first part's lock held, what an interrupted run left to go on from."""
    if not options.resume:
        remove_resume(plan)
    done = read_resume(plan)
    in_bulk = options.sync and len(plan.outputs) > _SYNCFS_FROM
    log = ResumeLog(
        plan,
        done,
        step=options.checkpoint if options.sync else sys.maxsize,
        sync_data=bulk_sync([output.path.parent for output in plan.outputs], cleanup) if in_bulk else None,
    )
    cleanup.callback(log.close)
    if done.ends or done.ranges:
        log.go_on()
    else:
        remove_quietly(resume_path(plan))
    return log


def _publish_all(plan: Plan, parts: Parts, log: ResumeLog, options: Options) -> None:
    """Give the finished parts their names; the resume journal goes first, or its run is over when it would be read."""
    options.publishing()
    replacing = options.force or any(output.replaces is not None for output in plan.outputs)
    if len(plan.outputs) == 1:
        log.remove()
        publish_one(parts.in_order()[0], replace=replacing, sync=options.sync)
    else:
        publish_set(plan, parts.in_order(), resume_path(plan), replace=replacing, sync=options.sync)
        log.close()
