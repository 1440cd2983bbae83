"""The command line: help, exit codes, streams, signals."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gguftool
from tests.support import builders as b
from tests.support.command import commands, environment, one_error_line, run_gguftool
from tests.support.faults import tree
from tests.support.paths import FIXTURES, REPO

DEMO = FIXTURES / "demo.gguf"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.gguf").write_bytes(b.small_model())
    return tmp_path


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_and_every_option_is_explained(command: str) -> None:
    found = commands()[command]
    assert found.help
    assert found.help.split("\n")[0].endswith(".")
    unexplained = [
        option.name for option in found.params if option.name != "help" and not getattr(option, "help", None)
    ]
    assert not unexplained


def test_help_version_and_no_arguments() -> None:
    version = run_gguftool("--version")
    assert (version.returncode, version.stdout) == (0, f"gguftool {gguftool.__version__}\n".encode())
    assert run_gguftool("--cache", ".", "--version", "nonsense").stdout == version.stdout
    for args in (["--help"], ["-h"], []):
        done = run_gguftool(*args)
        assert all(command in (done.stdout + done.stderr).decode() for command in commands())
    assert run_gguftool("dump", "-h").returncode == 0


# --- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "dump in.gguf",
        "dump in.gguf --json --no-kv",
        "dump in.gguf --filter blk --array-limit 0",
        "dump in.gguf --key general.name",
        "split in.gguf out/m",
        "split in.gguf out/m --max-size 1.5kB --bundle-small 100 --tensor-first-split --align 64",
        "merge in.gguf -o out.gguf --no-sync",
        "merge in.gguf -o out.gguf --dry-run --json",
        "types",
        "types iq4_ks",
        "types --json",
    ],
)
def test_what_works_exits_0_and_says_nothing_on_stderr(folder: Path, line: str) -> None:
    done = run_gguftool(*shlex.split(line))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dump nowhere.gguf", "No such file"),
        ("dump .", "no key of that kind"),
        ("dump in.gguf --key nope", "no metadata key 'nope'"),
        ("dump hf://org/repo/x.gguf", "hf://"),
        ("types iq3_xs", "file type"),
        ("merge in.gguf -o in.gguf", "is an input"),
        ("merge in.gguf -o in.gguf --force", "is an input"),
        ("split in.gguf out/", "PREFIX"),
        ("merge in.gguf -o /dev/full", "not a regular file"),
        ("merge in.gguf -o .", "not a regular file"),
    ],
)
def test_trouble_exits_2_with_one_line(folder: Path, line: str, said: str) -> None:
    if line == "dump .":
        (folder / "in.gguf").unlink()
        said = "holds no"
    before = tree(folder)
    done = run_gguftool(*shlex.split(line))
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in one_error_line(done.stderr)
    assert tree(folder) == before


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "dump",
        "dump in.gguf --nonsense",
        "dump in.gguf --filter (",
        "dump in.gguf --filter a{99999999999}",
        "dump in.gguf --array-limit -1",
        "split in.gguf m --max-tensors 0",
        "split in.gguf m --max-size many",
        "split in.gguf m --max-size -1",
        f"split in.gguf m --max-size {'9' * 400}G",
        "split in.gguf m --max-size 1G --max-tensors 2",
        "split in.gguf m --align 48",
        "split in.gguf m --align 0",
        "split in.gguf m --align 2MiB",
        "merge in.gguf -o x.gguf --force-sizes maybe",
        "merge in.gguf",
    ],
)
def test_bad_usage_exits_2_without_a_traceback(folder: Path, line: str) -> None:
    before = tree(folder)
    done = run_gguftool(*shlex.split(line))
    assert done.returncode == 2, done.stderr
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert done.stderr
    assert tree(folder) == before


# --- dump ------------------------------------------------------------------------------------------------------------


def test_dump_shows_type_shape_offset_size_and_bits_per_weight() -> None:
    out = run_gguftool("dump", DEMO, "--no-kv").stdout.decode()
    line = next(line for line in out.splitlines() if "blk.1.ffn_down" in line)
    fields = line.split()
    data = DEMO.read_bytes()
    content = b.filler("blk.1.ffn_down.weight", 4608)[4:16]  # make.py changes the scales alone
    offset = data.index(content) - 4
    assert fields == ["19", "8,192", "256", "x", "32", "Q4_K", "4,608", "4.5", f"{offset:,}", "blk.1.ffn_down.weight"]
    assert "general.architecture" not in out


DUMPED = [path for path in FIXTURES.rglob("*.gguf") if path.parent.parent.name != "sets" or "-0000" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(str(path.relative_to(FIXTURES)) for path in DUMPED))
def test_every_fixture_dumps_as_text_and_as_valid_json(name: str) -> None:
    text = run_gguftool("dump", FIXTURES / name, "--this-file-only")
    report = json.loads(run_gguftool("dump", FIXTURES / name, "--this-file-only", "--json").stdout)
    assert text.returncode == 0
    assert f"{len(report['tensors'])} tensors" in text.stdout.decode()
    assert {"name", "type", "type_id", "dims", "nbytes", "bits_per_weight", "offset"} <= {
        key for tensor in report["tensors"] for key in tensor
    } or not report["tensors"]


def test_key_prints_the_bytes_of_a_string_and_nothing_else(tmp_path: Path) -> None:
    value = b"line\nno newline at the end \xff\x1b"
    kvs = (b.KV("k", b.STR, value), b.KV("n", b.U64, 2**64 - 1), b.KV("a", b.ARR, b.Array(b.STR, ["x", "y", "z"])))
    (tmp_path / "x.gguf").write_bytes(b.gguf(kvs))
    assert run_gguftool("dump", tmp_path / "x.gguf", "--key", "k").stdout == value
    assert run_gguftool("dump", tmp_path / "x.gguf", "--key", "n").stdout == b"18446744073709551615\n"
    limited = run_gguftool("dump", tmp_path / "x.gguf", "--key", "a", "--array-limit", "2")
    assert json.loads(limited.stdout) == ["x", "y"]


def on_a_terminal(*args: object) -> bytes:
    """Run with a terminal as standard output, and return what it got."""
    ours, theirs = pty.openpty()
    environ = {**environment(), "TERM": "xterm-256color", "COLUMNS": "200"}
    command = [sys.executable, "-m", "gguftool", *map(str, args)]
    run = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:
        pass  # how a terminal without writers says the end
    os.close(ours)
    assert run.wait() == 0
    return b"".join(parts)


def test_a_terminal_never_gets_a_raw_escape_of_the_file(tmp_path: Path) -> None:
    kvs = (b.KV("k\x1b]0;key\x07", b.STR, "line\n\x1b]0;value\x07[bold]"),)
    (tmp_path / "x.gguf").write_bytes(b.gguf(kvs, (b.tensor("\x1b]0;name\x07", "F32", (8,)),)))
    for args in ((), ("--key", "k\x1b]0;key\x07"), ("--json",)):
        assert b"\x1b]" not in on_a_terminal("dump", tmp_path / "x.gguf", *args)
    assert b"[bold]" in on_a_terminal("dump", tmp_path / "x.gguf")


def test_filter_leaves_the_numbers_of_the_whole_model() -> None:
    report = json.loads(run_gguftool("dump", DEMO, "--json", "--filter", r"ffn_down|rope").stdout)
    assert [tensor["index"] for tensor in report["tensors"]] == [10, 19]
    assert [kv["key"] for kv in report["metadata"]] == ["llama.rope.dimension_count", "llama.rope.freq_base"]


def test_array_limit_counts_what_it_left_out() -> None:
    report = json.loads(run_gguftool("dump", DEMO, "--json", "--array-limit", "1").stdout)
    tokens = next(kv for kv in report["metadata"] if kv["key"] == "tokenizer.ggml.tokens")
    assert (tokens["value"], tokens["count"], tokens["truncated"]) == (["<unk>"], 283, True)


# --- split and merge -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["", "--max-tensors 4", "--max-size 20kB --bundle-small 1kB", "--tensor-first-split"]
)
def test_the_main_job(folder: Path, options: str) -> None:
    assert run_gguftool("split", DEMO, "a/b/m", *shlex.split(options)).returncode == 0
    shards = sorted((folder / "a" / "b").iterdir())
    for spec in (shards[-1], "a/b", "a/b/m-*.gguf"):
        assert run_gguftool("merge", spec, "-o", "out.gguf", "--force").returncode == 0
        assert (folder / "out.gguf").read_bytes() == DEMO.read_bytes()
    assert run_gguftool("merge", *shards, "-o", "out2.gguf").returncode == 0
    assert (folder / "out2.gguf").read_bytes() == DEMO.read_bytes()


@pytest.mark.parametrize("line", ["split in.gguf new/m", "merge in.gguf -o new/out.gguf"])
def test_dry_run_writes_nothing_and_tells_the_truth(folder: Path, line: str) -> None:
    before = tree(folder)
    text = run_gguftool(*shlex.split(line), "--dry-run")
    preview = json.loads(run_gguftool(*shlex.split(line), "--dry-run", "--json").stdout)
    assert (text.returncode, tree(folder)) == (0, before)
    assert b"nothing was written" in text.stdout
    receipt = json.loads(run_gguftool(*shlex.split(line), "--json").stdout)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in (folder / "new").iterdir()}
    assert dict(preview["outputs"]) == sizes
    assert sum(sizes.values()) == preview["bytes_written"] == receipt["nbytes"]
    assert sorted(receipt["paths"]) == sorted(sizes)


def test_force_over_an_old_set_replaces_all_of_it(folder: Path) -> None:
    (folder / "other.gguf").write_bytes(b.small_model(b.KV("new", b.U8, 1)))
    assert run_gguftool("split", "in.gguf", "m").returncode == 0
    before = tree(folder)
    assert run_gguftool("split", "other.gguf", "m").returncode == 2
    assert tree(folder) == before
    assert run_gguftool("split", "other.gguf", "m", "--force").returncode == 0
    assert tree(folder).keys() == before.keys()
    assert run_gguftool("merge", "m-00002-of-00007.gguf", "-o", "out.gguf").returncode == 0
    assert (folder / "out.gguf").read_bytes() == (folder / "other.gguf").read_bytes()


# --- streams ---------------------------------------------------------------------------------------------------------


def shell(line: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which `gguftool` means this checkout's."""
    start = f'gguftool() {{ {shlex.quote(sys.executable)} -m gguftool "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", start + line], capture_output=True, check=False, timeout=60, env=environment(), **options
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("args", ["dump big.gguf", "dump big.gguf --json", "dump big.gguf --key tokenizer.ggml.tokens"])
@pytest.mark.parametrize("size", [1, 60_000])
def test_a_reader_that_goes_away_is_no_error_of_ours(folder: Path, args: str, size: int) -> None:
    (folder / "big.gguf").write_bytes(b.gguf(b.llama_kvs(vocabulary=size), b.llama_tensors()))
    done = shell(f"gguftool {args} | true; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == b""
    assert done.stdout.strip() in (b"0", b"141")
    done = shell(f"gguftool {args} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == b""
    assert done.stdout.strip() in (b"0", b"141")


@pytest.mark.slow
@pytest.mark.parametrize(
    "args", ["dump big.gguf", "dump big.gguf --json", "dump big.gguf --key tokenizer.ggml.tokens", "types"]
)
@pytest.mark.parametrize("size", [1, 60_000])
@pytest.mark.parametrize("target", [">/dev/full", ">&-"])
def test_data_that_cannot_be_written_is_trouble(folder: Path, args: str, size: int, target: str) -> None:
    (folder / "big.gguf").write_bytes(b.gguf(b.llama_kvs(vocabulary=size), b.llama_tensors()))
    done = shell(f"gguftool {args} {target}")
    assert done.returncode == 2
    assert "standard output" in one_error_line(done.stderr)


@pytest.mark.parametrize("args", ["--version", "--help", "merge --help"])
def test_help_that_cannot_be_written_is_trouble(folder: Path, args: str) -> None:
    done = shell(f"gguftool {args} >/dev/full")
    assert done.returncode == 2
    assert "standard output" in one_error_line(done.stderr)


@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("more", ["", "--json"])
def test_a_writer_succeeds_although_nobody_reads_its_receipt(folder: Path, buffering: str, more: str) -> None:
    done = shell(
        f"(sleep 0.2; export LANG=C {buffering}; gguftool merge in.gguf -o out.gguf {more}; echo $? >&2) | true"
    )
    *_, code = done.stderr.split()
    assert (code, b"everything was written" in done.stderr) == (b"0", True)
    assert (folder / "out.gguf").read_bytes() == (folder / "in.gguf").read_bytes()


def test_closed_streams_do_no_harm_to_what_is_written(folder: Path) -> None:
    for number, closed in enumerate((">&-", "2>&-", "<&-", ">&- 2>&- <&-")):
        done = shell(f"gguftool merge in.gguf -o out{number}.gguf {closed}")
        assert b"Traceback" not in done.stderr
        assert (folder / f"out{number}.gguf").read_bytes() == (folder / "in.gguf").read_bytes()


def test_an_error_without_standard_error_does_not_get_into_the_data(folder: Path) -> None:
    done = shell("gguftool dump nowhere.gguf 2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


# --- signals ---------------------------------------------------------------------------------------------------------

# The command line, but the copying stops for long once a part file is there, and says so; in the thread that hears
# signals, the others are slow.
SLOW = """
import os, sys, threading, time
preadv = os.preadv
def slow(*args):
    if threading.current_thread() is threading.main_thread():
        print("copying", flush=True)
        time.sleep(60)
    time.sleep(0.1)
    return preadv(*args)
os.preadv = slow
from gguftool.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "line", ["merge in.gguf -o new/out.gguf", "merge in.gguf -o in2.gguf --force", "split in.gguf new/m"]
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_leave_nothing_behind(folder: Path, line: str, number: int, code: int) -> None:
    (folder / "in2.gguf").write_bytes(b"old")
    before = tree(folder)
    command = [sys.executable, "-c", SLOW, *shlex.split(line)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"copying\n"
        assert tree(folder) != before, "a part file is there"
        run.send_signal(number)
        _, stderr = run.communicate(timeout=20)
    assert run.returncode == code
    note, error = stderr.splitlines(keepends=True)
    assert note.startswith(b"note: nothing to resume")
    assert signal.Signals(number).name in one_error_line(error)
    assert tree(folder) == before


def test_kill_leaves_no_final_name_and_the_next_run_succeeds(folder: Path) -> None:
    command = [sys.executable, "-c", SLOW, "split", "in.gguf", "m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.kill()
    assert not list(folder.glob("m-*"))
    assert run_gguftool("split", "in.gguf", "m").returncode == 0
    assert run_gguftool("merge", "m-00001-of-00007.gguf", "-o", "out.gguf").returncode == 0
    assert (folder / "out.gguf").read_bytes() == (folder / "in.gguf").read_bytes()
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []


# --- start-up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["--help", f"dump {shlex.quote(str(DEMO))}", f"dump {shlex.quote(str(DEMO))} --json", "types"]
)
def test_start_up_pays_for_no_heavy_import(line: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gguftool", *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, check=True, env=environment(), cwd=REPO)
    loaded = imported(done.stderr)
    assert not loaded & {"numpy", "gguf", "safetensors", "huggingface_hub", "fsspec", "jinja2", "tqdm", "rich"}
    assert not loaded & {"ssl", "urllib3", "http"}  # a local model needs no network
    assert not loaded & {"ctypes", "concurrent.futures", "logging"}
    assert ("json" in loaded) == ("--json" in line)


def imported(said: bytes) -> set[str]:
    """The modules that ``-X importtime`` names."""
    found = set(re.findall(r"\| +([\w.]+)$", said.decode(), re.MULTILINE))
    assert "gguftool.cli.app" in found
    return found


@pytest.mark.parametrize("line", ["swap in.gguf --from in.gguf --tensor blk -o out.gguf", "merge in.gguf -o out.gguf"])
def test_what_a_writer_does_not_do_is_not_loaded(folder: Path, line: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gguftool", *shlex.split(line)]
    loaded = imported(subprocess.run(command, capture_output=True, check=True, env=environment()).stderr)
    assert not loaded & {"json", "ctypes", "concurrent.futures", "logging", "gguftool.format.recipe"}
    unused = {
        "execute.output_digests",
        "execute.consume",
        "execute.consume_journal",
        "execute.in_place",
        "sources.http",
    }
    assert not loaded & {f"gguftool.storage.{name}" for name in unused}


def test_no_progress_bar_without_a_terminal(folder: Path) -> None:
    done = run_gguftool("merge", "in.gguf", "-o", "out.gguf")
    assert done.stderr == b""


def test_a_reader_of_standard_error_that_goes_away_stops_nothing(tmp_path: Path) -> None:
    done = run_gguftool(
        "split",
        FIXTURES / "demo.gguf",
        tmp_path / "s",
        "--max-size",
        "10",
        stderr=_closed_pipe(),
        stdout=subprocess.PIPE,
    )
    assert done.returncode == 0
    assert len(list(tmp_path.glob("s-*.gguf"))) > 20
    assert run_gguftool("dump", tmp_path / "nothing.gguf", stderr=_closed_pipe()).returncode == 2


def _closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write
