"""imatrix make drives the real llama-imatrix: in parts that a later run goes on from, into both formats."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gguftool.cooking import imatrix_making
from gguftool.cooking.imatrix_making import ImatrixJob, MakeHooks, made_imatrix
from gguftool.errors import ExecuteError, PlanError
from gguftool.format.imatrix import Imatrix, ImatrixKind
from gguftool.model.companions import open_imatrix
from gguftool.record import replace
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from tests.support.command import environment, run_gguftool
from tests.support.engine_tools import tool
from tests.support.fake_imatrix import ENTRY, make_fake_ik
from tests.support.measure_cases import MODEL

CONTEXT = 64


class Stopped(Exception):
    """Raised in the middle of a run."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"The {number}th line tells of {number * 7} things. " for number in range(200)))
    return path


def _job(text: Path, **options: object) -> ImatrixJob:
    given = {"kind": ImatrixKind.GGUF, "context": CONTEXT, "chunks": 6, "every": 2, **options}
    return ImatrixJob(model=str(MODEL), text=text, engine=str(tool("llama-imatrix")), **given)  # type: ignore[arg-type]


def _make(job: ImatrixJob, output: Path, hooks: MakeHooks | None = None) -> Imatrix:
    with made_imatrix(job, output, hooks) as plan:
        execute(plan, Options(sync=False))
    return open_imatrix(output)


def _same(one: Imatrix, other: Imatrix) -> None:
    import numpy as np

    assert one.entries.keys() == other.entries.keys() != set()
    for name, entry in one.entries.items():
        assert np.allclose(entry.sums, other.entries[name].sums, rtol=1e-5)
        assert (entry.counts == other.entries[name].counts).all()


def test_parts_add_up_to_one_run(text: Path, tmp_path: Path) -> None:
    at_once = _make(_job(text, every=100), tmp_path / "one.gguf")
    seen: list[tuple[int, int]] = []
    parts = _make(_job(text), tmp_path / "parts.gguf", MakeHooks(progress=lambda *done: seen.append(done)))
    _same(at_once, parts)
    assert parts.chunk_count == 6
    assert seen == [(0, 6), (2, 6), (4, 6), (6, 6)]
    assert not list(tmp_path.glob("*.work"))


def test_a_run_that_was_stopped_goes_on_and_makes_nothing_twice(text: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stopped

    output = tmp_path / "out.gguf"
    with pytest.raises(Stopped):
        _make(_job(text), output, MakeHooks(progress=stop))
    (kept,) = (tmp_path / "out.gguf.work").iterdir()
    assert kept.name.endswith("-4.gguf")
    seen: list[tuple[int, int]] = []
    whole = _make(_job(text), output, MakeHooks(progress=lambda *done: seen.append(done)))
    assert seen == [(4, 6), (6, 6)]
    _same(whole, _make(_job(text), tmp_path / "unbroken.gguf"))


def test_the_parts_of_another_text_are_not_taken(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("things", "tales"))

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        _make(_job(other), tmp_path / "out.gguf", MakeHooks(progress=stop))
    _same(_make(_job(text), tmp_path / "out.gguf"), _make(_job(text), tmp_path / "unbroken.gguf"))


def test_a_text_that_is_shorter_ends_the_run_and_that_is_said(text: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    made = _make(_job(text, chunks=100_000, every=40), tmp_path / "out.gguf", MakeHooks(note=notes.append))
    assert made.chunk_count is not None
    assert 80 < made.chunk_count < 100_000
    assert len(notes) <= 1


def test_without_chunks_it_is_one_run_over_all(text: Path, tmp_path: Path) -> None:
    made = _make(_job(text, chunks=None), tmp_path / "out.gguf")
    assert made.chunk_count is not None
    assert made.chunk_count > 80


def test_of_ik_llama_cpp_it_is_one_run_and_batches_count_as_they_were(text: Path, tmp_path: Path) -> None:
    """Its own tool adds means of an earlier file to sums of tokens: what was collected before would weigh nothing."""
    engine, notes = str(make_fake_ik(tmp_path)), list[str]()
    job = ImatrixJob(model=MODEL, text=text, engine=engine, context=CONTEXT, chunks=6, every=2)
    made = _make(job, tmp_path / "out.gguf", MakeHooks(note=notes.append))
    assert (made.kind, made.chunk_count, made.chunk_size) == (ImatrixKind.GGUF, 6, CONTEXT)
    entry = made.entries[ENTRY]
    assert entry.counts.tolist() == [6 * CONTEXT]
    assert (entry.sums[0] / entry.counts[0])[:3].tolist() == [1, 2, 3]
    assert len(notes) == 1
    assert "one run over all chunks" in notes[0]


def test_what_the_tool_complains_of_is_told(text: Path, tmp_path: Path) -> None:
    text.write_text("short")
    with pytest.raises(ExecuteError, match="made no imatrix, and ended with 1"):
        _make(_job(text), tmp_path / "out.gguf")


def test_another_program_is_refused(text: Path, tmp_path: Path) -> None:
    job = replace(_job(text), engine=str(tool("llama-quantize")))
    with pytest.raises(PlanError, match="is not llama-imatrix by its name"):
        _make(job, tmp_path / "out.gguf")


def test_other_systems_are_refused_before_anything_is_made(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imatrix_making, "locked_folder", lambda folder: pytest.fail("Windows cannot lock folders"))
    monkeypatch.setattr(sys, "platform", "darwin")
    job = ImatrixJob(model=str(MODEL), text=text, engine="llama-imatrix", kind=ImatrixKind.GGUF)
    with pytest.raises(PlanError, match="only on Linux"), made_imatrix(job, tmp_path / "out.gguf"):
        pass


def test_the_command_writes_both_formats(text: Path, tmp_path: Path) -> None:
    words = ("imatrix", "make", MODEL, "--text", text, "--engine", tool("llama-imatrix"), "--ctx", CONTEXT)
    for name, kind in (("a.gguf", ImatrixKind.GGUF), ("a.dat", ImatrixKind.LEGACY)):
        done = run_gguftool(*words, "--chunks", 4, "--every", 2, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        made = open_imatrix(tmp_path / name)
        assert (made.kind, made.chunk_count) == (kind, 4)
    again = run_gguftool(*words, "-o", tmp_path / "a.gguf")
    assert again.returncode == 2
    assert b"--force" in again.stderr


def test_ctrl_c_leaves_no_engine_and_no_output(text: Path, tmp_path: Path) -> None:
    text.write_text(text.read_text() * 30)
    command = [sys.executable, "-m", "gguftool", "imatrix", "make", str(MODEL), "--text", str(text)]
    command += ["--engine", str(tool("llama-imatrix")), "--ctx", "64", "-o", str(tmp_path / "out.gguf")]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not _engines(tmp_path) and time.monotonic() < end:
            time.sleep(0.02)
        assert _engines(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not _engines(tmp_path)
    assert not (tmp_path / "out.gguf").exists()


def _engines(folder: Path) -> list[str]:
    """Processes with the folder on their command lines that are llama-imatrix."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"llama-imatrix") and any(str(folder).encode() in word for word in words):
            found.append(path.parent.name)
    return found


def test_the_model_and_the_text_are_no_outputs(text: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(MODEL.read_bytes())
    for output in (model, text):
        before = output.read_bytes()
        words = ("--text", text, "--engine", "llama-imatrix", "--to", "gguf", "--force", "-o", output)
        done = run_gguftool("imatrix", "make", model, *words)
        assert done.returncode == 2
        assert b"is an input" in done.stderr
        assert output.read_bytes() == before
