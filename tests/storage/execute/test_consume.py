"""`merge --consume`: inputs go as they are merged, no tensor's only copy is ever lost, and the same command goes on.

Every call failed, and a kill at every call, are in faults/test_every_call.py; the order of calls, full disks and
strangers here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError, GGUFToolError, PlanError, SourceError
from gguftool.storage.execute import consume, consume_state, executor
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import lock
from gguftool.storage.plan import Plan, Request
from gguftool.surgery.inputs import open_inputs
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.removable import find_begun, why_kept
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.consume_cases import CONSUME_CASES, assert_nothing_is_lost
from tests.support.faults import helper_path, small_disk, tree
from tests.support.mix_models import output_options
from tests.support.mounts import mounted, needs_root
from tests.support.strace import events, needs_strace, traced

ONE, _, SET_CASE, MIX = CONSUME_CASES
MIB = 1 << 20


def shards(folder: Path, n: int = 4, floats: int = 1024) -> list[Path]:
    """A set of `n` shards of one tensor each, and the metadata alone in front."""
    tensors = [b.tensor(f"blk.{k}.ffn_up.weight", "F32", (floats,)) for k in range(n)]
    folder.mkdir(exist_ok=True, parents=True)
    paths = []
    for name, data in b.shard_set("set", [[], *([tensor] for tensor in tensors)]).items():
        (folder / name).write_bytes(data)
        paths.append(folder / name)
    return paths


class Stop(BaseException):
    """Ends a run as a kill does, but that the test goes on."""


@contextmanager
def stopped_after(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End a run when it has removed `count` files."""
    real, done = consume.free, []

    def free(source: object) -> None:
        real(source)  # type: ignore[arg-type]
        done.append(source)
        if len(done) == count:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(consume, "free", free)
        yield


def plan(models: list[Path], output: Path, **options: object) -> Plan:
    request = Request(models=tuple(str(path) for path in models))
    named = [str(path) for path in models]
    return plan_merge(
        open_inputs(named), output, MergeOptions(consume=request, output=output_options(options), **options)
    )  # type: ignore[arg-type]


