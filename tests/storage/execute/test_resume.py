"""Interrupted runs go on where they stopped: only with the very same plan, and only from what is certain."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from gguftool.errors import ExecuteError, SourceError
from gguftool.record import replace
from gguftool.storage.execute import resume
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options, Sizes
from gguftool.storage.execute.part import create_part, take_over
from gguftool.storage.execute.resume import (
    CompletedRanges,
    Done,
    ResumeJournal,
    agrees,
    believable,
    is_streamed,
    read_resume,
    remove_resume,
    resume_path,
    worth_keeping,
)
from gguftool.storage.plan import Copy, OutputFile, Plan, bytes_below, chunks
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.sidecars import helper_path
from gguftool.storage.sources.source import ChangedError, Extent, Source
from tests.support import builders as b
from tests.support.command import environment, run_gguftool
from tests.support.paths import REPO
from tests.support.run_recorder import CHECKPOINT, Told
from tests.support.slow_source import SlowSource
from tests.support.syscalls import Injector, count_calls, killed_at
from tests.support.writer_cases import CASES, Case, listing, run, set_up, visible

RESUMABLE = [case for case in CASES if case.checkpoint == CHECKPOINT]
in_every_case = pytest.mark.parametrize("case", RESUMABLE, ids=str)


def killed_near_the_end(case: Case, folder: Path) -> Plan:
    """Leave what a run leaves that is killed when its last bytes were being copied."""
    set_up(case, folder)
    calls = count_calls(lambda: run(case, folder))
    set_up(case, folder)
    plan = case.plan(folder)
    last_copy = max(at for at, name in enumerate(calls) if name in ("copy_file_range", "pwrite", "pread"))
    first_plan_call = len(calls) - len(count_execute(case, folder, plan))
    assert killed_at(last_copy - first_plan_call, lambda: execute(plan, Told().options()))
    assert helper_path(plan.outputs[0].path, "resume").exists()
    return plan


def count_execute(case: Case, folder: Path, plan: Plan) -> list[str]:
    scratch = count_calls(lambda: execute(plan, Told().options()))
    for output in plan.outputs:
        output.path.unlink()
    return scratch


@in_every_case
def test_killed_near_its_end_a_run_goes_on_and_copies_only_the_rest(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(case, folder)
    run(case, folder)
    wanted = listing(folder)
    plan = killed_near_the_end(case, folder)
    told = Told()
    with Injector().active() as injector:
        execute(plan, told.options())
    assert listing(folder) == wanted
    assert any("resumed after" in note for note in told.notes)
    copied = sum(name in ("copy_file_range", "pwrite") for name in injector.calls)
    assert copied <= 4, injector.calls
    assert told.progress == plan.preview().bytes_copied


@in_every_case
def test_a_source_that_changed_meanwhile_is_named_and_no_resume_starts_anew(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed_near_the_end(case, folder)
    source = folder / next(iter(case.files))
    os.utime(source, ns=(1, 1))
    left = listing(folder)
    with pytest.raises(ExecuteError, match=f"changed since: .*{source.name}.*--no-resume"):
        execute(case.plan(folder), Told().options())
    assert listing(folder) == left
    told = Told()
    execute(case.plan(folder), told.options(resume=False))
    assert told.notes == []
    assert not any(".gguftool-" in name for name in listing(folder))


def test_another_plan_for_the_same_output_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    case = next(case for case in RESUMABLE if case.name.startswith("merge"))
    plan = killed_near_the_end(case, folder)
    other = Plan(outputs=plan.outputs, inputs=plan.inputs[:1])
    with pytest.raises(ExecuteError, match="its sources were"):
        execute(other, Told().options())


@in_every_case
def test_a_part_file_that_was_tampered_with_is_not_trusted(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(case, folder)
    run(case, folder)
    wanted = listing(folder)
    plan = killed_near_the_end(case, folder)
    for output in plan.outputs:
        part = helper_path(output.path, "part")
        if part.exists():
            part.write_bytes(bytes(part.stat().st_size))
    execute(plan, Told().options())
    assert listing(folder) == wanted


@pytest.mark.slow
@in_every_case
def test_a_journal_that_was_torn_at_any_byte_is_believed_only_as_far_as_it_is_true(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(case, folder)
    run(case, folder)
    wanted = visible(listing(folder))
    plan = killed_near_the_end(case, folder)
    left = listing(folder)
    journal = os.path.relpath(helper_path(plan.outputs[0].path, "resume"), folder)
    for length in range(0, len(left[journal]), 7):
        for name, data in left.items():
            if name not in case.files:
                (folder / name).write_bytes(data[:length] if name == journal else data)
        execute(plan, Told().options())
        assert visible(listing(folder)) == wanted, length
        for output in plan.outputs:
            output.path.unlink()


def test_what_was_written_goes_when_the_disk_is_full_and_stays_on_a_signal(tmp_path: Path) -> None:
    case = RESUMABLE[0]
    folder = tmp_path / "run"
    set_up(case, folder)
    plan = case.plan(folder)
    calls = count_calls(lambda: execute(plan, Told().options()))
    last = calls.count("pwrite") - 1
    for output in plan.outputs:
        output.path.unlink()
    with (
        Injector(name="pwrite", nth=last, kind="ENOSPC").active(),
        pytest.raises(ExecuteError, match="the disk is full"),
    ):
        execute(plan, Told().options())
    assert listing(folder) == dict(case.files)
    told = Told()

    def interrupt(_nbytes: int) -> None:
        if helper_path(plan.outputs[0].path, "resume").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, Options(checkpoint=CHECKPOINT, note=told.notes.append, progress=interrupt))
    assert any("run the same command again to resume" in note for note in told.notes)
    assert helper_path(plan.outputs[0].path, "part").exists()
    execute(plan, told.options())
    assert any("resumed after" in note for note in told.notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [(Options(), "saved after 1,024 MiB"), (Options(sync=False), "nobody knows what is on it")],
)
def test_a_run_that_leaves_nothing_to_go_on_from_says_why(options: Options, reason: str, tmp_path: Path) -> None:
    set_up(CASES[0], tmp_path)
    plan, told = CASES[0].plan(tmp_path), Told()

    def interrupt(_nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, replace(options, note=told.notes.append, progress=interrupt))
    assert [note for note in told.notes if "nothing to resume: " in note and reason in note], told.notes
    assert listing(tmp_path) == dict(CASES[0].files)


def test_what_lies_above_the_watermark_is_forgotten_also_in_the_gaps(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(range(1, 201)) * 10)
    source = open_local(tmp_path / "source")
    copies = tuple(
        Copy(extent=Extent(source=source, offset=at, length=100), offset=2 * at) for at in range(0, 2000, 100)
    )
    output = OutputFile(path=tmp_path / "out", head=b"", copies=copies, size=4000)
    plan = Plan(outputs=(output,), inputs=(source,))
    journal, part = helper_path(output.path, "resume"), helper_path(output.path, "part")

    def interrupt(_nbytes: int) -> None:
        if journal.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, Options(checkpoint=CHECKPOINT, progress=interrupt))
    mark = max(int(line.split()[1]) for line in journal.read_text().splitlines()[1:])
    assert 0 < mark < 1000
    part.write_bytes(part.read_bytes()[:mark] + b"\xee" * (4000 - mark))
    told = Told()
    execute(plan, told.options())
    assert any("resumed after" in note for note in told.notes)
    assert output.path.read_bytes() == b"".join(
        (tmp_path / "source").read_bytes()[at : at + 100] + bytes(100) for at in range(0, 2000, 100)
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="names of descriptors come from /proc, on Linux")
def test_data_is_durable_before_it_is_journaled_and_the_journal_before_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = RESUMABLE[0]
    set_up(case, tmp_path / "run")
    plan = case.plan(tmp_path / "run")
    events: list[tuple[str, str]] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(fd: int, *rest: object) -> object:
            events.append((name, os.readlink(f"/proc/self/fd/{fd}").rpartition(".")[2]))
            return real(fd, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "pwrite", "fsync"):
        watch(name)
    execute(plan, Told().options())
    journaled = [at for at, event in enumerate(events) if event == ("write", "resume")]
    assert len(journaled) >= 3
    for at in journaled:
        assert events[at - 1] == ("fsync", "part")
        assert events[at + 1] == ("fsync", "resume")


def test_pieces_are_the_output_whatever_the_step_and_start(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "swap -o")
    set_up(case, tmp_path / "run")
    (output,) = case.plan(tmp_path / "run").outputs
    total = sum(copy.extent.length for copy in output.copies)
    for step in (1, 7, 300, 1 << 30):
        marks = [end for _, end in chunks(output, 0, step)]
        assert marks == sorted(marks)
        assert marks[-1] == output.size
        for start in (0, *marks[:: max(1, len(marks) // 5)]):
            got = [copy for piece, _ in chunks(output, start, step) for copy in piece.copies]
            assert sum(copy.extent.length for copy in got) == total - bytes_below(output, start)
            for copy in got:
                whole = next(c for c in output.copies if c.offset <= copy.offset < c.offset + c.extent.length)
                assert copy.extent.offset - whole.extent.offset == copy.offset - whole.offset


def test_left_over_parts_do_not_count_as_used_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in RESUMABLE if case.name.startswith("merge"))
    folder = tmp_path / "run"
    plan = killed_near_the_end(case, folder)
    blocks = helper_path(plan.outputs[0].path, "part").stat().st_blocks * 512
    real = os.statvfs(folder)
    short = plan.outputs[0].size - min(blocks, plan.outputs[0].size)

    class Full:
        f_frsize = 1
        f_bavail = short

    assert real.f_bavail * real.f_frsize > plan.outputs[0].size
    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    execute(plan, Told().options())
    assert plan.outputs[0].path.stat().st_size == plan.outputs[0].size


# --- a process of its own --------------------------------------------------------------------------------------------

_SLOW = """
import sys, time
sys.path.insert(0, {repo!r})
from gguftool.storage.execute import options
slow = options.Options
options.Options = lambda **kw: slow(**{{**kw, "checkpoint": 4096, "progress": lambda n: time.sleep(0.02)}})
from gguftool.cli import main
sys.argv = ["gguftool", *sys.argv[1:]]
main.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_cleanly_and_the_same_command_goes_on(number: int, code: int, tmp_path: Path) -> None:
    tensors = [b.tensor(f"blk.{n}.ffn_up.weight", "F32", (1024, 4)) for n in range(60)]
    (tmp_path / "m.gguf").write_bytes(b.gguf(b.llama_kvs(), tensors))
    arguments = ["merge", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "out.gguf")]
    slow = [sys.executable, "-c", _SLOW.format(repo=str(REPO)), *arguments]
    with subprocess.Popen(slow, env=environment(), stderr=subprocess.PIPE) as process:
        journal = helper_path(tmp_path / "out.gguf", "resume")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert b"run the same command again" in said
    assert b"Traceback" not in said
    assert not (tmp_path / "out.gguf").exists()
    done = run_gguftool(*arguments)
    assert done.returncode == 0, done.stderr
    assert b"resumed after" in done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


