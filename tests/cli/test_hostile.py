"""Files from strangers, through the command line: one line, exit 2, little time and memory, no raw escapes."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest

from gguftool.errors import FormatError
from gguftool.format.cursor import NeedMoreData
from gguftool.format.header import parse
from gguftool.model.opening import open_model
from tests.support import builders as b
from tests.support.command import environment, one_error_line, run_gguftool
from tests.support.hostile_heads import HOSTILE
from tests.support.paths import FIXTURES

# Runs the command line and, at exit, notes its peak memory (KiB) and processor time: other processes do not count.
DRIVER = """
import atexit, sys, time
report = sys.argv.pop(1)
def note():
    status = open("/proc/self/status").read()
    open(report, "w").write(f"{status.split('VmHWM:')[1].split()[0]} {time.process_time()}")
atexit.register(note)
from gguftool.cli.main import main
main()
"""


class Measured(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes
    peak: int
    seconds: float


def measured(folder: Path, *args: object) -> Measured:
    report = folder / "measured"
    command = [sys.executable, "-c", DRIVER, str(report), *map(str, args)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=environment(), cwd=folder)
    peak, seconds = report.read_text().split()
    return Measured(done.returncode, done.stdout, done.stderr, int(peak) << 10, float(seconds))


@functools.cache
def seconds_of_a_sound_file() -> float:
    """The processor time of `dump` of a small model: mostly that of the start."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.gguf").write_bytes(b.small_model())
        done = measured(Path(folder), "dump", "x.gguf")
    assert done.returncode == 0
    return done.seconds


def assert_refused(done: Measured, name: str) -> str:
    line = one_error_line(done.stderr)
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith(f"gguftool: error: {name} ("), line
    assert re.search(r"\((metadata KV|tensor info|magic|version|number of|counts)[^)]*, offset [0-9,]+\)", line), line
    assert done.peak < 100 << 20
    assert done.seconds < 5 * seconds_of_a_sound_file()
    return line


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_head_is_one_line_in_no_time(case: str, tmp_path: Path) -> None:
    data, where = HOSTILE[case]
    (tmp_path / "x.gguf").write_bytes(data)
    assert f"x.gguf ({where}" in assert_refused(measured(tmp_path, "dump", "x.gguf"), "x.gguf")


@pytest.mark.parametrize(
    "command", [["dump", "x.gguf"], ["merge", "x.gguf", "-o", "out.gguf"], ["split", "x.gguf", "out/m"]]
)
@pytest.mark.parametrize("offset", [1 << 20, 1 << 40, (1 << 64) - 32])
def test_data_outside_the_file_is_refused_by_every_command(command: list[str], offset: int, tmp_path: Path) -> None:
    head = b.head(b.llama_kvs(), [b.Tensor("x", (1 << 20,), 0, b"", offset)])
    (tmp_path / "x.gguf").write_bytes(head + bytes(4096))
    assert "tensor info 0, 'x'" in assert_refused(measured(tmp_path, *command), "x.gguf")
    assert sorted(os.listdir(tmp_path)) == ["measured", "x.gguf"]


@pytest.mark.parametrize("cut", [0, 3, 8, 23, 24, 100, -1])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b.small_model()[:cut])
    assert_refused(measured(tmp_path, "dump", "x.gguf"), "x.gguf")


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("order", "<>")
def test_truncated_at_every_byte(version: int, order: str, tmp_path: Path) -> None:
    data = b.small_model(version=version, order=order)
    length = parse(data, len(data)).length
    for size in range(length):
        with pytest.raises(FormatError) as error:
            parse(data[:size], size)
        assert error.value.where
        assert error.value.offset is not None
        with pytest.raises(NeedMoreData):
            parse(data[:size], len(data))
    path = tmp_path / "x.gguf"
    for size in range(length, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match=r"x\.gguf \(tensor info [0-9]+, '[a-z0-9._]+', offset [0-9,]+\)"):
            open_model(path)


