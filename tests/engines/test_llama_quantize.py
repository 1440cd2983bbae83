"""Running an installed llama-quantize: how it is found, its command line, and how it may fail."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gguftool.engines.llama_quantize import LlamaQuantizeRun, command_line, find_llama_quantize, run_llama_quantize
from gguftool.errors import ExecuteError, PlanError
from tests.support.command import environment


def program(folder: Path, body: str) -> Path:
    path = folder / "llama-quantize"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run_of(tool: Path, *rules: str, engine: str = "llama.cpp", **options: object) -> LlamaQuantizeRun:
    folder = tool.parent
    return LlamaQuantizeRun(
        tool=tool,
        engine=engine,
        source=folder / "source.gguf",
        target=folder / "made.gguf",
        rules=rules,
        **options,  # type: ignore[arg-type]
    )


def test_a_program_is_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = program(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_llama_quantize("llama-quantize") == find_llama_quantize(str(tool))
    assert find_llama_quantize(str(tool)).path == tool.resolve()


def test_its_identity_changes_when_the_program_does(tmp_path: Path) -> None:
    tool = program(tmp_path, "exit 0")
    before = find_llama_quantize(str(tool)).identity
    assert find_llama_quantize(str(tool)).identity == before
    os.utime(tool, ns=(0, 0))
    assert find_llama_quantize(str(tool)).identity != before


@pytest.mark.parametrize("exists", [True, False], ids=["not executable", "missing"])
def test_what_cannot_be_run_is_refused(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "llama-quantize"
    if exists:
        path.write_text("#!/bin/sh\n")
    with pytest.raises(PlanError, match="no such program, or it is not executable"):
        find_llama_quantize(str(path))


@pytest.mark.parametrize(
    ("engine", "rules"),
    [
        ("llama.cpp", ["--tensor-type", "^q4_K\\.=q4_K", "--tensor-type", "^q8_0\\.=q8_0"]),
        ("ik_llama.cpp", ["--custom-q", "^q4_K\\.=q4_K,^q8_0\\.=q8_0"]),
    ],
)
def test_rules_are_spelled_as_the_engine_takes_them(tmp_path: Path, engine: str, rules: list[str]) -> None:
    run = run_of(tmp_path / "tool", "^q4_K\\.=q4_K", "^q8_0\\.=q8_0", engine=engine, threads=3)
    files = [str(tmp_path / "source.gguf"), str(tmp_path / "made.gguf")]
    assert command_line(run) == [str(tmp_path / "tool"), *rules, *files, "Q8_0", "3"]


def test_options_come_before_the_files(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tool", "a=q4_K", imatrix=tmp_path / "weights.dat", requantize=True)
    words = command_line(run)
    assert words[1:4] == ["--allow-requantize", "--imatrix", str(tmp_path / "weights.dat")]
    assert words[-1] == str(os.cpu_count() or 1)


def test_it_gets_the_command_line_and_no_input(tmp_path: Path) -> None:
    """Standard input is empty: a program that asks a question must not wait for a person."""
    tool = program(tmp_path, f'cat; echo "$@" > {tmp_path}/words; cp {tmp_path}/words {tmp_path}/made.gguf')
    run = run_of(tool, "a=q4_K", threads=2)
    run_llama_quantize(run)
    assert (tmp_path / "words").read_text().split() == command_line(run)[1:]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo loading; echo 'it went wrong' >&2; exit 3", "ended with 3; it said last: loading | it went wrong"),
        ("exit 4", "ended with 4; it said last: nothing"),
        ("kill -9 $$", "was stopped by signal 9"),
        ("exit 0", "ended without an error but wrote nothing"),
    ],
)
def test_a_failure_is_an_error_with_its_last_words(tmp_path: Path, body: str, said: str) -> None:
    tool = program(tmp_path, body)
    with pytest.raises(ExecuteError) as caught:
        run_llama_quantize(run_of(tool, "a=q4_K"))
    assert said in str(caught.value)
    assert caught.value.source == str(tool)


def test_what_is_no_program_is_an_error_that_names_it(tmp_path: Path) -> None:
    tool = program(tmp_path, "exit 0")
    tool.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(ExecuteError, match="cannot be run") as caught:
        run_llama_quantize(run_of(tool, "a=q4_K"))
    assert caught.value.source == str(tool)


def test_control_characters_of_its_log_do_not_reach_the_terminal(tmp_path: Path) -> None:
    tool = program(tmp_path, r"printf 'red \033[31m text\n'; exit 1")
    with pytest.raises(ExecuteError) as caught:
        run_llama_quantize(run_of(tool, "a=q4_K"))
    assert "\x1b" not in str(caught.value)
    assert "red" in str(caught.value)


def test_a_flood_of_output_is_not_read_into_memory(tmp_path: Path) -> None:
    tool = program(tmp_path, "head -c 400000000 /dev/zero; echo; echo at the end; exit 1")
    script = tmp_path / "limited.py"
    script.write_text(
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({300 << 20}, resource.RLIM_INFINITY))\n"
        "from pathlib import Path\n"
        "from gguftool.engines.llama_quantize import LlamaQuantizeRun, run_llama_quantize\n"
        f"here = Path({str(tmp_path)!r})\n"
        f"run = LlamaQuantizeRun(tool=Path({str(tool)!r}), engine='llama.cpp', source=here / 'source.gguf',\n"
        "    target=here / 'made.gguf', rules=('a=q4_K',))\n"
        "run_llama_quantize(run)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(), capture_output=True, timeout=60, check=False
    )
    last = done.stderr.decode().strip().splitlines()[-1]
    assert last.startswith("gguftool.errors.ExecuteError"), done.stderr[-300:]
    assert last.endswith("| at the end")
    assert len(last) < 2000
