"""Every system call of every writer is failed, and every writer is killed at every one of its calls.

The promise: exit 0 means that the named output is complete; anything else means that it does not exist or is the old
one; inputs never change. See docs/safety.md.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError, GGUFToolError, SourceError
from gguftool.model.opening import open_model
from gguftool.model.recovery import recover_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Plan
from tests.support.consume_cases import CONSUME_CASES, ConsumeCase, assert_nothing_is_lost
from tests.support.syscalls import FAULTS, Injector, count_calls, every_fault, killed_at
from tests.support.writer_cases import CASES, Case, listing, options_of, run, set_up, visible

pytestmark = pytest.mark.slow

COUNTS: collections.Counter[str] = collections.Counter()
INJECTED: set[str] = set()
MODEL_OF = {"m.gguf", "set-00001-of-00003.gguf"}
forks = pytest.mark.skipif(sys.platform == "win32", reason="forks: tests/windows kills whole processes instead")
in_every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of runs, and none has to outlive a power cut."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("faults") / "run"
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="gguftool-faults-") as made:
        yield Path(made) / "run"


@pytest.fixture(scope="module", autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\ninjected: " + ", ".join(f"{count:,} {what}" for what, count in sorted(COUNTS.items())))


def after_an_unbroken_run(case: Case, folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return all files that a run without faults leaves, and the calls that it makes."""
    set_up(case, folder)
    plan = case.plan(folder)
    calls = count_calls(lambda: execute_plan(case, plan))
    return listing(folder), calls


def execute_plan(case: Case, plan: Plan) -> None:
    execute(plan, options_of(case))


def recover_in_place(case: Case, folder: Path) -> bool:
    """Recover as a user would; return whether there was something to recover."""
    names = [name for name in case.files if name in MODEL_OF]
    return any(recover_model(str(folder / name)) for name in names)