def test_a_large_file_that_claims_much_is_read_within_its_size(tmp_path: Path) -> None:
    """A sparse file of 1 TiB, so that the claims cannot be refused by the file's size alone."""
    with (tmp_path / "x.gguf").open("wb") as file:
        file.write(b.head(n_tensors=1 << 20, n_kvs=1 << 16))
        file.truncate(1 << 40)
    done = measured(tmp_path, "dump", "x.gguf")
    assert done.returncode == 2
    assert "is used twice" in one_error_line(done.stderr)
    assert done.peak < 200 << 20


def test_a_string_as_large_as_the_limit_of_heads_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "x.gguf").open("wb") as file:
        file.write(b.head(n_kvs=1) + b.string("k") + (8).to_bytes(4, "little") + (1 << 38).to_bytes(8, "little"))
        file.truncate(1 << 40)
    assert "heads are limited to" in assert_refused(measured(tmp_path, "dump", "x.gguf"), "x.gguf")


# --- text from files -------------------------------------------------------------------------------------------------

NASTY = {
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "c1": "\x9b31m\x85\x90",
    "newlines": "line\nbreak\r\ttab\v\f",
    "bidi": "\u202etxet\u2066\u200f\u061c",
    "invisible": "\u200b\ufeff\u2028\u2029\u00ad",
    "markup": "[bold]b[/bold] |pipe| `tick` <b>html</b> ![i](http://x)",
    "long": "n" * 4096,
    "nul": "a\0b",
    "tags": "\U000e0041\ue000",
}
FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def nasty_model(text: str | bytes) -> bytes:
    kvs = (
        *b.llama_kvs(),
        b.KV(text, b.STR, text),
        b.KV("list", b.ARR, b.Array(b.STR, [text, text])),
        b.KV("nested", b.ARR, b.Array(b.ARR, [b.Array(b.STR, [text])])),
        b.KV(text, b.STR, "again"),
    )
    return b.gguf(kvs, (b.tensor(text, "F32", (8,)), b.Tensor("unknown", (8,), 999, bytes(32))))


def assert_tame(output: bytes, allowed: str = "\n") -> None:
    text = output.decode("utf-8")  # strictly: no invalid bytes either
    raw = {char for char in text if unicodedata.category(char) in FORBIDDEN} - set(allowed)
    assert not raw, sorted(map(ascii, raw))


@pytest.mark.slow
@pytest.mark.parametrize("text", [*NASTY.values(), b"\xff\xfe\x80", b"ok\xc3\x28"], ids=[*NASTY, "invalid", "half"])
def test_no_text_of_a_file_reaches_a_terminal_raw(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(nasty_model(text))
    plain, as_json = run_gguftool("dump", path), run_gguftool("dump", path, "--json")
    assert (plain.returncode, as_json.returncode) == (0, 0), (plain.stderr, as_json.stderr)
    assert_tame(plain.stdout)
    assert max(map(len, plain.stdout.decode().splitlines())) < 10_000
    assert_tame(as_json.stdout)
    report = json.loads(as_json.stdout)
    if isinstance(text, str):
        assert report["tensors"][0]["name"] == text
        assert report["metadata"][-1]["key"] == text
    else:
        assert report["tensors"][0]["name"].keys() == {"b64"}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_no_text_of_a_file_acts_in_markdown_csv_or_a_terminal(text: str) -> None:
    from gguftool.render.table import Table, columns, render_csv, render_markdown, render_text

    table = Table(title=text, columns=columns("a", ">b"), rows=((text, "1"), ("x", text)))
    markdown = render_markdown(table)
    assert_tame(markdown.encode())
    lines = markdown.splitlines()
    assert len(lines) == 6, "a cell may not start a line of its own"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines[2:])
    assert "<b>" not in markdown.replace("\\<", "")
    assert_tame(render_csv(table).encode())
    for width in (40, 100):
        assert_tame(render_text(table, width).encode())


