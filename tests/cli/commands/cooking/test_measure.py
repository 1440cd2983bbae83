"""The command `measure`: options, previews, exit codes, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command import environment, one_error_line, run_gguftool
from tests.support.engine_tools import tool
from tests.support.fake_perplexity import make_fake
from tests.support.faults import tree
from tests.support.measure_cases import MODEL, lines_of
from tests.support.paths import FIXTURES
from tests.support.rude_server import RudeServer

TEXT = b"It was a bright cold day in April, and the clocks were striking thirteen. " * 30


def words(folder: Path, mode: str = "ok", engine: Path | None = None) -> list[str]:
    """A command line that measures the four tensors of one attention."""
    (folder / "text.txt").write_bytes(TEXT)
    path = engine or make_fake(folder / mode, mode)
    common = ["--ctx", "128", "--chunks", "2", "--types", "q4_0", "--tensors", r"blk\.0\.attn_"]
    return ["measure", str(MODEL), "--text", str(folder / "text.txt"), "--engine", str(path), *common]


def test_it_measures_and_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = run_gguftool(*words(tmp_path), "-o", output)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{output}: 5 lines written\n"
    assert [line["kind"] for line in lines_of(output)] == ["floor", *["kld"] * 4]
    again = run_gguftool(*words(tmp_path), "-o", output, "--json")
    assert json.loads(again.stdout) == {
        "output": str(output),
        "written": 0,
        "skipped": 4,
        "failed": [],
        "remarks": [],
    }


def test_a_dry_run_tells_what_it_takes_and_makes_nothing(tmp_path: Path) -> None:
    line = words(tmp_path)
    before = tree(tmp_path)
    done = run_gguftool(*line, "-o", tmp_path / "out.jsonl", "--dry-run")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "4 to measure" in text
    assert f"{MODEL.stat().st_size:,} bytes of scratch copies" in text
    assert "about" in text
    plan = json.loads(run_gguftool(*line, "-o", tmp_path / "out.jsonl", "--dry-run", "--json").stdout)
    assert len(plan["tasks"]) == 4
    assert tree(tmp_path) == before


def test_an_engine_that_fails_is_exit_2(tmp_path: Path) -> None:
    done = run_gguftool(*words(tmp_path, "nan"), "-o", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert b"3 measurements in a row failed" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--types", "q99"), "not a type of weights"),
        (("--group", "roles"), "REGEX=NAME"),
        (("--tensors", "(a*)*"), "'(a*)*'"),
        (("--tensors", "no_such_tensor"), "matches no tensor"),
        (("--engine-options", "'"), "--engine-options"),
        (("--engine", "/no/such/llama-perplexity"), "no such program"),
        (("--errors",), "--errors runs no engine: leave out --text"),
        (("--jobs", "2", "--scheduler", "x:1"), "exclude each other"),
    ],
)
def test_bad_usage_is_one_error_and_exit_2(tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    done = run_gguftool(*words(tmp_path), *more, "-o", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert not (tmp_path / "out.jsonl").exists()


def test_the_ways_out_that_errors_name_work(tmp_path: Path) -> None:
    with RudeServer({"m.gguf": MODEL.read_bytes()}) as server:
        line = words(tmp_path)
        line[1] = server.url("honest", "m.gguf")
        error = one_error_line(run_gguftool(*line, "-o", tmp_path / "out.jsonl", cwd=tmp_path).stderr)
        command = error.split("'")[1].split()
        assert command[:2] == ["gguftool", "fetch"]
        assert run_gguftool(*command[1:], cwd=tmp_path).returncode == 0
        assert (tmp_path / "m.gguf").read_bytes() == MODEL.read_bytes()
    error = one_error_line(run_gguftool(*words(tmp_path), "--types", "q99", "-o", tmp_path / "out.jsonl").stderr)
    assert "'gguftool types'" in error
    assert run_gguftool("types").returncode == 0


def test_without_text_or_types_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run_gguftool("measure", MODEL, "--types", "q4_0", "-o", tmp_path / "out.jsonl")
    assert (done.returncode, b"give --text FILE and --engine PATH" in done.stderr) == (2, True)
    line = words(tmp_path)
    at = line.index("--types")
    done = run_gguftool(*line[:at], *line[at + 2 :], "-o", tmp_path / "out.jsonl")
    assert (done.returncode, b"give --types" in done.stderr) == (2, True)


def test_the_error_table_needs_no_engine(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = run_gguftool("measure", MODEL, "--errors", "--types", "q4_0,q8_0", "--tensors", "attn_v", "-o", output)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [(line["kind"], line["type"]) for line in lines_of(output)] == [("error", "q4_0"), ("error", "q8_0")] * 2
    line = one_error_line(run_gguftool("measure", MODEL, "--errors", "-o", output).stderr)
    assert "give --types, or --quants MODEL" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_engine_and_leaves_lines_and_logits(tmp_path: Path, number: signal.Signals) -> None:
    output, folder = tmp_path / "out.jsonl", tmp_path / "out.jsonl.work"
    command = [sys.executable, "-m", "gguftool", *words(tmp_path, "hang"), "-o", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    deadline = time.monotonic() + 60
    while not _sleeps(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in stderr
    assert [line["kind"] for line in lines_of(output)] == ["floor"]
    assert set(tree(folder)) == {"logits", "logits.json"}
    assert not _engines(folder)
    # The next run goes on, with the logits that are there.
    plan = run_gguftool(*words(tmp_path, "hang"), "-o", output, "--dry-run", "--json")
    assert json.loads(plan.stdout)["floor_is_there"]


def _engines(folder: Path) -> list[str]:
    """Command lines of processes that use `folder`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(str(folder)) in command:
                found.append(command.decode("utf-8", "replace"))
    return found


def _sleeps(folder: Path) -> bool:
    """Whether an engine is at work on the scratch copy."""
    return any("scratch-0" in command and "--kl-divergence" in command for command in _engines(folder))


@pytest.mark.e2e
def test_a_real_engine_measures_the_tiny_model(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    line = words(tmp_path, engine=tool("llama-perplexity"))
    more = ("--types", "q2_K", "--types", "q8_0", "-o", output)
    done = run_gguftool(*line, *more, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    floor, *lines = lines_of(output)
    assert abs(floor["kld"]) <= 2e-6
    assert len(lines) == 12
    by_type = {kind: [line["kld"] for line in lines if line["type"] == kind] for kind in ("q2_K", "q4_0", "q8_0")}
    assert sum(by_type["q2_K"]) > sum(by_type["q4_0"]) > sum(by_type["q8_0"]) > 0
    # Without some of its lines it measures these again, and gets the same numbers.
    wanted = output.read_bytes()
    output.write_bytes(b"".join(wanted.splitlines(keepends=True)[:9]) + b'{"kind": "kld", "gro')
    done = run_gguftool(*line, *more, timeout=300)
    assert done.returncode == 0
    assert output.read_bytes() == wanted
    assert not (tmp_path / "out.jsonl.work").exists()


def test_a_file_that_measure_did_not_write_stays_as_it_is(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes((FIXTURES / "mix" / "tiny-BF16.gguf").read_bytes())
    before = model.read_bytes()
    assert b"\n" not in before
    done = run_gguftool("measure", model, "--errors", "--types", "q8_0", "-o", model)
    assert done.returncode == 2
    assert "give another file" in one_error_line(done.stderr)
    assert model.read_bytes() == before
