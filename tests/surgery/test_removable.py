"""Journals of `merge --consume` that are the user's own and valid in themselves, but would lose tensors.

They come from a backup, from a merge of another model, or were edited. Journals that belong to other users are in
storage/execute/test_strangers.py, and what may be removed at all is in storage/execute/test_consume.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gguftool.errors import PlanError
from gguftool.format.header import parse, serialize
from gguftool.format.kv import ValueType, make_kv
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.storage.execute import consume
from gguftool.storage.execute.consume_journal import FreedSource, consume_file
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Copy, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import open_local
from gguftool.surgery.alter.views import plan_views
from gguftool.surgery.inputs import open_inputs
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.removable import _Held
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.faults import helper_path, tree

TENSORS = [b.tensor(f"blk.{number}.ffn_up.weight", "F32", (1024,)) for number in range(4)]
DATA = TENSORS[0].data

Change = Callable[[OutputFile], OutputFile]


class Stop(BaseException):
    """Ends a run as a kill does."""


def make_set(folder: Path, tensors: list[b.Tensor] = TENSORS) -> list[Path]:
    """A set of one tensor a shard behind a shard with the metadata alone."""
    folder.mkdir(exist_ok=True)
    for name, data in b.shard_set("set", [[], *([tensor] for tensor in tensors)]).items():
        (folder / name).write_bytes(data)
    return sorted(folder.glob("set-*"))


def planned(folder: Path) -> Plan:
    request = Request(models=(str(folder / "in"),))
    return plan_merge(open_inputs([str(folder / "in")]), folder / "out.gguf", MergeOptions(consume=request))


def stop_after(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Begin the merge, and end it after `count` removals; return its plan."""
    plan, real, done = planned(folder), consume.free, []

    def free(source: object) -> None:
        if len(done) == count:
            raise Stop
        real(source)  # type: ignore[arg-type]
        done.append(source)

    with monkeypatch.context() as patch:
        patch.setattr(consume, "free", free)
        with pytest.raises(Stop):
            execute(plan, Options())
    return plan


def write_journal(folder: Path, plan: Plan, lines: bytes = b"") -> None:
    """Write the journal of `plan` as a run makes it: private, with a right digest, and these lines at its end."""
    assert plan.consume is not None
    path = helper_path(folder / "out.gguf", "consume")
    path.unlink(missing_ok=True)
    path.write_bytes(consume_file(plan, plan.consume).head + lines)
    path.chmod(0o600)


def lines_of(folder: Path) -> bytes:
    """The records at the end of the journal: which sources are copied."""
    whole = helper_path(folder / "out.gguf", "consume").read_bytes()
    return whole[whole.index(b"copied 0") :]


def resume(folder: Path, *more: str) -> tuple[int, str]:
    done = run_gguftool("merge", folder / "in", "-o", folder / "out.gguf", "--consume", "--yes", *more)
    return done.returncode, one_error_line(done.stderr.splitlines()[-1]) if done.returncode else ""


def assert_nothing_happens(folder: Path, *more: str) -> str:
    before = tree(folder)
    code, said = resume(folder, *more)
    assert code == 2
    assert tree(folder) == before
    return said


# --- while all inputs are there --------------------------------------------------------------------------------------


def without_data(output: OutputFile) -> OutputFile:
    """Zeros instead of tensors."""
    return replace(output, copies=(), marks=None)


def without_head(output: OutputFile) -> OutputFile:
    return replace(output, head=b"", copies=(), size=4096, marks=None)


def with_other_names(output: OutputFile) -> OutputFile:
    """The head names tensors that the inputs do not have, at the places of theirs."""
    return replace(output, head=output.head.replace(b"ffn_up", b"ffn_no"), marks=None)


def exchanged(output: OutputFile) -> OutputFile:
    """The data of two tensors of equal size exchanged."""
    first, second, *rest = output.copies
    swapped = (replace(first, extent=second.extent), replace(second, extent=first.extent), *rest)
    return replace(output, copies=swapped)