@pytest.mark.slow
@pytest.mark.parametrize("text", [*NASTY.values(), b"\xff\xfe"], ids=[*NASTY, "invalid"])
def test_no_text_of_a_file_reaches_a_terminal_raw_in_errors_and_plans(text: str | bytes, tmp_path: Path) -> None:
    twice = b.tensor(text, "F32", (8,))
    (tmp_path / "twice.gguf").write_bytes(b.gguf((), (twice, twice)))
    doubtful = (b.Tensor(text, (8,), 0, bytes(96)), b.tensor("last", "F32", (8,)))
    (tmp_path / "doubtful.gguf").write_bytes(b.gguf((), doubtful))
    for name in ("twice", "doubtful"):
        done = run_gguftool("merge", tmp_path / f"{name}.gguf", "-o", tmp_path / "out.gguf", "--dry-run")
        assert done.returncode == 2
        assert len(one_error_line(done.stderr)) < 3000
        assert_tame(done.stderr)


def test_a_file_name_that_acts_on_a_terminal_is_escaped_too(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31mred\n.gguf"
    path.write_bytes(b.small_model())
    for done in (run_gguftool("dump", path), run_gguftool("split", path, tmp_path / "\x1b]0;x\x07m", "--dry-run")):
        assert done.returncode == 0
        assert_tame(done.stdout + done.stderr)
    done = run_gguftool("dump", path.with_name("\x1b[2J.gguf"))
    assert_tame(done.stderr)
    assert "\\x1b[2J" in one_error_line(done.stderr)


@pytest.mark.parametrize("environ", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "LANG": "C"}])
def test_odd_names_are_shown_whatever_the_terminal_encodes(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    for path in (FIXTURES / "odd-names.gguf", FIXTURES / "demo.gguf"):
        for options in ((), ("--json",)):
            done = run_gguftool("dump", path, *options)
            assert (done.returncode, done.stderr) == (0, b"")


def test_numbers_that_json_has_no_word_for_are_strings(tmp_path: Path) -> None:
    kvs = (
        b.KV("nan", b.F32, float("nan")),
        b.KV("inf", b.F64, float("inf")),
        b.KV("list", b.ARR, b.Array(b.F32, [float("-inf"), 1.0])),
        b.KV("big", b.U64, 2**64 - 1),
    )
    (tmp_path / "x.gguf").write_bytes(b.gguf(kvs))
    done = run_gguftool("dump", tmp_path / "x.gguf", "--json")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    report = json.loads(done.stdout, parse_constant=refuse)
    assert [kv["value"] for kv in report["metadata"]] == ["nan", "inf", ["-inf", 1.0], 2**64 - 1]


FORMULA = re.compile(r"[=+@-]")
A_NUMBER = re.compile(r"[+-]?([0-9.]+(e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)"])
def test_no_text_of_a_file_is_a_formula_in_csv(text: str, tmp_path: Path) -> None:
    old, new, matrix = (tmp_path / name for name in ("old.gguf", "new.gguf", "imatrix.gguf"))
    kvs = b.KV(text, b.STR, text), b.KV("general.architecture", b.STR, text)
    old.write_bytes(b.gguf(kvs, (b.tensor(text, "F32", (8,)),)))
    new.write_bytes(b.gguf((b.KV(text, b.I32, -3),), (b.tensor(text, "F16", (8,)),)))
    sums = b.Tensor(f"{text}.in_sum2", (8,), 0, struct.pack("<8f", *[1.0] * 8))
    counts = b.Tensor(f"{text}.counts", (1,), 0, struct.pack("<f", 1.0))
    matrix.write_bytes(b.gguf((b.KV("general.type", b.STR, "imatrix"),), (sums, counts)))
    for words in (
        ("dump", old),
        ("dump", "--no-tensors", old),
        ("dump", "--no-tensors", new),
        ("report", "--by", "tensor", old),
        ("diff", old, new),
        ("imatrix", "show", matrix),
    ):
        done = run_gguftool(*words, "--csv")
        cells = [cell for row in csv.reader(done.stdout.decode().splitlines()) for cell in row]
        assert f"'{text}" in cells, done.stderr
        assert all(A_NUMBER.fullmatch(cell) for cell in cells if FORMULA.match(cell))