@pytest.mark.parametrize("deleted", [(0,), (1,), (0, 1)])
def test_a_part_made_again_is_forgotten_before_it_exists_wherever_the_run_is_killed(
    deleted: tuple[int, ...], tmp_path: Path
) -> None:
    """A new part is all zeros, and so is what is compared below the watermark: only the journal can know."""
    data = bytes(range(1, 251)) * 400 + bytes(200_000)
    (tmp_path / "source").write_bytes(data)
    names = [b.shard_name("s", number, 2) for number in (1, 2)]

    def plan() -> Plan:
        source = open_local(tmp_path / "source")
        copies = tuple(
            Copy(extent=Extent(source=source, offset=at, length=20_000), offset=at)
            for at in range(0, len(data), 20_000)
        )
        outputs = (OutputFile(path=tmp_path / "out" / name, head=b"", copies=copies, size=len(data)) for name in names)
        return Plan(outputs=tuple(outputs), inputs=(source,))

    options = Options(checkpoint=90_000)

    def interrupt() -> None:
        raise KeyboardInterrupt

    def prepare() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            execute(plan(), replace(options, publishing=interrupt))
        for number in deleted:
            helper_path(tmp_path / "out" / names[number], "part").unlink()

    prepare()
    calls = count_calls(lambda: execute(plan(), options))
    for at in range(len(calls)):
        prepare()
        if killed_at(at, lambda: execute(plan(), options)) and not (tmp_path / "out" / names[0]).exists():
            execute(plan(), options)
        for name in names:
            assert (tmp_path / "out" / name).read_bytes() == data, (at, calls[at])


