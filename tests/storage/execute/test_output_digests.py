"""--hash of the writers: the digests are those of the bytes that are in the outputs, and `hash --check` agrees."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import gguftool
from gguftool.analysis.verify import file_hashes, hash_files, hash_tensors, tensor_hashes
from gguftool.errors import ExecuteError
from gguftool.format.ggml import TYPES
from gguftool.model.layout import OutputOptions
from gguftool.model.opening import open_model
from gguftool.storage.execute import output_digests
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options, Sizes
from gguftool.storage.execute.output_digests import OutputDigests
from gguftool.storage.plan import Copy, Mark, OutputFile, Plan, Receipt
from gguftool.storage.sources.source import Extent
from gguftool.storage.system.threads import Background
from gguftool.surgery.split import SplitOptions, plan_split
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.memory_source import MemorySource
from tests.support.mix_models import per_tensor, quant
from tests.support.syscalls import count_calls, killed_at
from tests.support.writer_cases import CASES, Case, listing, options_of, set_up

HASHED = [case for case in CASES if case.name != "split into many" and not case.hash]
in_every_case = pytest.mark.parametrize("case", HASHED, ids=str)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def asked(case: Case, **more: object) -> Options:
    return options_of(case, hash_files=True, hash_parts=True, **more)


def assert_true(plan: Plan, receipt: Receipt) -> None:
    """Compare a receipt with hashlib of the files, and with what the hash command says of them."""
    assert receipt.digests is not None
    said = {one.name: one.sha256 for one in receipt.digests.files}
    assert said == {str(path): sha256(path.read_bytes()) for path in receipt.paths}
    if plan.outputs[0].path.suffix != ".gguf":
        assert receipt.digests.parts == ()
        return
    model = open_model(plan.first_shard_path)
    wanted = hash_tensors(model)
    if any(output.replaces is not None for output in plan.outputs):
        written = {str(path) for path in receipt.paths}
        names = [
            f"{plan.first_shard_path.name}:{n}" for n, t in model.tensors.items() if t.extent.source.name in written
        ]
        wanted = tuple(one for one in wanted if one.name in names)
    else:
        assert set(file_hashes(receipt)) >= set(hash_files(model))
    assert tensor_hashes(receipt, plan.first_shard_path.name) == wanted


@pytest.fixture(params=[1, 100, 1 << 30], ids=["piece of 1", "of 100", "of 1 GiB"])
def piece(request: pytest.FixtureRequest) -> int:
    """After how many bytes outputs are hashed."""
    size: int = request.param
    return max(size, 64)


@in_every_case
@pytest.mark.parametrize("jobs", [1, 3])
def test_every_writer_hashes_what_it_wrote(case: Case, jobs: int, piece: int, tmp_path: Path) -> None:
    set_up(case, tmp_path / "run")
    plan = case.plan(tmp_path / "run")
    assert_true(plan, execute(plan, asked(case, jobs=jobs, sizes=Sizes(hash_step=piece))))
    hashed = listing(tmp_path / "run")
    set_up(case, tmp_path / "run")
    execute(case.plan(tmp_path / "run"), Options(force=case.force))
    assert listing(tmp_path / "run") == hashed, "the bytes are the same with and without"


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.checkpoint < 1000], ids=str)
def test_a_run_that_goes_on_hashes_what_was_written_before(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(case, folder)
    plan = case.plan(folder)
    calls = count_calls(lambda: execute(plan, asked(case)))
    went_on = 0
    for at in range(0, len(calls), 3):
        set_up(case, folder)
        plan = case.plan(folder)
        killed_at(at, lambda plan=plan: execute(plan, asked(case)))  # type: ignore[misc]
        if not plan.outputs[0].path.exists():
            notes: list[str] = []
            assert_true(plan, execute(plan, asked(case, note=notes.append)))
            went_on += any("resumed after" in note or "finished publishing" in note for note in notes)
    assert went_on >= 3


@pytest.mark.parametrize("tensor_first", [False, True])
def test_bundled_tensors_are_hashed_in_model_order(tensor_first: bool, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.gguf(b.llama_kvs(), b.llama_tensors(2)))
    options = SplitOptions(bundle_small=200, tensor_first=tensor_first)
    plan = plan_split(open_model(tmp_path / "m.gguf"), str(tmp_path / "s"), options)
    receipt = execute(plan, Options(hash_files=True, hash_parts=True))
    assert receipt.digests is not None
    in_files = [mark.name for output in plan.outputs for mark in output.marks or ()]
    assert [part.name for part in receipt.digests.parts] != in_files
    assert_true(plan, receipt)
    whole = hash_tensors(open_model(tmp_path / "m.gguf"))[-1]
    assert receipt.digests.whole == whole.sha256


@pytest.mark.parametrize("align", [32, 4096])
def test_a_tensor_of_an_unknown_type_is_hashed_as_readers_see_it(align: int, tmp_path: Path) -> None:
    unknown = next(number for number in range(100, 250) if number not in TYPES)
    odd = b.Tensor("odd", (5,), unknown, b.filler("odd", 40), None)
    tensors = (
        b.tensor("a", "F32", (3,)),
        odd,
        b.tensor("z", "F32", (3,)),
        b.Tensor("y", (5,), unknown, b.filler("y", 64), None),
    )
    (tmp_path / "m.gguf").write_bytes(b.gguf(b.llama_kvs(), tensors))
    plan = plan_split(
        open_model(tmp_path / "m.gguf"),
        str(tmp_path / "s"),
        SplitOptions(max_tensors=4, output=OutputOptions(alignment=align)),
    )
    assert_true(plan, execute(plan, Options(hash_files=True, hash_parts=True)))


def test_a_model_without_tensors_has_the_line_over_all_data(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.gguf(b.llama_kvs(), ()))
    done = run_gguftool("edit", tmp_path / "m.gguf", "--set", "general.name=str:N", "-o", tmp_path / "x.gguf", "--hash")
    assert done.stdout.splitlines()[1:] == run_gguftool("hash", tmp_path / "x.gguf").stdout.splitlines()
    assert done.stdout.splitlines()[1].endswith(b"  x.gguf")


def test_only_what_is_asked_for_is_hashed(tmp_path: Path) -> None:
    case = CASES[0]
    for files, parts in ((False, False), (True, False), (False, True)):
        set_up(case, tmp_path / "run")
        digests = execute(case.plan(tmp_path / "run"), Options(hash_files=files, hash_parts=parts)).digests
        assert (digests is not None) == (files or parts)
        if digests is not None:
            assert (bool(digests.files), bool(digests.parts), digests.whole is not None) == (files, parts, parts)


def test_an_output_that_cannot_be_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object) -> int:
        raise OSError(5, "Input/output error")

    source = MemorySource(label="s", data=b"0123456789" * 1000)
    copy = Copy(extent=Extent(source=source, offset=0, length=source.size), offset=4)
    mark = Mark(name="t", offset=4, length=source.size)
    output = OutputFile(path=tmp_path / "o", head=b"head", copies=(copy,), size=source.size + 4, marks=(mark,))
    plan = Plan(outputs=(output,), inputs=(source,))
    monkeypatch.setattr("gguftool.storage.sources.digest.read_into", fails)
    with pytest.raises(ExecuteError, match="cannot be read back"):
        execute(plan, Options(hash_files=True, hash_parts=True))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    digests = execute(plan, Options(hash_files=True, hash_parts=True)).digests
    assert digests is not None
    assert digests.whole == digests.parts[0].sha256 == sha256(source.data)
    assert digests.files[0].sha256 == sha256(b"head" + source.data)


# --- the command line ------------------------------------------------------------------------------------------------


def commands(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Return the arguments of each writer, and the model to hash afterwards."""
    model, donor = folder / "m.gguf", folder / "donor.gguf"
    quant(model, "Q8_0")
    quant(donor, "Q4_0")
    per_tensor(folder / "set", "M-Q8_0", "Q8_0")
    return {
        "split": (["split", model, folder / "out/s"], "out/s-00001-of-00008.gguf"),
        "merge": (["merge", folder / "set", "-o", folder / "x.gguf"], "x.gguf"),
        "swap": (["swap", model, "--from", donor, "--tensor", "output.weight", "-o", folder / "y.gguf"], "y.gguf"),
        "edit": (["edit", model, "--set", "general.name=str:N", "-o", folder / "z.gguf"], "z.gguf"),
        "edit in place": (["edit", model, "--set", "llama.block_count=u32:7", "--in-place", "--anyway"], "m.gguf"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["split", "merge", "swap", "edit", "edit in place"])
def test_the_lines_are_those_of_the_hash_command_and_check_takes_them(name: str, tmp_path: Path) -> None:
    arguments, model = commands(tmp_path)[name]
    done = run_gguftool(*arguments, "--hash")
    assert done.returncode == 0, done.stderr
    assert b"note: wrote" in done.stderr
    files = run_gguftool("hash", tmp_path / model, "--files").stdout
    tensors = run_gguftool("hash", tmp_path / model).stdout
    assert len(files + tensors) > 300
    assert done.stdout == files + tensors
    manifest = (tmp_path / model).parent / "sums"
    manifest.write_bytes(done.stdout)
    checked = run_gguftool("hash", "--check", manifest)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.startswith(f"{len(done.stdout.splitlines())} match, 0 do not".encode())
    damaged = tmp_path / model
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xee")
    assert run_gguftool("hash", "--check", manifest).returncode == 1


def test_json_has_the_digests_only_with_hash(tmp_path: Path) -> None:
    quant(tmp_path / "m.gguf", "Q8_0")
    plain = json.loads(run_gguftool("merge", tmp_path / "m.gguf", "-o", tmp_path / "a.gguf", "--json").stdout)
    assert plain["digests"] is None
    said = json.loads(run_gguftool("merge", tmp_path / "m.gguf", "-o", tmp_path / "b.gguf", "--json", "--hash").stdout)
    assert said["digests"]["files"] == [
        {"name": str(tmp_path / "b.gguf"), "sha256": sha256((tmp_path / "b.gguf").read_bytes())}
    ]
    assert said["digests"]["whole"] == hash_tensors(gguftool.open_model(tmp_path / "b.gguf"))[-1].sha256


def test_export_prints_the_files_line_alone(tmp_path: Path) -> None:
    quant(tmp_path / "m.gguf", "Q8_0")
    out = tmp_path / "o.safetensors"
    done = run_gguftool("export", tmp_path / "m.gguf", "--tensor", ".", "-o", out, "--hash")
    assert done.stdout.decode() == f"{sha256(out.read_bytes())}  {out}\n"


def test_of_a_set_in_place_the_replaced_shard_is_hashed_and_checked(tmp_path: Path) -> None:
    shards = per_tensor(tmp_path / "set", "M-Q8_0", "Q8_0")
    donor = Path(quant(tmp_path / "donor.gguf", "Q4_0"))
    first = next(iter(sorted(shards.glob("*.gguf"))))
    arguments = ("swap", first, "--from", donor, "--tensor", "output.weight", "--in-place", "--hash")
    done = run_gguftool(*arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[-1].endswith(f"  {first.name}:output.weight")
    assert not any(line.endswith(f"  {first.name}") and line.startswith("sha256 ") for line in lines)
    (shards / "sums").write_bytes(done.stdout)
    assert run_gguftool("hash", "--check", shards / "sums").stdout.startswith(f"{len(lines)} match, 0 do not".encode())


def test_the_map_of_a_split_is_the_one_that_the_hash_command_writes(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.gguf(b.llama_kvs(), b.llama_tensors(2)))
    done = run_gguftool("split", tmp_path / "m.gguf", tmp_path / "s/x", "--map")
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "s/tensors.map").read_bytes()
    assert re.search(rb":[0-9a-f]{64}:", made)
    again = run_gguftool("hash", tmp_path / "s", "--map", "--force")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "s/tensors.map").read_bytes() == made


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")
def test_a_signal_while_it_hashes_ends_it_cleanly(tmp_path: Path) -> None:
    quant(tmp_path / "m.gguf", "Q8_0")
    log = str(tmp_path / "log")
    strace = ("strace", "-f", "-qq", "-o", log, "-e", "trace=fsync", "-e", "inject=fsync:signal=INT:when=1")
    done = run_gguftool("merge", tmp_path / "m.gguf", "-o", tmp_path / "x.gguf", "--hash", prefix=strace)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "m.gguf"]