def run_again(case: Case, folder: Path, before: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Run once more, without a fault, whatever the broken run left; the outcome must be the unbroken one."""
    if case.changes_inputs:
        recover_in_place(case, folder)
        assert visible(listing(folder)) in (before, wanted)
        if visible(listing(folder)) == wanted:
            assert listing(folder) == wanted
            return
    if not case.force and any(name not in before for name in visible(listing(folder))):
        with contextlib.suppress(ExecuteError):  # complete, or another shard of a set that is finished now
            run(case, folder)
        assert visible(listing(folder)) == wanted
        return
    run(case, folder)
    assert listing(folder) == wanted


# --- failing calls ---------------------------------------------------------------------------------------------------


@in_every_case
def test_whatever_call_fails_the_output_is_right_or_the_old_one(case: Case, folder: Path) -> None:
    wanted, calls = after_an_unbroken_run(case, folder)
    before = {**case.files, **case.old}
    assert wanted != before
    for injector in every_fault(calls):
        where = f"{case}: {injector}"
        set_up(case, folder)
        said = error_of_run(case, folder, injector, where)
        if not injector.injected:
            continue
        COUNTS["faults"] += 1
        INJECTED.add(injector.name)
        now = visible(listing(folder))
        if not said or "but not durably" in said:
            assert now == wanted, where
        elif "--recover" in said or refused_by_readers(case, folder):
            assert_the_way_out_works(case, folder, before, wanted)
        else:
            assert now == before, where
            run_again(case, folder, before, wanted)


def assert_the_way_out_works(case: Case, folder: Path, before: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Where the fault hit undoing too: the gate has no name, readers refuse, and --recover or the next run finish."""
    if case.changes_inputs:
        assert refused_by_readers(case, folder)
        assert recover_in_place(case, folder)
        assert visible(listing(folder)) in (before, wanted)
    else:
        assert gate_of(case, before) not in listing(folder)
        run_again(case, folder, before, wanted)


def gate_of(case: Case, files: dict[str, bytes]) -> str | None:
    """The shard among the outputs from which engines start."""
    return next((name for name in sorted(files.keys() - case.files.keys()) if "-00001-of-" in name), None)


def error_of_run(case: Case, folder: Path, injector: Injector, where: str) -> str:
    """Run with a fault; return the error's message, empty where there was none."""
    plan = case.plan(folder)
    said = ""
    held = open_files()
    try:
        with injector.active():
            execute_plan(case, plan)
    except GGUFToolError as error:
        said = str(error)
    except BaseException as error:
        raise AssertionError(f"{where}: {error!r} is no error for a user") from error
    assert "Errno" not in said, where
    assert open_files() == held, f"{where}: leaves a file open"
    return said


def open_files() -> int:
    """The number of descriptors of this process, where the system lists them."""
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def refused_by_readers(case: Case, folder: Path) -> bool:
    """Whether what a failed change in place left is refused by readers, with the command that puts it right."""
    name = next((name for name in case.files if name in MODEL_OF), None)
    if not case.changes_inputs or name is None:
        return False
    try:
        open_model(folder / name)
    except SourceError as error:
        return "--recover" in str(error)
    return False


# --- inputs that are removed as they are merged ----------------------------------------------------------------------

consuming = pytest.mark.parametrize("case", CONSUME_CASES, ids=str)


def calls_of(case: ConsumeCase, folder: Path) -> tuple[Plan, list[str]]:
    """Return the plan, and the calls of a run without faults."""
    case.set_up(folder)
    plan = case.plan_anew(folder)
    return plan, count_calls(lambda: execute(plan, Options(force=case.force)))


def without_empty_journals(folder: Path) -> dict[str, bytes]:
    """All files, but for the set journal that could not be removed and was emptied."""
    return {name: data for name, data in listing(folder).items() if data or not name.endswith(".set")}


@consuming
def test_whatever_call_fails_while_inputs_are_removed_no_tensor_is_lost(case: ConsumeCase, folder: Path) -> None:
    wanted = case.wanted(folder)
    plan, calls = calls_of(case, folder)
    assert listing(folder) == wanted
    for injector in every_fault(calls):
        case.set_up(folder)
        broken = case.plan_anew(folder)
        said = ""
        try:
            with injector.active():
                execute(broken, Options(force=case.force))
        except GGUFToolError as error:
            said = str(error)
        if not injector.injected:
            continue
        where = f"{case}: {injector}: {said}"
        COUNTS["faults"] += 1
        assert "Errno" not in said, where
        assert_nothing_is_lost(case, folder, plan, where)
        if not said:
            assert visible(listing(folder)) == wanted, where
        if said or case.is_begun(folder):
            case.run(folder)
        assert without_empty_journals(folder) == wanted, where


@consuming
def test_killed_at_any_call_while_inputs_are_removed_the_same_command_goes_on(case: ConsumeCase, folder: Path) -> None:
    wanted = case.wanted(folder)
    plan, calls = calls_of(case, folder)
    for at in range(len(calls)):
        case.set_up(folder)
        broken = case.plan_anew(folder)
        if killed_at(at, lambda broken=broken: execute(broken, Options(force=case.force))):  # type: ignore[misc]
            COUNTS["kills"] += 1
            assert_nothing_is_lost(case, folder, plan, f"{case}, killed at {at}")
            if visible(listing(folder)) != wanted or case.is_begun(folder):
                case.run(folder)
        assert listing(folder) == wanted, f"{case}, killed at {at}"


def test_at_least_a_thousand_faults_were_injected() -> None:
    assert COUNTS["faults"] >= 1000, "run the whole file: the count is over all of its tests"


def test_every_kind_of_call_was_failed() -> None:
    """Those of `FAULTS` that no writer makes here: other ways of the same, and calls that only other systems need."""
    elsewhere = {
        "copy_file_range",
        "sendfile",
        "posix_fallocate",
        "pwritev",
        "fdatasync",
        "listdir",
        "scandir",
        "pread",
    }
    ours = {name for name in FAULTS if hasattr(os, name) or name == "ioctl"}
    assert ours - INJECTED <= elsewhere | {"read", "rmdir", "mkdir"}, "run the whole file"
    assert {"ioctl", "lseek", "fstatvfs", "preadv", "pwrite", "fsync", "link", "replace"} <= INJECTED


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@forks
@in_every_case
def test_killed_at_any_call_the_next_run_makes_it_right(case: Case, folder: Path) -> None:
    wanted, calls = after_an_unbroken_run(case, folder)
    before = {**case.files, **case.old}
    for at in range(len(calls)):
        set_up(case, folder)
        plan = case.plan(folder)
        if not killed_at(at, lambda plan=plan: execute_plan(case, plan)):  # type: ignore[misc]
            assert visible(listing(folder)) == wanted  # with threads, a run may take fewer calls
            continue
        COUNTS["kills"] += 1
        assert_nothing_wrong_is_named(case, folder, before, wanted)
        run_again(case, folder, before, wanted)


def assert_nothing_wrong_is_named(case: Case, folder: Path, before: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """After a crash: each output is absent, old or new, never mixed with shard 1 in place, and inputs are whole."""
    now = visible(listing(folder))
    if case.changes_inputs:
        return  # what is there is refused by readers or right, which `run_again` finds out
    for name, data in case.files.items():
        assert now[name] == data
    for name in now.keys() - case.files.keys():
        assert now[name] in (before.get(name), wanted.get(name)), name
    gate = gate_of(case, wanted)
    if gate is not None and gate in now:
        assert now in (before, wanted)