# --- what is compared before a part file is trusted -------------------------------------------------------------------


def one_source_plan(folder: Path, data: bytes, head: bytes = b"") -> Plan:
    (folder / "source").write_bytes(data)
    source = open_local(folder / "source")
    copy = Copy(extent=Extent(source=source, offset=0, length=len(data)), offset=len(head))
    output = OutputFile(path=folder / "out", head=head, copies=(copy,), size=len(head) + len(data))
    return Plan(outputs=(output,), inputs=(source,))


def part_agrees(plan: Plan, content: bytes, mark: int, floor: int = 0) -> bool:
    part = create_part(plan.outputs[0].path, len(content))
    try:
        os.pwrite(part.fd, content, 0)
        return agrees(part, plan.outputs[0], mark, floor)
    finally:
        part.close()
        part.path.unlink()


def test_the_last_64_kib_below_the_mark_are_compared(tmp_path: Path) -> None:
    data = bytes(range(1, 256)) * 800
    plan, mark, probe = one_source_plan(tmp_path, data), 150_000, 64 << 10
    for at, good in ((mark - 1, False), (mark - probe, False), (mark - probe - 1, True), (mark, True)):
        wrong = data[:at] + b"\0" + data[at + 1 :]
        assert part_agrees(plan, wrong, mark) is good, at
    assert part_agrees(plan, data[: mark - 200] + bytes(len(data) - mark + 200), mark) is False


