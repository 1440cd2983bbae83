"""A run of `measure` is killed at every system call, or ends by an error of one; the next run makes the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.cooking.measuring import bench
from gguftool.engines import llama_perplexity
from gguftool.engines.child import Ending, Limits, Stop
from gguftool.engines.log import Log
from gguftool.engines.probe import Kind, LoadEngine
from gguftool.errors import GGUFToolError
from tests.support.fake_perplexity import respond
from tests.support.faults import tree
from tests.support.measure_cases import lines_of, make_setup, measuring, selection
from tests.support.syscalls import Injector, count_calls, killed_at

_CHANGING = ("open", "write", "pwrite", "ftruncate", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")


@pytest.fixture(autouse=True)
def engine_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the fake engine in this process: a thousand processes would take minutes."""

    def run_child(words: list[str], folder: Path, limits: Limits, **options: object) -> Ending:
        status, text = respond("ok", words[1:])
        log = Log()
        log.add(text.encode())
        return Ending(stop=Stop.ITSELF, status=status, log=log, seconds=0.0, anonymous=0, mapped=False)

    engine = LoadEngine(kind=Kind.PERPLEXITY, engine="llama.cpp", version="7", path=Path(__file__))
    monkeypatch.setattr(llama_perplexity, "run_child", run_child)
    monkeypatch.setattr(bench, "find_perplexity", lambda name, folder: engine)


def run_in(folder: Path) -> None:
    setup = make_setup(folder)
    measuring(setup, folder / "out.jsonl", selection("q4_0", patterns=(r"blk\.0\.attn_[kv]",))).run()


def unbroken(tmp_path: Path) -> tuple[bytes, list[str]]:
    """What a run without a fault writes, and its system calls."""
    (tmp_path / "whole").mkdir()
    run_in(tmp_path / "whole")  # once before, so that what is cached does not count
    (tmp_path / "whole" / "out.jsonl").unlink()
    calls = count_calls(lambda: run_in(tmp_path / "whole"))
    return (tmp_path / "whole" / "out.jsonl").read_bytes(), calls


def steps(calls: list[str]) -> list[int]:
    """Every call that changes something, and the one after it."""
    return sorted({at + more for at, name in enumerate(calls) if name in _CHANGING for more in (0, 1)})


@pytest.mark.slow
def test_killed_at_every_step_and_resumed_it_writes_the_same_file(tmp_path: Path) -> None:
    wanted, calls = unbroken(tmp_path)
    points, ended = steps(calls), 0
    assert len(points) > 100
    for at in points:
        folder = tmp_path / f"at-{at}"
        folder.mkdir()
        ended += not killed_at(at, lambda folder=folder: run_in(folder))  # type: ignore[misc]
        left = folder / "out.jsonl"
        before = left.read_bytes() if left.exists() else b""
        assert wanted.startswith(before), at
        run_in(folder)
        assert left.read_bytes() == wanted, at
        assert [name for name in tree(folder) if "work" in name or "gguftool" in name] == [], at
    assert ended <= 3  # a run that finds something cached makes a few calls less


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("write", "pwrite", "ftruncate", "fsync", "replace") for kind in ("ENOSPC", "EIO")),
        ("write", "short"),
        ("pwrite", "short"),
    ],
)
def test_a_call_that_fails_loses_no_line_that_was_written(tmp_path: Path, name: str, kind: str) -> None:
    wanted, calls = unbroken(tmp_path)
    for nth in range(0, calls.count(name), 3):
        folder = tmp_path / f"{name}-{nth}"
        folder.mkdir()
        try:
            with Injector(name=name, nth=nth, kind=kind).active():
                run_in(folder)
        except (GGUFToolError, OSError):
            assert wanted.startswith((folder / "out.jsonl").read_bytes() if (folder / "out.jsonl").exists() else b"")
        run_in(folder)
        assert (folder / "out.jsonl").read_bytes() == wanted


def test_part_of_a_line_is_cut_off(tmp_path: Path) -> None:
    run_in(tmp_path)
    output = tmp_path / "out.jsonl"
    wanted = output.read_bytes()
    for kept in (len(wanted) - 1, len(wanted) - 40, wanted.index(b"\n") + 5, 3):
        output.write_bytes(wanted[:kept])
        run_in(tmp_path)
        assert output.read_bytes() == wanted
    assert [line["kind"] for line in lines_of(output)] == ["floor", "kld", "kld"]