# --- steps and ranges ------------------------------------------------------------------------------------------------


def set_of(folder: Path, *sizes: int, marks: tuple[tuple[Mark, ...] | None, ...] | None = None, **options: Any) -> Plan:
    outputs = tuple(
        OutputFile(
            path=folder / f"{index}",
            head=b"",
            copies=(),
            size=size,
            marks=None if marks is None else marks[index],
        )
        for index, size in enumerate(sizes)
    )
    return Plan(outputs=outputs, inputs=(), **options)


def test_a_round_begins_when_a_step_of_new_bytes_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = set_of(tmp_path, 100, 100)
    for output in plan.outputs:
        output.path.write_bytes(output.path.name.encode() * 100)
    digests = OutputDigests(plan, Options(hash_files=True, jobs=1, sizes=Sizes(hash_step=50)))
    rounds: list[int] = []
    begin = digests._start_round
    monkeypatch.setattr(digests, "_start_round", lambda: rounds.append(1) or begin())
    assert digests.step == 50
    for index, end, count in ((0, 30, 0), (0, 49, 0), (1, 1, 1), (0, 60, 1), (0, 98, 1), (1, 1, 1), (1, 2, 2)):
        digests.update(index, plan.outputs[index].path, end)
        assert len(rounds) == count, (index, end)
    for index in (0, 1):
        digests.update(index, plan.outputs[index].path, 100)
    found = digests.finish()
    digests.close()
    assert found is not None
    assert [each.sha256 for each in found.files] == [sha256(b"0" * 100), sha256(b"1" * 100)]
    assert (found.parts, found.whole) == ((), None)


