"""A run of a plan: what is written together, what is made durable at once, and what publishing and errors leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gguftool.errors import SourceError
from gguftool.record import replace as changed
from gguftool.storage.execute import run as module
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import create_part
from gguftool.storage.execute.run import Run
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.sidecars import helper_path
from tests.support.faults import tree


def plan_of(folder: Path, *sizes: int) -> Plan:
    outputs = tuple(
        OutputFile(path=folder / f"o{number:02}", head=bytes([number + 1]) * size, copies=(), size=size)
        for number, size in enumerate(sizes)
    )
    return Plan(outputs=outputs, inputs=())


def wanted(plan: Plan) -> dict[str, bytes]:
    return {output.path.name: output.head for output in plan.outputs}


def carry_out(plan: Plan, options: Options) -> None:
    with Run(plan, options) as run:
        run.begin()
        run.write()
        run.publish()


def test_small_outputs_are_written_eight_at_a_time_and_the_first_alone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = module.write_outputs, []

    def write(parts: Sequence[tuple[object, OutputFile]], *args: object, **options: object) -> object:
        batches.append([int(output.path.name[1:]) for _, output in parts])
        return real(parts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_outputs", write)
    monkeypatch.setattr(module, "_SMALL", 100)
    plan = plan_of(tmp_path, 50, *[100] * 9, 101, *[1] * 2)
    carry_out(plan, Options())
    assert batches == [[1, 2, 3, 4, 5, 6, 7, 8], [9], [10], [11, 12], [0]]
    assert tree(tmp_path) == wanted(plan)


def test_outputs_longer_than_a_step_are_no_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, batches = module.write_outputs, []

    def write(parts: Sequence[tuple[object, OutputFile]], *args: object, **options: object) -> object:
        batches.append([int(output.path.name[1:]) for _, output in parts])
        return real(parts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_outputs", write)
    plan = plan_of(tmp_path, 5, 10, 10, 11, 10)
    carry_out(plan, Options(checkpoint=10))
    assert [batch for number, batch in enumerate(batches) if batch not in batches[:number]] == [[1, 2], [3], [4], [0]]
    assert tree(tmp_path) == wanted(plan)


@pytest.mark.parametrize(("count", "sync", "expected"), [(8, True, 0), (9, True, 1), (9, False, 0)])
def test_more_than_eight_outputs_are_made_durable_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, sync: bool, expected: int
) -> None:
    asked: list[list[Path]] = []
    complete: list[bool] = []
    singly: list[Path] = []
    plan = plan_of(tmp_path, *[1000] * count)

    def sync_data() -> None:
        complete.append(all(helper_path(output.path, "part").read_bytes() == output.head for output in plan.outputs))

    monkeypatch.setattr(module, "bulk_sync", lambda folders, cleanup: asked.append(folders) or sync_data)
    monkeypatch.setattr(module, "sync_parts", lambda parts: singly.extend(part.target for part, _ in parts))
    carry_out(plan, Options(sync=sync))
    assert asked == [[tmp_path] * count] * expected
    assert complete == [True] * expected, "once, when every byte is written"
    assert sorted(singly) == (sorted(output.path for output in plan.outputs) if sync and not expected else [])
    assert tree(tmp_path) == wanted(plan)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("how", ["force", "replaces", "new"])
def test_old_files_are_replaced_by_force_or_by_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, how: str
) -> None:
    plan = plan_of(tmp_path / "out", *[10] * count)
    (tmp_path / "out").mkdir()
    if how == "replaces":
        plan.outputs[-1].path.write_bytes(b"old")
        last = changed(plan.outputs[-1], replaces=open_local(plan.outputs[-1].path))
        plan = changed(plan, outputs=(*plan.outputs[:-1], last))
    given: list[tuple[bool, bool, bool]] = []
    resume = helper_path(plan.outputs[0].path, "resume")
    for name in ("publish_one", "publish_set"):
        monkeypatch.setattr(
            module,
            name,
            lambda *_, replace, sync, private=False: given.append((replace, sync, resume.exists())),
        )
    told: list[int] = []
    options = Options(force=how == "force", checkpoint=1, publishing=lambda: told.append(len(given)))
    carry_out(plan, options)
    # The journal of a single output goes before: a later run would trust it. Publishing a set removes its own.
    assert given == [(how != "new", True, count > 1)]
    assert told == [0]


def test_what_is_not_begun_cannot_be_written(tmp_path: Path) -> None:
    with Run(plan_of(tmp_path, 10), Options()) as run:
        assert not run.is_begun
        with pytest.raises(RuntimeError, match="comes first"):
            run.write()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SourceError("ends early"), OSError(28, "full")])
@pytest.mark.parametrize("sync", [True, False])
def test_parts_stay_for_a_later_run_after_a_signal_or_a_lost_source(
    tmp_path: Path, error: BaseException, sync: bool
) -> None:
    plan = plan_of(tmp_path, 10, 10, 10)
    notes: list[str] = []
    with Run(plan, Options(checkpoint=1, sync=sync, note=notes.append)) as run:
        run.begin()
        run.write()
        run.abandon(error)
    kept = sync and isinstance(error, (KeyboardInterrupt, SourceError))
    assert bool(tree(tmp_path)) == kept
    told = ["is kept" if kept else "nothing to resume"] if kept or isinstance(error, KeyboardInterrupt) else []
    assert len(notes) == len(told)
    assert all(words in note for words, note in zip(told, notes, strict=True))


def test_parts_of_an_earlier_run_are_not_this_runs_until_it_begins(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 10, 10, 10)
    with Run(plan, Options(checkpoint=1)) as run:
        run.begin()
        run.write()
        run.abandon(KeyboardInterrupt())
    with Run(plan, Options(checkpoint=1)) as run:
        assert not run.is_begun
        run.begin()
        assert run.is_begun
        run.write()
        run.publish()
    assert tree(tmp_path) == wanted(plan)


@pytest.mark.parametrize("old", [True, False])
def test_a_part_of_another_runs_journal_is_not_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    plan = plan_of(tmp_path, 10, 10)
    if old:
        create_part(plan.outputs[0].path, 10).close()
    monkeypatch.setattr(module, "read_resume", lambda plan: 1 / 0)
    with Run(plan, Options()) as run:
        with pytest.raises(ZeroDivisionError):
            run.begin()
        assert run.is_begun == (not old)


def test_the_first_part_is_empty_until_the_journal_is_read(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 10, 10)
    part = helper_path(plan.outputs[0].path, "part")
    with Run(plan, Options()) as run:
        assert part.stat().st_size == 0
        run.begin()
        assert part.stat().st_size == 10


def test_parts_that_an_earlier_run_left_go_too_when_nothing_can_be_kept(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 10, 10, 10)
    create_part(plan.outputs[2].path, 10).close()
    with Run(plan, Options()) as run:
        run.begin()
        run.abandon(OSError(28, "full"))
    assert tree(tmp_path) == {}


def test_a_private_output_is_published_as_one(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 10)
    carry_out(plan, Options(private=True))
    assert plan.outputs[0].path.stat().st_mode & 0o777 == 0o600