def test_head_and_data_must_both_be_as_planned(tmp_path: Path) -> None:
    head, data = b"the head of it", b"and its data"
    plan, mark = one_source_plan(tmp_path, data, head), len(head) + len(data)
    assert part_agrees(plan, head + data, mark)
    assert not part_agrees(plan, head + data.upper(), mark)
    assert not part_agrees(plan, head.upper() + data, mark)
    assert part_agrees(plan, head.upper() + data, mark, len(head))


def test_a_mark_at_the_end_of_an_output_counts_and_one_behind_it_does_not(tmp_path: Path) -> None:
    plan = one_source_plan(tmp_path, b"x" * 100)
    journal = ResumeJournal(plan, Done(ends={}, ranges={}), step=1, sync_data=lambda: None)
    journal.gather({0: 100}, 100)
    journal.checkpoint()
    journal.close()
    assert read_resume(plan).ends == {0: 100}
    with open(resume_path(plan), "ab") as file:
        file.write(b"0 101\n0 50\n0 90 100\n0 90 101\n0 100 100\n1 10\n0 -1\n")
    assert read_resume(plan) == Done(ends={0: 100}, ranges={0: [(90, 100)]})


def test_a_part_that_has_its_final_name_already_is_not_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "out"
    part = create_part(target, 10)
    part.close()
    again = take_over(target, 10)
    assert again is not None
    again.close()
    assert take_over(target, 9) is None
    assert take_over(target, 11) is None
    os.link(part.path, target)
    assert take_over(target, 10) is None


# --- the journal, line by line ---


def journal_of(plan: Plan, **options: Any) -> ResumeJournal:
    return ResumeJournal(plan, Done(ends={}, ranges={}), **{"step": 10, "sync_data": lambda: None, **options})


def lines_of(plan: Plan) -> list[str]:
    return resume_path(plan).read_text().splitlines()[1:]


def test_a_checkpoint_is_due_after_a_step_of_written_bytes(tmp_path: Path) -> None:
    plan = one_source_plan(tmp_path, b"x" * 100)
    synced: list[int] = []
    guarded: list[int] = []
    journal = journal_of(plan, sync_data=lambda: synced.append(1), guard=lambda: guarded.append(1))
    assert journal.is_kept is False
    assert journal.gather({0: 5}, 5) is False
    assert journal.gather({0: 9}, 4) is False
    assert journal.gather({0: 10}, 1) is True
    journal.checkpoint()
    assert (synced, guarded, journal.is_kept) == ([1], [1], True)
    assert journal.gather({0: 19}, 9) is False
    assert journal.gather({0: 19}, 1) is True
    journal.checkpoint()
    journal.record_ranges(0, [(1, 2), (3, 4)])
    journal.record_ranges(0, [])
    assert len(guarded) == 3
    journal.close()
    assert journal.is_kept is False
    assert lines_of(plan) == ["0 10", "0 19", "0 1 2", "0 3 4"]