def half_done(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> tuple[bytes, list[Path], list[str]]:
    """Run `merge --consume` to where `count` files are gone; return what it will make, the inputs, and the command."""
    paths = shards(folder / "in")
    assert run_gguftool("merge", folder / "in", "-o", folder / "plain.gguf").returncode == 0
    wanted = (folder / "plain.gguf").read_bytes()
    (folder / "plain.gguf").unlink()
    with stopped_after(count, monkeypatch), pytest.raises(Stop):
        executor.execute(from_command(folder), Options())
    assert sum(path.exists() for path in paths) == len(paths) - count
    return wanted, paths, ["merge", str(folder / "in"), "-o", str(folder / "out.gguf"), "--consume", "--yes"]


def from_command(folder: Path) -> Plan:
    return plan([folder / "in"], folder / "out.gguf")


def begun_at(folder: Path) -> Plan | None:
    request = Request(models=(str(folder / "in"),))
    return find_begun(folder / "out.gguf", request, lambda: from_command(folder))


def state(folder: Path) -> dict[str, bytes]:
    return tree(folder)


# --- what the command says -------------------------------------------------------------------------------------------


def test_inputs_are_gone_and_the_output_is_that_of_a_plain_merge(tmp_path: Path) -> None:
    paths = shards(tmp_path / "in")
    (tmp_path / "in" / "tensors.txt").write_text("stays")
    assert run_gguftool("merge", tmp_path / "in", "-o", tmp_path / "plain.gguf").returncode == 0
    done = run_gguftool("merge", tmp_path / "in", "-o", tmp_path / "out.gguf", "--consume", "--yes")
    assert done.returncode == 0, done.stderr
    assert b"removed 5 source file(s)" in done.stdout
    assert not any(path.exists() for path in paths)
    assert sorted(os.listdir(tmp_path)) == ["in", "out.gguf", "plain.gguf"]
    assert os.listdir(tmp_path / "in") == ["tensors.txt"]
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize("interrupted", [False, True])
def test_hashes_are_those_of_the_output_also_when_it_goes_on(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if interrupted:
        _, _, command = half_done(tmp_path, monkeypatch)
    else:
        shards(tmp_path / "in")
        command = ["merge", str(tmp_path / "in"), "-o", str(tmp_path / "out.gguf"), "--consume", "--yes"]
    done = run_gguftool(*command, "--hash", "--json")
    assert done.returncode == 0, done.stderr
    digests = json.loads(done.stdout)["digests"]
    hashed = run_gguftool("hash", tmp_path / "out.gguf").stdout.decode().split()
    assert [hashed[1 + 3 * index] for index in range(len(digests["parts"]))] == [
        part["sha256"] for part in digests["parts"]
    ]
    assert len(digests["parts"]) == 4
    assert digests["whole"] == hashed[-2]
    assert digests["files"][0]["sha256"] == hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--consume"], "--yes allows it"),
        (["--consume", "--yes", "--no-sync"], "durable"),
        (["--yes"], "--yes belongs to --consume"),
    ],
)
def test_it_is_refused_without_a_yes_and_without_sync(more: list[str], said: str, tmp_path: Path) -> None:
    shards(tmp_path / "in")
    before = state(tmp_path)
    done = run_gguftool("merge", tmp_path / "in", "-o", tmp_path / "out.gguf", *more, stdin=-3)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.decode().split())
    assert state(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal of POSIX")
def test_a_terminal_is_asked(tmp_path: Path) -> None:
    import pty

    paths = shards(tmp_path / "in")
    ours, theirs = pty.openpty()
    try:
        for answer, code in ((b"\n", 2), (b"n\n", 2), (b"y\n", 0)):
            os.write(ours, answer)
            done = run_gguftool("merge", tmp_path / "in", "-o", tmp_path / "out.gguf", "--consume", stdin=theirs)
            assert done.returncode == code, done.stderr
            assert b"Remove 5 input file(s)" in done.stderr
            assert all(path.exists() for path in paths) == bool(code)
            assert (tmp_path / "out.gguf").exists() == (not code)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_dry_run_lists_what_would_go_and_what_stays(tmp_path: Path) -> None:
    paths = shards(tmp_path / "in")
    os.link(paths[2], tmp_path / "second-name")
    before = state(tmp_path)
    command = ["merge", tmp_path / "in", "-o", tmp_path / "out.gguf", "--consume", "--dry-run"]
    done = run_gguftool(*command)
    assert done.returncode == 0, done.stderr
    assert b"would remove 4 source(s)" in done.stdout
    assert f"not removed, several names (hard links): {paths[2]}".encode() in done.stderr
    freed = json.loads(run_gguftool(*command, "--json").stdout)["freed"]
    assert sorted(use["name"] for use in freed) == [str(path) for path in paths if path != paths[2]]
    assert state(tmp_path) == before


def test_what_is_linked_elsewhere_used_in_part_or_only_read_stays(tmp_path: Path) -> None:
    paths = shards(tmp_path / "in")
    os.link(paths[1], tmp_path / "second-name")
    shutil.move(paths[2], tmp_path / "elsewhere.gguf")
    paths[2].symlink_to(tmp_path / "elsewhere.gguf")
    donor = tmp_path / "kv.gguf"
    donor.write_bytes(b.gguf(b.llama_kvs()))
    arguments = ["merge", tmp_path / "in", "--kv-from", donor, "-o", tmp_path / "out.gguf", "--consume", "--yes"]
    done = run_gguftool(*arguments)
    assert done.returncode == 0, done.stderr
    said = done.stderr.decode()
    for path, why in (
        (paths[1], "hard links"),
        (paths[2], "symbolic link"),
        (paths[0], "metadata is not in the output"),
    ):
        assert path.exists(), why
        assert any(why in line and str(path) in line for line in said.splitlines()), said
    assert donor.exists()
    assert not paths[3].exists()
    assert not paths[4].exists()


def test_a_file_under_two_names_stays(tmp_path: Path) -> None:
    """Its tensors would be read by the second name after the first is gone."""
    paths = shards(tmp_path / "in", 2)
    source = open_inputs([str(tmp_path / "in")])[0].model.files[1].source
    other = type(source)(path=tmp_path / "bind" / "x.gguf", file_stamp=source.file_stamp)  # as through a bind mount
    assert why_kept(source, [source, other]) == "given under several names"
    assert why_kept(source, [source]) is None
    assert paths[1].exists()


def test_where_nothing_can_go_it_is_an_error_that_says_why(tmp_path: Path) -> None:
    for path in shards(tmp_path / "in"):
        os.link(path, tmp_path / f"again-{path.name}")
    with pytest.raises(PlanError, match="hard links"):
        from_command(tmp_path)


def test_a_source_of_two_outputs_goes_when_both_have_its_bytes(tmp_path: Path) -> None:
    tensors = [b.tensor(f"blk.{k}.ffn_up.weight", "F32", (1024,)) for k in range(4)]
    for name, data in b.shard_set("set", [tensors[:3], tensors[3:]]).items():
        (tmp_path / name).write_bytes(data)
    paths = sorted(tmp_path.glob("set-*"))
    made = plan(paths, tmp_path / "out", max_size=9000)
    used = [{copy.extent.source for copy in output.copies} for output in made.outputs]
    assert any(one & other for one in used for other in used if one is not other)
    receipt = executor.execute(made)
    assert sorted(receipt.freed) == [str(path) for path in paths]
    merged = b"".join(path.read_bytes() for path in receipt.paths)
    assert all(tensor.data in merged for tensor in tensors)


# --- going on, and who may not ---------------------------------------------------------------------------------------


def test_after_a_removal_only_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, paths, command = half_done(tmp_path, monkeypatch)
    other = tmp_path / "other.gguf"
    other.write_bytes(b.small_model())
    before = state(tmp_path)
    out = tmp_path / "out.gguf"
    for refused in (
        ["merge", tmp_path / "in", "-o", out],
        ["merge", tmp_path / "in", "-o", out, "--force"],
        ["merge", tmp_path / "in", "-o", out, "--no-resume", "--force"],
        ["merge", other, "-o", out, "--force"],
        ["edit", other, "--set", "general.name=str:x", "-o", out, "--force"],
        ["merge", other, "-o", out, "--consume", "--yes"],
        [*command, "--no-resume"],
        [*command, "--provenance"],
        [*command, "--align", "4096"],
    ):
        done = run_gguftool(*refused)
        assert done.returncode == 2, refused
        assert "only copy" in one_error_line(done.stderr), refused
        assert state(tmp_path) == before, refused
    done = run_gguftool(*command)
    assert done.returncode == 0, done.stderr
    assert b"2 input file(s) are already in its part file" in done.stderr
    assert out.read_bytes() == wanted
    assert sorted(os.listdir(tmp_path)) == ["in", "other.gguf", "out.gguf"]
    assert not any(path.exists() for path in paths)


def test_shards_of_an_unfinished_set_are_refused_to_every_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SET_CASE.set_up(tmp_path)
    begun = SET_CASE.plan(tmp_path)
    with stopped_after(2, monkeypatch), pytest.raises(Stop):
        executor.execute(begun)
    before = state(tmp_path)
    model = shards(tmp_path.parent / f"{tmp_path.name}-other")[0]
    for output in begun.outputs:
        done = run_gguftool("merge", model, "-o", output.path, "--force", "--no-resume")
        assert done.returncode == 2
        assert "only copy" in one_error_line(done.stderr)
    assert state(tmp_path) == before
    SET_CASE.run(tmp_path)
    now = state(tmp_path)
    assert now == SET_CASE.wanted(tmp_path)


def test_the_shell_names_fewer_files_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, paths, command = half_done(tmp_path, monkeypatch)
    left = [str(path) for path in paths if path.exists()]
    done = run_gguftool(command[0], *left, *command[2:])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_when_all_are_gone_the_pattern_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, paths, command = half_done(tmp_path, monkeypatch, 5)
    assert not any(path.exists() for path in paths)
    done = run_gguftool(command[0], tmp_path / "in" / "*.gguf", *command[2:])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == wanted


@pytest.mark.slow
def test_paths_are_absolute_whatever_folder_it_is_run_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words in another folder mean other files: none of those is touched."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    wanted, _, _ = half_done(here, monkeypatch)
    strangers = shards(there / "in")
    words = ["merge", "in", "-o", "../here/out.gguf", "--consume", "--yes"]
    refused = run_gguftool(*words, cwd=there)
    assert refused.returncode == 2
    assert b"only copy" in refused.stderr
    assert all(path.exists() for path in strangers)
    done = run_gguftool(*words, cwd=here)
    assert done.returncode == 0, done.stderr
    assert (here / "out.gguf").read_bytes() == wanted
    assert all(path.exists() for path in strangers)


def test_without_a_removal_no_resume_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = shards(tmp_path / "in")
    begun = from_command(tmp_path)

    def stop(_source: object) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):  # noqa: PT012
        patch.setattr(consume, "free", stop)
        executor.execute(begun)
    assert helper_path(tmp_path / "out.gguf", "only-copy").exists()
    assert all(path.exists() for path in paths)
    done = run_gguftool("merge", tmp_path / "in", "-o", tmp_path / "out.gguf", "--consume", "--yes", "--no-resume")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["in", "out.gguf"]