def with_other_metadata(output: OutputFile) -> OutputFile:
    """A head as long as before, with another template."""
    header = parse(output.head, output.size)
    name = make_kv("general.name", ValueType.STRING, "x")
    kvs = tuple(name if kv.key == "general.name" else kv for kv in header.kvs)
    if kvs == header.kvs:
        kvs = (*kvs, name)
    head = serialize(replace(header, kvs=kvs))
    moved = len(head) - len(output.head)
    copies = tuple(replace(copy, offset=copy.offset + moved) for copy in output.copies)
    return replace(output, head=head, copies=copies, size=output.size + moved, marks=None)


CHANGES = [without_data, without_head, with_other_names, exchanged, with_other_metadata]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_journal_frees_nothing_before_the_first_removal(change: Change, copied: bool, tmp_path: Path) -> None:
    make_set(tmp_path / "in")
    plan = planned(tmp_path)
    changed = replace(plan, outputs=tuple(map(change, plan.outputs)))
    lines = b"".join(b"copied %d %s\n" % (number, b"0" * 64) for number in range(5)) if copied else b""
    write_journal(tmp_path, changed, lines)
    said = assert_nothing_happens(tmp_path)
    assert "not the journal of this merge" in said
    assert "out.gguf" in said


@pytest.mark.parametrize("change", CHANGES)
def test_the_way_out_of_the_error_works(change: Change, tmp_path: Path) -> None:
    paths = make_set(tmp_path / "in")
    plan = planned(tmp_path)
    write_journal(tmp_path, replace(plan, outputs=tuple(map(change, plan.outputs))))
    assert_nothing_happens(tmp_path)
    helper_path(tmp_path / "out.gguf", "consume").rename(tmp_path / "aside")
    assert resume(tmp_path) == (0, "")
    assert all(tensor.data in (tmp_path / "out.gguf").read_bytes() for tensor in TENSORS)
    assert not any(path.exists() for path in paths)


def test_a_journal_frees_no_file_that_the_same_command_would_keep(tmp_path: Path) -> None:
    paths = make_set(tmp_path / "in")
    plan = planned(tmp_path)
    os.link(paths[2], tmp_path / "second-name")
    os.unlink(tmp_path / "second-name")
    write_journal(tmp_path, plan)
    os.link(paths[2], tmp_path / "second-name")
    assert "must stay" in assert_nothing_happens(tmp_path)


def test_a_journal_of_another_model_from_a_backup_frees_nothing(tmp_path: Path) -> None:
    """The files under the old names hold other tensors; their sizes and times are the same."""
    paths = make_set(tmp_path / "in")
    old = planned(tmp_path)
    others = [b.tensor(f"blk.{number}.ffn_no.weight", "F32", (1024,)) for number in range(4)]
    for path in paths:
        path.unlink()
    make_set(tmp_path / "in", others)
    at_hand = {path: open_local(path) for path in paths}
    write_journal(tmp_path, with_sources(old, lambda name: at_hand[Path(name)]))
    assert_nothing_happens(tmp_path)


def with_sources(plan: Plan, choose: Callable[[str], object]) -> Plan:
    """`plan` with other sources under the same names."""
    assert plan.consume is not None
    steps = tuple(replace(step, source=choose(step.source.name)) for step in plan.consume.steps)

    def moved(copy: Copy) -> Copy:
        return replace(copy, extent=replace(copy.extent, source=choose(copy.extent.source.name)))

    outputs = tuple(replace(out, copies=tuple(map(moved, out.copies))) for out in plan.outputs)
    return replace(plan, outputs=outputs, consume=replace(plan.consume, steps=steps))


# --- when inputs are gone --------------------------------------------------------------------------------------------


def dropped(plan: Plan, number: int) -> Plan:
    """Without the bytes of one source, which is still to be removed."""
    assert plan.consume is not None
    source = plan.consume.steps[number].source
    (output,) = plan.outputs
    copies = tuple(copy for copy in output.copies if copy.extent.source != source)
    assert len(copies) < len(output.copies)
    return replace(plan, outputs=(replace(output, copies=copies),))