def test_ranges_are_hashed_alone_and_together_in_the_plans_sequence(tmp_path: Path) -> None:
    first = (Mark(name="b", offset=10, length=20), Mark(name="empty", offset=30, length=0))
    marks = (first, (Mark(name="a", offset=0, length=5), Mark(name="c", offset=90, length=10)))
    plan = set_of(tmp_path, 100, 100, marks=marks, sequence=("a", "unknown", "b"))
    data = [bytes(range(100)), bytes(range(100, 200))]
    for output, content in zip(plan.outputs, data, strict=True):
        output.path.write_bytes(content)
    pieces = {"a": data[1][:5], "b": data[0][10:30], "empty": b"", "c": data[1][90:]}
    in_turn = [(index, end) for end in range(0, 101, 5) for index in (0, 1)]
    one_by_one = [(0, 50), (0, 100), (1, 100)]  # the first range is in the second output
    for step, ends in ((1, in_turn), (7, in_turn), (1000, in_turn), (1, one_by_one)):
        digests = OutputDigests(plan, Options(hash_parts=True, sizes=Sizes(hash_step=step)))
        for index, end in ends:
            digests.update(index, plan.outputs[index].path, end)
        found = digests.finish()
        digests.close()
        assert found is not None
        assert {each.name: each.sha256 for each in found.parts} == {key: sha256(data) for key, data in pieces.items()}
        assert [each.name for each in found.parts] == ["a", "b", "empty", "c"]
        assert found.whole == sha256(b"".join(pieces[name] for name in ("a", "b", "empty", "c")))
        assert found.files == ()