def test_only_what_an_earlier_run_recorded_is_forgotten_and_once(tmp_path: Path) -> None:
    plan = one_source_plan(tmp_path, b"x" * 100)
    done = Done(ends={0: 5, 3: 1}, ranges={1: [(0, 1)]})
    journal = ResumeJournal(plan, done, step=10, sync_data=None)
    for index in (0, 1, 2, 0, 1):
        journal.forget(index)
    journal.close()
    assert lines_of(plan) == ["0 anew", "1 anew"]


def test_a_journal_goes_on_behind_a_torn_line_and_is_removed_only_if_it_is_its_own(tmp_path: Path) -> None:
    plan = one_source_plan(tmp_path, b"x" * 100)
    journal = journal_of(plan)
    journal.record_ranges(0, [(0, 10)])
    journal.close()
    with open(resume_path(plan), "ab") as file:
        file.write(b"0 50 6")
    again = journal_of(plan)
    again.reopen()
    again.record_ranges(0, [(20, 30)])
    assert read_resume(plan).ranges == {0: [(0, 10), (20, 30)]}
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"")
    os.rename(foreign, resume_path(plan))
    again.remove()
    assert resume_path(plan).exists()
    resume_path(plan).unlink()
    own = journal_of(plan)
    own.record_ranges(0, [(0, 10)])
    own.remove()
    assert not resume_path(plan).exists()
    assert own.is_kept is False


def test_a_restart_forgets_what_stands_before_it(tmp_path: Path) -> None:
    plan = one_source_plan(tmp_path, b"x" * 100)
    journal = journal_of(plan)
    journal.record_ranges(0, [(0, 10)])
    journal.close()
    with open(resume_path(plan), "ab") as file:
        file.write(b"0 60\n0 40\n")
    assert read_resume(plan) == Done(ends={0: 60}, ranges={0: [(0, 10)]})
    with open(resume_path(plan), "ab") as file:
        file.write(b"0 anew\n0 7 8\n0\n0 x\n0 1 2 3\n-1 5\n\n0 -1 5\n")
    assert read_resume(plan) == Done(ends={}, ranges={0: [(7, 8)]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": "other"}, "changed since: "),
        ({"name": "elsewhere"}, "its sources were elsewhere"),
        ({"outputs": [["out", 1], ["b", 2]]}, "its 2 output(s) had other names or sizes"),
        ({}, "its options were different"),
    ],
)
def test_how_another_plan_differs_is_said(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    plan = one_source_plan(tmp_path, b"x" * 100)
    source = plan.inputs[0]
    header = {
        "version": "gguftool resume 1",
        "fingerprint": "another",
        "sources": [[change.get("name", source.name), change.get("identity", source.identity)]],
        "outputs": change.get("outputs", [[output.path.name, output.size] for output in plan.outputs]),
    }
    journal = journal_of(plan)
    journal.record_ranges(0, [(0, 1)])
    journal.close()
    resume_path(plan).write_text(json.dumps(header) + "\n")
    with pytest.raises(ExecuteError) as caught:
        read_resume(plan)
    assert f"part files of another plan here: {words}" in str(caught.value)
    assert caught.value.source == str(plan.outputs[0].path)
    for key, value in (("version", "gguftool resume 2"), ("fingerprint", 5), ("sources", [["a", 5]]), ("outputs", 5)):
        resume_path(plan).write_text(json.dumps({**header, key: value}) + "\n")
        assert read_resume(plan) == Done(ends={}, ranges={})


# --- ranges ---


class Recorder:
    """Stands for a journal that records ranges."""

    step = 100

    def __init__(self) -> None:
        self.recorded: list[list[tuple[int, int]]] = []

    def record_ranges(self, index: int, ranges: list[tuple[int, int]]) -> None:
        self.recorded.append(ranges)


@pytest.mark.parametrize(("step", "due"), [(50, 50), (200, 100)])
def test_ranges_are_recorded_after_a_step_and_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, due: int
) -> None:
    now = [1000.0]
    synced: list[int] = []
    monkeypatch.setattr(resume, "sync_file", synced.append)
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    part = create_part(tmp_path / "out", 1000)
    journal = Recorder()
    sizes = Sizes(range_step=step, range_pause=0.25)
    ranges = CompletedRanges(cast("ResumeJournal", journal), 0, part, sizes)
    now[0] += 5
    ranges.tick()
    assert journal.recorded == []  # nothing was written
    now[0] = 1000.25
    ranges.on_written(0, due - 1)
    ranges.tick()
    assert journal.recorded == []
    ranges.on_written(due - 1, 1)
    ranges.on_written(500, 5)
    now[0] = 1000.24
    ranges.tick()
    assert journal.recorded == []
    now[0] = 1000.25
    ranges.tick()
    assert journal.recorded == [[(0, due), (500, 505)]]
    assert synced == [part.fd]
    ranges.on_written(505, 1)
    now[0] = 1002.24
    ranges.tick()
    assert len(journal.recorded) == 1
    now[0] = 1002.25  # two seconds: even a short range
    ranges.tick()
    assert journal.recorded[1:] == [[(505, 506)]]
    ranges.on_written(600, 1)
    ranges.record(durable=True)
    assert (journal.recorded[2:], len(synced)) == ([[(600, 601)]], 2)
    ranges.record()
    assert len(synced) == 2
    part.close()