def halved(plan: Plan, number: int) -> Plan:
    """With only the first half of a tensor."""
    (output,) = plan.outputs
    copy = output.copies[number]
    cut = replace(copy, extent=replace(copy.extent, length=copy.extent.length // 2))
    copies = (*output.copies[:number], cut, *output.copies[number + 1 :])
    return replace(plan, outputs=(replace(output, copies=copies),))


def shifted(plan: Plan, number: int) -> Plan:
    """With a tensor read four bytes too early."""
    (output,) = plan.outputs
    copy = output.copies[number]
    cut = replace(copy, extent=replace(copy.extent, offset=copy.extent.offset - 4))
    copies = (*output.copies[:number], cut, *output.copies[number + 1 :])
    return replace(plan, outputs=(replace(output, copies=copies),))


@pytest.mark.parametrize("gone", [1, 2])
@pytest.mark.parametrize("change", [dropped, halved, shifted])
def test_an_edited_journal_frees_nothing_more_after_a_removal(
    change: Callable[[Plan, int], Plan], gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_set(tmp_path / "in")
    plan = stop_after(tmp_path, gone, monkeypatch)
    lines = lines_of(tmp_path)
    whole = helper_path(tmp_path / "out.gguf", "consume").read_bytes()
    write_journal(tmp_path, change(plan, 3), lines)
    said = assert_nothing_happens(tmp_path)
    assert "blk.3.ffn_up.weight" in said
    assert paths[4].name in said
    helper_path(tmp_path / "out.gguf", "consume").write_bytes(whole)
    assert resume(tmp_path) == (0, "")
    assert all(tensor.data in (tmp_path / "out.gguf").read_bytes() for tensor in TENSORS)


def test_metadata_that_no_other_input_has_are_not_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard 1 goes last: after the others are gone it is the only one with the metadata."""
    paths = make_set(tmp_path / "in")
    plan = stop_after(tmp_path, 4, monkeypatch)
    assert [path for path in paths if path.exists()] == [paths[0]]
    lines = lines_of(tmp_path)
    part = helper_path(tmp_path / "out.gguf", "only-copy")
    good = part.read_bytes()
    (output,) = plan.outputs
    (changed,) = (with_other_metadata(output),)
    write_journal(tmp_path, replace(plan, outputs=(changed,)), lines)
    part.write_bytes(changed.head + good[len(output.head) :])  # the part file fits the journal
    assert "metadata is not in the output" in assert_nothing_happens(tmp_path)
    part.write_bytes(good)
    write_journal(tmp_path, plan, lines)
    assert resume(tmp_path) == (0, "")


def test_inputs_that_contradict_the_head_are_not_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two whole files of different tensors: neither is known to give the metadata once one is gone."""
    (tmp_path / "in").mkdir()
    tensors = b.llama_tensors()
    for number, part in enumerate((tensors[:3], tensors[3:]), 1):
        name = b.shard_name("set", number, 2)
        kvs = (*b.llama_kvs(), *b.split_kvs(number, 2, len(tensors)))
        (tmp_path / "in" / name).write_bytes(b.gguf(kvs, part))
    plan = stop_after(tmp_path, 1, monkeypatch)
    (output,) = plan.outputs
    header = parse(output.head, output.size)
    at = next(index for index, kv in enumerate(header.kvs) if kv.key == "llama.block_count")
    wrong = replace(header.kvs[at], raw=b"\x02" + bytes(header.kvs[at].raw[1:]))
    head = serialize(replace(header, kvs=(*header.kvs[:at], wrong, *header.kvs[at + 1 :])))
    write_journal(tmp_path, replace(plan, outputs=(replace(output, head=head),)), lines_of(tmp_path))
    assert "llama.block_count differs in the output" in assert_nothing_happens(tmp_path)


@pytest.mark.parametrize("more", [(), ("--no-resume",)])
def test_a_part_file_of_another_journal_stays_as_it_is(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal of a later merge beside the only copy of an earlier one: all of its own sources are still there."""
    make_set(tmp_path / "in")
    stop_after(tmp_path, 2, monkeypatch)
    part = helper_path(tmp_path / "out.gguf", "only-copy")
    shutil.rmtree(tmp_path / "in")
    make_set(tmp_path / "in", [b.tensor(f"blk.{number}.ffn_down.weight", "F32", (1024,)) for number in range(4)])
    write_journal(tmp_path, planned(tmp_path))
    said = assert_nothing_happens(tmp_path, *more)
    assert part.name in said
    assert DATA in part.read_bytes()


def test_one_source_or_output_twice_is_no_journal(tmp_path: Path) -> None:
    make_set(tmp_path / "in")
    plan = planned(tmp_path)
    assert plan.consume is not None
    twice = (*plan.consume.steps, Step(source=plan.consume.steps[0].source, frees=False))
    for changed in (
        replace(plan, outputs=plan.outputs * 2),
        replace(plan, consume=replace(plan.consume, steps=twice)),
    ):
        write_journal(tmp_path, changed)
        assert "damaged" in assert_nothing_happens(tmp_path)


def test_a_journal_that_claims_to_be_published_does_not_end_the_merge(tmp_path: Path) -> None:
    """The old output has the inode and the size that the journal names, and other bytes."""
    paths = make_set(tmp_path / "in")
    plan = planned(tmp_path)
    old = tmp_path / "out.gguf"
    old.write_bytes(bytes(plan.outputs[0].size))
    write_journal(tmp_path, plan, b"complete %d\n" % old.stat().st_ino)
    code, said = resume(tmp_path)
    assert code == 2
    assert "--force replaces it" in said
    assert all(path.exists() for path in paths)
    assert not any(old.read_bytes())


def test_published_with_another_head_is_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path / "in")
    stop_after(tmp_path, 2, monkeypatch)
    plan = planned_from(tmp_path)
    with monkeypatch.context() as patch:
        from gguftool.storage.execute import consume_state

        patch.setattr(consume_state.Consuming, "remove", lambda run: None)
        execute(plan, Options())
    out = tmp_path / "out.gguf"
    with open(out, "r+b") as file:
        file.write(b"x")
    assert "was complete" in assert_nothing_happens(tmp_path)


def planned_from(folder: Path) -> Plan:
    from gguftool.surgery.removable import find_begun

    begun = find_begun(folder / "out.gguf", Request(models=(str(folder / "in"),)), lambda: planned(folder))
    assert begun is not None
    assert any(isinstance(source, FreedSource) for source in begun.inputs)
    return begun


# --- tensors that are made of parts of others ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [range(3), [3, 2, 1, 0]], ids=["the first rows", "rows in another order"])
def test_a_file_stays_whose_tensors_are_only_used_in_part(rows: list[int], tmp_path: Path) -> None:
    path = tmp_path / "in.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), [b.tensor("a.weight", "F32", (64, 4)), b.tensor("b.weight", "F32", (64,))]))
    model = open_model(path)
    model = replace(model, tensors={**model.tensors, "a.weight": model.tensors["a.weight"].take(1, rows)})
    with pytest.raises(PlanError, match="cannot remove any") as error:
        plan_merge([model], tmp_path / "out.gguf", MergeOptions(consume=Request()))
    assert "only a part of " in error.value.problems[0]


def test_a_journal_may_fill_a_tensor_piece_by_piece_but_not_with_a_gap(tmp_path: Path) -> None:
    """What fills a tensor may be several copies; what a source loses is judged by whole tensors all the same."""
    path = tmp_path / "in.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), [b.tensor("a.weight", "F32", (64, 4))]))
    model = open_model(path)
    view = model.tensors["a.weight"].take(1, [3, 2, 1, 0])
    output = plan_views(model.kvs, [view], tmp_path / "out.gguf", like=model).outputs[0]
    held = _Held.of(output)
    info = held.infos["a.weight"]
    assert held.is_filled(info)
    assert not held.holds(model.tensors["a.weight"])
    for missing in range(4):
        copies = tuple(copy for index, copy in enumerate(output.copies) if index != missing)
        assert not _Held.of(replace(output, copies=copies)).is_filled(info)