def test_without_names_in_every_output_there_is_no_line_over_all(tmp_path: Path) -> None:
    plan = set_of(tmp_path, 10, 10, marks=((Mark(name="a", offset=0, length=10),), None))
    for output in plan.outputs:
        output.path.write_bytes(b"x" * 10)
    digests = OutputDigests(plan, Options(hash_parts=True))
    for index, output in enumerate(plan.outputs):
        digests.update(index, output.path, 10)
    found = digests.finish()
    digests.close()
    assert found is not None
    assert (len(found.parts), found.whole) == (1, None)


def test_what_is_not_complete_has_no_digest(tmp_path: Path) -> None:
    plan = set_of(tmp_path, 10)
    plan.outputs[0].path.write_bytes(b"x" * 10)
    digests = OutputDigests(plan, Options(hash_files=True))
    digests.update(0, plan.outputs[0].path, 9)
    with pytest.raises(ExecuteError, match="before it was complete"):
        digests.finish()
    digests.close()


@pytest.mark.parametrize("change", ["missing", "short", "link"])
def test_an_output_that_is_gone_or_short_or_a_link_is_named(tmp_path: Path, change: str) -> None:
    plan = set_of(tmp_path, 10)
    path = plan.outputs[0].path
    if change == "short":
        path.write_bytes(b"x" * 9)
    elif change == "link":
        (tmp_path / "elsewhere").write_bytes(b"x" * 10)
        path.symlink_to(tmp_path / "elsewhere")
    digests = OutputDigests(plan, Options(hash_files=True))
    digests.update(0, path, 10)
    with pytest.raises(ExecuteError, match="cannot be read back") as caught:
        digests.finish()
    assert caught.value.source == str(path)
    digests.close()


@pytest.mark.parametrize(("jobs", "wanted"), [(3, 3), (None, os.cpu_count() or 1)])
def test_as_many_threads_hash_as_there_are_jobs(
    tmp_path: Path, jobs: int | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    class Counting(Background[None]):
        def __init__(self, calls: Sequence[Callable[[], None]], jobs: int, stop: threading.Event | None = None) -> None:
            counts.append(jobs)
            super().__init__(calls, jobs, stop)

    monkeypatch.setattr(output_digests, "Background", Counting)
    plan = set_of(tmp_path, 10)
    plan.outputs[0].path.write_bytes(b"x" * 10)
    digests = OutputDigests(plan, Options(hash_files=True, jobs=jobs))
    digests.update(0, plan.outputs[0].path, 10)
    digests.finish()
    digests.close()
    assert counts == [wanted]