def test_the_last_recorded_range_is_compared_before_all_are_believed(tmp_path: Path) -> None:
    data = bytes(range(1, 251))
    plan = one_source_plan(tmp_path, data)
    output = plan.outputs[0]
    part = create_part(output.path, len(data))
    os.pwrite(part.fd, data[100:150], 100)
    os.pwrite(part.fd, data[200:210], 200)
    assert believable(part, output, ()) == ()
    assert believable(part, output, [(150, 180), (100, 150)]) == ((100, 180),)
    assert believable(part, output, [(100, 150), (149, 180)]) == ()
    assert believable(part, output, [(0, 5), (100, 150)]) == ((0, 5), (100, 150))
    assert believable(part, output, [(200, 211)]) == ()
    assert believable(part, output, [(199, 210)]) == ()
    part.close()


def test_parts_are_kept_after_signals_and_lost_sources_alone(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"x")
    source = open_local(path)
    assert worth_keeping(KeyboardInterrupt(), [source])
    assert worth_keeping(SourceError("gone"), [source])
    assert worth_keeping(SourceError("gone"), [])
    assert not worth_keeping(ChangedError("changed"), [source])
    assert not worth_keeping(ExecuteError("full"), [source])
    assert not worth_keeping(ValueError(), [source])
    path.write_bytes(b"another")
    assert not worth_keeping(SourceError("gone"), [source])
    remote = SlowSource(b"", fail_at=0)
    assert worth_keeping(SourceError("gone"), [remote])  # a dead server is not asked


def test_an_output_is_streamed_if_any_source_has_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"x" * 100)
    local, remote = open_local(path), SlowSource(b"x" * 100)

    def output(*sources: Source) -> OutputFile:
        copies = tuple(
            Copy(extent=Extent(source=source, offset=0, length=10), offset=10 * at) for at, source in enumerate(sources)
        )
        return OutputFile(path=tmp_path / "out", head=b"", copies=copies, size=100)

    assert not is_streamed(output())
    assert not is_streamed(output(local, local))
    assert is_streamed(output(remote))
    assert is_streamed(output(local, local, remote))
    assert is_streamed(output(remote, local))


def test_a_journal_that_is_removed_takes_the_parts_that_it_names_and_no_others(tmp_path: Path) -> None:
    plan = one_source_plan(tmp_path, b"x" * 100)
    own = plan.outputs[0].path
    sub = tmp_path / "sub"
    sub.mkdir()
    for target in (own, own.parent / "other", own.parent / "third", sub / "far"):
        create_part(target, 5).close()
    header = {
        "version": "gguftool resume 1",
        "fingerprint": "another",
        "sources": [],
        "outputs": [[own.name, 1], ["other", 1], ["sub/far", 1], ["../missing", 1]],
    }
    journal = journal_of(plan)
    journal.record_ranges(0, [(0, 1)])
    journal.close()
    resume_path(plan).write_text(json.dumps(header) + "\n0 1\n")
    remove_resume(plan)
    assert not resume_path(plan).exists()
    left = [helper_path(target, "part").exists() for target in (own, own.parent / "other", own.parent / "third")]
    assert left == [True, False, True]
    assert helper_path(sub / "far", "part").exists()
    remove_resume(plan)