def test_two_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, command = half_done(tmp_path, monkeypatch)
    before = state(tmp_path)
    with open(helper_path(tmp_path / "out.gguf", "consume"), "rb") as journal:
        assert lock(journal.fileno())
        assert "another gguftool" in one_error_line(run_gguftool(*command).stderr.splitlines()[-1])
    folder = os.open(tmp_path / "in", os.O_RDONLY)
    try:
        assert lock(folder)
        assert "removing files here" in one_error_line(run_gguftool(*command).stderr.splitlines()[-1])
    finally:
        os.close(folder)
    assert state(tmp_path) == before
    assert run_gguftool(*command).returncode == 0


def test_what_was_published_is_known_when_the_journal_stayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _, command = half_done(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(consume_state.Consuming, "remove", lambda run: None)
        begun = begun_at(tmp_path)
        assert begun is not None
        executor.execute(begun)
    assert (tmp_path / "out.gguf").read_bytes() == wanted
    os.rename(tmp_path / "out.gguf", tmp_path / "moved.gguf")
    refused = run_gguftool(*command)
    assert refused.returncode == 2
    assert b"was complete" in refused.stderr
    os.rename(tmp_path / "moved.gguf", tmp_path / "out.gguf")
    assert run_gguftool(*command).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["in", "out.gguf"]
    assert (tmp_path / "out.gguf").read_bytes() == wanted


# --- strangers, and what changes meanwhile ---------------------------------------------------------------------------


def test_a_file_put_in_the_place_of_a_source_before_it_goes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = shards(tmp_path / "in")
    real = consume.free
    kept = tmp_path / "kept"

    def free(source: object) -> None:
        path = Path(source.name)  # type: ignore[attr-defined]
        if path == paths[2]:
            os.rename(path, kept)
            path.write_bytes(b"somebody else's")
        real(source)  # type: ignore[arg-type]

    monkeypatch.setattr(consume, "free", free)
    with pytest.raises(SourceError, match="no longer the file"):
        executor.execute(from_command(tmp_path))
    assert paths[2].read_bytes() == b"somebody else's"
    assert helper_path(tmp_path / "out.gguf", "consume").exists()
    monkeypatch.undo()
    begun = begun_at(tmp_path)
    assert begun is not None
    executor.execute(begun)  # its bytes are safe: it counts as removed, and the new file is nobody's business
    assert paths[2].read_bytes() == b"somebody else's"


@pytest.mark.parametrize("change", ["rewrite", "truncate", "remove"])
def test_a_source_that_is_another_when_it_goes_on_is_an_error_and_all_stays(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, paths, command = half_done(tmp_path, monkeypatch)
    victim = paths[-1]
    saved = victim.read_bytes()
    status = victim.stat()
    if change == "rewrite":
        victim.write_bytes(bytes(len(saved)))
    elif change == "truncate":
        os.truncate(victim, 100)
    else:
        os.rename(victim, tmp_path / "aside")
    before = state(tmp_path)
    refused = run_gguftool(*command)
    assert refused.returncode == 2
    assert str(victim).encode() in refused.stderr
    assert state(tmp_path) == before
    if change == "remove":
        os.rename(tmp_path / "aside", victim)
    else:
        victim.write_bytes(saved)
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.chmod(victim, 0o600)  # another ctime is no other file
    done = run_gguftool(*command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == wanted


@pytest.mark.parametrize("change", ["touch", "rewrite", "remove"])
def test_a_source_that_stays_is_not_needed_once_its_bytes_are_safe(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CONSUME_CASES if case.mixed)
    (tmp_path / "wanted").mkdir()
    wanted = case.wanted(tmp_path / "wanted")
    case.set_up(tmp_path)
    begun = case.plan(tmp_path)
    stays = [step.source.name for step in begun.consume.steps if not step.frees] if begun.consume else []
    assert str(tmp_path / "donor.gguf") in stays
    with monkeypatch.context() as patch:
        patch.setattr(consume, "_publish_only_copies", raise_stop)
        with pytest.raises(Stop):
            executor.execute(begun)
    path = tmp_path / "donor.gguf"
    if change == "touch":
        os.utime(path, ns=(1, 1))
    elif change == "rewrite":
        path.write_bytes(b"another")
    else:
        path.unlink()
    case.run(tmp_path)
    assert (tmp_path / case.output).read_bytes() == wanted[case.output]


def raise_stop(*_arguments: object) -> None:
    raise Stop


def test_a_damaged_journal_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _, command = half_done(tmp_path, monkeypatch)
    journal = helper_path(tmp_path / "out.gguf", "consume")
    whole = journal.read_bytes()
    first_line = whole.index(b"copied 0")
    last_line = whole.rindex(b"copied 1")
    before = {name: data for name, data in state(tmp_path).items() if name != journal.name}
    damaged = [whole[:length] for length in (*range(0, first_line, 97), first_line, last_line, len(whole) - 9)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, first_line, 97)]
    damaged += [b"", b"{}" * 1000, whole.replace(b"copied 0", b"copied 3")]
    for data in damaged:
        journal.write_bytes(data)
        with pytest.raises(GGUFToolError):  # noqa: PT012 - at whichever of the two it is seen
            begun = begun_at(tmp_path)
            executor.execute(begun or from_command(tmp_path))
        assert journal.exists()
        assert {name: data for name, data in state(tmp_path).items() if name != journal.name} == before
    journal.write_bytes(whole)
    assert run_gguftool(*command).returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_a_source_that_is_there_is_copied_whatever_the_journal_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, paths, command = half_done(tmp_path, monkeypatch)
    with open(helper_path(tmp_path / "out.gguf", "consume"), "ab") as journal:
        journal.writelines(b"copied %d %s\n" % (number, b"0" * 64) for number in (2, 3, 4))
    done = run_gguftool(*command)
    assert done.returncode == 0, done.stderr
    assert not any(path.exists() for path in paths)
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_a_journal_reaches_no_file_that_the_command_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's journal, valid in itself, names files to remove; the command names others."""
    _, _, command = half_done(tmp_path, monkeypatch, 1)
    precious = shards(tmp_path / "precious")
    before = state(tmp_path)
    done = run_gguftool("merge", tmp_path / "precious", *command[2:])
    assert done.returncode == 2
    assert "only copy" in one_error_line(done.stderr)
    assert state(tmp_path) == before
    assert all(path.exists() for path in precious)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["byte", "shorter", "longer", "gone", "second name"])
def test_a_part_file_that_lost_bytes_is_said_and_nothing_more_goes(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _, command = half_done(tmp_path, monkeypatch)
    part = helper_path(tmp_path / "out.gguf", "only-copy")
    good = part.read_bytes()
    at = next(at for at in range(len(good) - 1, 0, -1) if good[at])
    at = good.index(b.tensor("blk.0.ffn_up.weight", "F32", (1024,)).data)
    if damage == "byte":
        part.write_bytes(good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :])
    elif damage == "shorter":
        part.write_bytes(good[: at + 8])
    elif damage == "longer":
        part.write_bytes(good + b"x")
    elif damage == "gone":
        os.rename(part, tmp_path / "aside")
    else:
        os.link(part, tmp_path / "aside")
    inputs = state(tmp_path / "in")
    refused = run_gguftool(*command)
    assert refused.returncode == 2, refused.stdout
    assert state(tmp_path / "in") == inputs
    assert helper_path(tmp_path / "out.gguf", "consume").exists()
    assert not (tmp_path / "out.gguf").exists()
    if damage == "gone":
        os.rename(tmp_path / "aside", part)
    elif damage == "second name":
        os.unlink(tmp_path / "aside")
    else:
        part.write_bytes(good)
    assert run_gguftool(*command).returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_a_file_that_came_back_under_a_removed_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, paths, command = half_done(tmp_path, monkeypatch)
    back = next(path for path in paths if not path.exists())
    back.write_bytes(b"downloaded again, another")
    assert run_gguftool(*command).returncode == 0
    assert back.read_bytes() == b"downloaded again, another"
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_an_output_that_came_meanwhile_is_replaced_with_force_as_the_error_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _, command = half_done(tmp_path, monkeypatch)
    (tmp_path / "out.gguf").write_bytes(b"somebody else's")
    refused = run_gguftool(*command)
    assert refused.returncode == 2
    assert b"--force replaces it" in refused.stderr
    assert (tmp_path / "out.gguf").read_bytes() == b"somebody else's"
    done = run_gguftool(*command, "--force")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_a_folder_behind_a_link_that_points_elsewhere_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal names is the real folder; where the link leads later is nobody's business."""
    real, other = tmp_path / "real", tmp_path / "other"
    paths = shards(real)
    strangers = shards(other)
    link = tmp_path / "in"
    link.symlink_to(real)
    assert run_gguftool("merge", real, "-o", tmp_path / "plain.gguf").returncode == 0
    with stopped_after(2, monkeypatch), pytest.raises(Stop):
        executor.execute(from_command(tmp_path))
    link.unlink()
    link.symlink_to(other)
    refused = run_gguftool("merge", link, "-o", tmp_path / "out.gguf", "--consume", "--yes")
    assert refused.returncode == 2
    done = run_gguftool("merge", real, "-o", tmp_path / "out.gguf", "--consume", "--yes")
    assert done.returncode == 0, done.stderr
    assert all(path.exists() for path in strangers)
    assert not any(path.exists() for path in paths)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_journal_is_no_way_to_hang_or_to_read_elsewhere(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, command = half_done(tmp_path, monkeypatch)
    journal = helper_path(tmp_path / "out.gguf", "consume")
    os.rename(journal, tmp_path / "aside")
    if kind == "pipe":
        os.mkfifo(journal)
    elif kind == "folder":
        journal.mkdir()
    else:
        journal.symlink_to(tmp_path / "aside")
    inputs = state(tmp_path / "in")
    for more in ([], ["--no-resume"]):
        refused = run_gguftool(*command, *more, timeout=20)
        assert refused.returncode == 2
        one_error_line(refused.stderr)
    assert state(tmp_path / "in") == inputs
    if kind == "folder":
        journal.rmdir()
    else:
        journal.unlink()
    os.rename(tmp_path / "aside", journal)
    assert run_gguftool(*command).returncode == 0


def test_a_part_file_without_its_journal_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, command = half_done(tmp_path, monkeypatch)
    helper_path(tmp_path / "out.gguf", "consume").rename(tmp_path / "aside")
    fresh = shards(tmp_path / "fresh")
    before = state(tmp_path)
    for more in ([], ["--no-resume"], ["--force"]):
        refused = run_gguftool("merge", tmp_path / "fresh", *command[2:], *more)
        assert refused.returncode == 2
        assert "only copy" in one_error_line(refused.stderr)
    assert state(tmp_path) == before
    assert all(path.exists() for path in fresh)


def test_a_second_name_made_meanwhile_is_said_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, paths, command = half_done(tmp_path, monkeypatch)
    os.link(paths[-1], tmp_path / "mine")
    refused = run_gguftool(*command)
    assert refused.returncode == 2
    assert b"several names" in refused.stderr
    assert paths[-1].exists()
    os.unlink(paths[-1])  # the user's choice: its bytes are safe by then
    assert run_gguftool(*command).returncode == 0
    assert (tmp_path / "mine").exists()
    assert (tmp_path / "out.gguf").read_bytes() == wanted


def test_what_reads_back_differently_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = shards(tmp_path / "in")
    real = consume.read_fully

    def rotten(fd: int, length: int, offset: int) -> bytes:
        data = real(fd, length, offset)
        return data[:-1] + bytes([data[-1] ^ 1])

    monkeypatch.setattr(consume, "read_fully", rotten)
    with pytest.raises(ExecuteError, match="does not read back the bytes"):
        executor.execute(from_command(tmp_path))
    assert all(path.exists() for path in paths)
    assert sorted(os.listdir(tmp_path)) == ["in"]


# --- the real system -------------------------------------------------------------------------------------------------


@needs_strace
def test_bytes_then_read_back_then_journal_then_the_file_goes(tmp_path: Path) -> None:
    paths = shards(tmp_path / "in")
    out = tmp_path / "out.gguf"
    done = traced(["merge", tmp_path / "in", "-o", out, "--consume", "--yes"], tmp_path / "log")
    assert done.returncode == 0, done.stderr
    seen = events(tmp_path / "log", tmp_path)
    part, journal = helper_path(out, "only-copy").name, helper_path(out, "consume").name
    named = seen.index(("link", journal))
    durable = seen.index(("fsync", "."), named)
    gone = [at for at, (call, about) in enumerate(seen) if call == "unlink" and about.startswith("in/")]
    assert len(gone) == len(paths)
    last = durable
    for path in paths[1:]:  # shard 1 has no tensors, and goes last
        source = f"in/{path.name}"
        removed = seen.index(("unlink", source))
        wrote = max(at for at, event in enumerate(seen[:removed]) if event == ("pwrite64", part))
        synced = seen.index(("fsync", part), wrote)
        read = seen.index(("pread64", part), synced)
        noted = seen.index(("write", journal), read)
        assert last < wrote < synced < read < noted < seen.index(("fsync", journal), noted) < removed, source
        last = seen.index(("fsync", "in"), removed)
    assert last < seen.index(("unlink", f"in/{paths[0].name}"))
    assert gone[-1] < seen.index(("link", out.name)) < seen.index(("unlink", journal))


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize(
    "inject",
    [
        *(f"unlink:signal=SIGKILL:when={n}" for n in (2, 3, 4, 6, 7, 8)),
        *(f"unlink:error=EPERM:when={n}" for n in (2, 3, 5)),
        *(f"fsync:signal=SIGKILL:when={n}" for n in range(2, 14, 2)),
        *(f"fsync:error=EIO:when={n}" for n in range(3, 14, 2)),
        "pwrite64:error=ENOSPC:when=4+",
        "pwrite64:signal=SIGKILL:when=4",
        "link,linkat:error=EIO:when=2+",
        "link,linkat:signal=SIGKILL:when=2",
    ],
)
def test_faults_from_the_kernel(inject: str, tmp_path: Path) -> None:
    ONE.set_up(tmp_path / "run")
    made = ONE.plan(tmp_path / "run")
    wanted = {name: data for name, data in tree(tmp_path / "run").items() if name not in ONE.files}
    run_gguftool("merge", tmp_path / "run" / ONE.models[0], "-o", tmp_path / "plain.gguf")
    command = ["merge", tmp_path / "run" / ONE.models[0], "-o", tmp_path / "run" / ONE.output, "--consume", "--yes"]
    done = traced(command, tmp_path / "log", inject)
    assert "INJECTED" in (tmp_path / "log").read_text() or "SIGKILL" in (tmp_path / "log").read_text()
    assert b"Traceback" not in done.stderr
    assert_nothing_is_lost(ONE, tmp_path / "run", made, inject)
    if done.returncode or ONE.is_begun(tmp_path / "run"):
        again = run_gguftool(*command)
        assert again.returncode == 0, again.stderr
    wanted[ONE.output] = (tmp_path / "plain.gguf").read_bytes()
    assert tree(tmp_path / "run") == wanted


@needs_root
def test_a_disk_with_room_for_one_shard_more(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "17m") as disk:
        paths = shards(disk / "in", 4, 3 * MIB // 4)  # 12 MiB
        refused = run_gguftool("merge", disk / "in", "-o", disk / "out.gguf")
        assert refused.returncode == 2
        assert "are free here" in one_error_line(refused.stderr)
        done = run_gguftool("merge", disk / "in", "-o", disk / "out.gguf", "--consume", "--yes")
        assert done.returncode == 0, done.stderr
        assert not any(path.exists() for path in paths)
        assert (disk / "out.gguf").stat().st_size > 12 * MIB
        assert sorted(os.listdir(disk)) == ["in", "out.gguf"]


@needs_root
def test_a_disk_without_that_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "14m") as disk:
        shards(disk / "in", 4, 3 * MIB // 4)
        before = state(disk)
        done = run_gguftool("merge", disk / "in", "-o", disk / "out.gguf", "--consume", "--yes")
        assert done.returncode == 2
        assert "at its peak" in one_error_line(done.stderr)
        assert state(disk) == before


@needs_root
def test_a_disk_that_fills_up_keeps_everything_and_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "17m") as disk:
        wanted, _, command = half_done_large(disk, tmp_path, monkeypatch)
        (disk / "ballast").write_bytes(bytes(4 * MIB))
        monkeypatch.setattr(consume, "check_room", lambda run: None)
        begun = begun_at(disk)
        assert begun is not None
        inputs = state(disk / "in")
        with pytest.raises(ExecuteError, match="disk is full"):
            executor.execute(begun)
        assert state(disk / "in") == inputs
        refused = run_gguftool(*command)
        assert refused.returncode == 2
        (disk / "ballast").unlink()
        done = run_gguftool(*command)  # what the broken run had written of a shard counts as room
        assert done.returncode == 0, done.stderr
        assert (disk / "out.gguf").read_bytes() == wanted


def half_done_large(disk: Path, beside: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, list[Path], list[str]]:
    paths = shards(disk / "in", 4, 3 * MIB // 4)
    assert run_gguftool("merge", disk / "in", "-o", beside / "plain.gguf").returncode == 0
    with stopped_after(1, monkeypatch), pytest.raises(Stop):
        executor.execute(from_command(disk))
    command = ["merge", str(disk / "in"), "-o", str(disk / "out.gguf"), "--consume", "--yes"]
    return (beside / "plain.gguf").read_bytes(), paths, command


@pytest.mark.slow
@needs_root
@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4: apt-get install e2fsprogs")
def test_the_plug_may_be_pulled_at_any_sync_and_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk holds at each of these moments, without the caches, is all that a later run has."""
    disk, place = tmp_path / "disk", tmp_path / "mnt"
    with open(disk, "wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    images: list[Path] = []

    def then_pulled(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object) -> None:
            real(*arguments)
            images.append(tmp_path / f"image-{len(images)}")
            subprocess.run(["cp", "--sparse=always", disk, images[-1]], check=True)

        patch.setattr(os, name, call)

    with mounted(place, "-o", "loop", str(disk)):
        shards(place / "in", 3)
        os.sync()
        wanted = merged_elsewhere(place / "in", tmp_path / "plain.gguf")
        begun = from_command(place)
        with monkeypatch.context() as patch:
            then_pulled("fsync")
            then_pulled("unlink")
            executor.execute(begun)
    assert len(images) > 20
    gone = []
    for image in images:
        place.rmdir()
        with mounted(place, "-o", "loop", str(image)):
            gone.append(4 - len(list((place / "in").glob("*.gguf"))))
            if not (place / "out.gguf").exists() or helper_path(place / "out.gguf", "consume").exists():
                found = begun_at(place)
                executor.execute(found or from_command(place))
            assert (place / "out.gguf").read_bytes() == wanted
            assert not list((place / "in").glob("*.gguf"))
    assert sorted(set(gone)) == [0, 1, 2, 3, 4]


def merged_elsewhere(models: Path, output: Path) -> bytes:
    assert run_gguftool("merge", models, "-o", output).returncode == 0
    return output.read_bytes()
