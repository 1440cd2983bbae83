"""Completion: what a shell gets for a line, from hostile files too, and that the scripts are for these shells."""

from __future__ import annotations

import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from gguftool.cli.app import app
from gguftool.cli.shared import completing
from tests.support import builders as b
from tests.support.command import environment, run_gguftool
from tests.support.paths import REPO

DEMO = str(REPO / "fixtures" / "demo.gguf")


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function from a line to its completions, as fish gets them."""

    def asked(line: str) -> list[str]:
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        completing.complete(typer.main.get_command(app), "complete_fish")
        out, err = capsys.readouterr()
        assert err == ""
        return [shown.partition("\t")[0] for shown in out.splitlines() if shown]

    return asked


@pytest.mark.parametrize(
    ("line", "among"),
    [
        ("gguftool mer", "merge"),
        ("gguftool recipe ch", "check"),
        ("gguftool help a", "alter"),
        ("gguftool help recipe ex", "expand"),
        ("gguftool merge a --no-re", "--no-resume"),
        ("gguftool merge a --engine ik", "ik_llama.cpp"),
        ("gguftool plan a --engine ik", "ik_llama.cpp"),
        ("gguftool types iq4_k", "iq4_ks"),
        ("gguftool types q4_", "q4_K"),
        ("gguftool types IQ4_K", "IQ4_KS"),
        ("gguftool plan a --types q4_0,q8", "q4_0,q8_0"),
        ("gguftool measure a --types q8", "q8_0"),
        ("gguftool plan a --lock attn_v=q6", "attn_v=q6_K"),
        ("gguftool split a b --force-sizes g", "gap"),
        (f"gguftool dump {DEMO} --key general.na", "general.name"),
        (f"gguftool edit {DEMO} --set general.na", "general.name="),
        (f"gguftool export {DEMO} --tensor blk.1.ffn_d", "blk.1.ffn_down.weight"),
        (f"gguftool swap gone.gguf --from {DEMO} --tensor output.w", "output.weight"),
        (f"gguftool quantize {DEMO} --tensor output.w", "output.weight"),
        (f"gguftool alter a={DEMO} --drop output.w", "output.weight"),
    ],
)
def test_a_word_is_completed(ask: Any, line: str, among: str) -> None:
    found = ask(line)
    assert among in found
    assert all(value.startswith(line.rpartition(" ")[2]) for value in found)


@pytest.mark.parametrize(
    "line",
    [
        "gguftool dump fix",
        "gguftool merge a -o ",
        "gguftool measure a --engine ",
        "gguftool nonsense x",
        "gguftool dump gone.gguf --key ",
        f"gguftool dump {__file__} --key ",
        "gguftool dump 'half a quote --key ",
        "gguftool plan a --lock $(id)=q4",
        "gguftool plan a --lock `id`=q4",
        "gguftool edit a --set =",
    ],
)
def test_what_we_do_not_know_is_left_to_the_shell(ask: Any, line: str) -> None:
    assert ask(line) == []


def test_options_that_print_and_end_do_not_run(ask: Any) -> None:
    for option in ("-V", "--show-completion bash", "--help"):
        assert not any(line.startswith(("gguftool", "_gguftool", "Usage")) for line in ask(f"gguftool {option} "))


def test_an_address_is_never_opened(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for address in ("hf://a/b/c.gguf", "https://127.0.0.1:9/m.gguf", "x=http://127.0.0.1:9/m.gguf"):
        assert ask(f"gguftool export {address} --tensor ") == []


def test_names_that_a_shell_could_run_are_not_offered(ask: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    names = ("plain.weight", "$(touch${IFS}x)", "`id`", "a;b", "'", "a b", "\x1b[31m", "-o")
    path.write_bytes(b.gguf(b.llama_kvs(), [b.tensor(name, "F32", (4,)) for name in names]))
    assert ask(f"gguftool export {path} --tensor ") == ["plain.weight"]


def test_a_model_that_never_answers_does_not_hold_up_the_shell(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "PATIENCE", 0.1)
    over = threading.Event()
    monkeypatch.setattr("gguftool.model.opening.open_model", lambda path: over.wait(30))
    began = time.monotonic()
    assert ask(f"gguftool export {DEMO} --tensor ") == []
    assert time.monotonic() - began < 10
    over.set()


@pytest.mark.parametrize("shell", completing.SHELLS)
def test_a_script_names_the_program_and_its_variable(shell: str) -> None:
    done = run_gguftool("--show-completion", shell)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"gguftool" in done.stdout
    assert completing.VARIABLE.encode() in done.stdout


def test_the_files_that_the_wheel_has_are_what_is_shown() -> None:
    folder = REPO / "docs" / "completions"
    files = runpy.run_path(str(folder / "make.py"))["FILES"]
    assert {path.name for path in folder.iterdir()} - {"make.py", "__pycache__"} == set(files)
    assert set(completing.SHELLS) - set(files.values()) == {"pwsh"}
    for name, shell in files.items():
        shown = run_gguftool("--show-completion", shell).stdout
        assert (folder / name).read_bytes() == shown, "run: python docs/completions/make.py"
    assert run_gguftool("--show-completion", "pwsh").stdout == (folder / "gguftool.ps1").read_bytes()


def test_another_shell_is_bad_usage() -> None:
    done = run_gguftool("--show-completion", "nosh")
    assert done.returncode == 2
    assert b"takes bash, zsh, fish, powershell or pwsh, not 'nosh'" in done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh: apt-get install zsh")
def test_zsh_completes_at_the_first_press_of_the_key(tmp_path: Path) -> None:
    program = tmp_path / "gguftool"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gguftool "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    leader, follower = os.openpty()
    variables = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "xterm"}
    with subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=follower, stdout=follower, stderr=follower, env=variables
    ) as shell:
        os.close(follower)
        start = f"fpath+=({REPO}/docs/completions); autoload -Uz compinit; compinit -u -D; echo rea''dy\n"
        os.write(leader, start.encode())
        started = _shown_until(leader, b"\nready")
        os.write(leader, b"gguftool mer\t")
        completed = _shown_until(leader, b"merge")
        shell.kill()
    os.close(leader)
    assert (started, completed) == (True, True)


def _shown_until(leader: int, wanted: bytes) -> bool:
    """Whether the terminal shows `wanted` within some seconds."""
    shown, end = b"", time.monotonic() + 30
    while wanted not in shown and time.monotonic() < end:
        if select.select([leader], [], [], 1)[0]:
            shown += os.read(leader, 4096)
    return wanted in shown


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish: apt-get install fish")
def test_fish_completes_by_its_script(tmp_path: Path) -> None:
    program = tmp_path / "gguftool"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gguftool "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = f'source {REPO}/docs/completions/gguftool.fish; complete -C "gguftool mer"'
    variables = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["fish", "-c", script], capture_output=True, env=variables, timeout=30, check=True)
    assert done.stdout.startswith(b"merge\t"), done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash: apt-get install bash")
def test_bash_completes_by_its_script(tmp_path: Path) -> None:
    program = tmp_path / "gguftool"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gguftool "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = (REPO / "docs" / "completions" / "gguftool.bash").read_text(encoding="utf-8")
    asked = f'COMP_WORDS=(gguftool mer) COMP_CWORD=1; _gguftool_completion "{program}"; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, env=environment(), check=True)
    assert (done.stdout, done.stderr) == (b"merge\n", b"")
