"""The one executor: carry out any plan, whichever command made it.

Order of events, for each output file: create the part file, write the bytes, check the sources, fsync, publish under
the final name, fsync the folder. If there are several outputs, all are complete and durable before the first is
published, and the first output (shard 1 of a set, from which engines start) is published last. So after exit 0 the
named outputs are complete; otherwise they do not exist, or are the old ones.
"""

from __future__ import annotations

from gguftool.record import replace
from gguftool.storage.execute.copying import check_sources
from gguftool.storage.execute.fill import digests_of, verify_checksum
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import refuse_busy, refuse_only_copies, remove_quietly
from gguftool.storage.execute.preflight import check_space, check_targets, folders, translate_os_errors
from gguftool.storage.execute.publishing.sets import HalfwayError, finish_set
from gguftool.storage.execute.resume import read_resume, resume_path
from gguftool.storage.execute.run import Run
from gguftool.storage.plan import Digests, OutputFile, Plan, Receipt


def execute(plan: Plan, options: Options | None = None) -> Receipt:
    """Write every output of `plan`.

    Raises `ExecuteError` if an output must not or cannot be written, and `SourceError` if an input fails or changes;
    then no new file exists under a final name.
    """
    options = options or Options()
    receipt = Receipt(
        paths=tuple(output.path for output in plan.outputs), nbytes=sum(output.size for output in plan.outputs)
    )
    with translate_os_errors(plan):
        if plan.consume is not None:
            from gguftool.storage.execute.consume import write_consuming  # few runs remove their sources

            # The journal is an output like any other, written by this executor: `_write_file` calls `execute`.
            freed, digests = write_consuming(plan, plan.consume, options, _write_file)
            return replace(receipt, freed=freed, digests=digests)
        refuse_only_copies(output.path for output in plan.outputs)
        if _finished_before(plan, options):
            return replace(receipt, digests=digests_of(plan, options))
        check_targets(plan, force=options.force)
        with folders(plan, sync=options.sync):
            if plan.outputs[0].base is not None:  # needs space only for its journal, which is a separate plan
                from gguftool.storage.execute.in_place import change_in_place  # few runs change a file in place

                # As above: `execute` writes the undo journal, so it is passed down.
                return change_in_place(plan, options, execute)
            check_space(plan)
            digests = _write_new(plan, options)
    return replace(receipt, digests=digests)


def _write_file(output: OutputFile) -> None:
    execute(Plan(outputs=(output,), inputs=()), Options(resume=False, private=True))


def _finished_before(plan: Plan, options: Options) -> bool:
    """Finish publishing the set of an interrupted run, if there is one; return whether that run had this same plan."""
    finished = finish_set(plan.first_shard_path)
    if finished is None:
        return False
    name = plan.first_shard_path.name
    options.note(f"finished publishing the set of {name}, which an interrupted run had begun")
    if finished.fingerprint != plan.fingerprint:
        return False
    remove_quietly(resume_path(plan))
    return True


def _write_new(plan: Plan, options: Options) -> Digests | None:
    """Write all parts, hash them if requested, publish them; on failure remove them, or keep them for a later run."""
    if options.resume:
        refuse_busy(plan.outputs[0].path)
        read_resume(plan)  # refuse the journal of another plan before anything is changed
    with Run(plan, options) as run:
        try:
            run.begin()
            run.write()
            for index, part in zip(plan.publishing_order, run.parts, strict=True):
                verify_checksum(part.path, plan.outputs[index])
            digests = run.finish_digests()
            check_sources(plan.inputs)
            run.publish()
        except HalfwayError:
            raise
        except BaseException as error:
            if run.is_begun:
                run.abandon(error)
            raise
        return digests
