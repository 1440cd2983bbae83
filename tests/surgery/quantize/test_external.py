"""An installed llama-quantize as the back end: what it gets, what is taken from it, and what is left if it fails."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gguftool.format.ggml import type_name
from gguftool.model.opening import open_model
from tests.support.command import environment
from tests.support.paths import FIXTURES, REPO

FAKE = REPO / "tests" / "support" / "fake_llama_quantize.py"
ZOO = FIXTURES / "engines" / "zoo"


def program(folder: Path, body: str) -> Path:
    path = folder / "llama-quantize"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def fake(folder: Path) -> Path:
    return program(folder, f'exec {sys.executable} {FAKE} "$@"')


def quantize(tool: Path, folder: Path, *arguments: object, engine: str) -> subprocess.CompletedProcess[bytes]:
    (folder / "out").mkdir(exist_ok=True)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    env = {
        **environment(),
        "FAKE_ENGINE": engine,
        "FAKE_FOLDER": str(scratch),
        "FAKE_ZOO": str(ZOO),
    }
    command = [sys.executable, "-m", "gguftool", "quantize", *arguments, "--llama-quantize", tool, "--engine", engine]
    return subprocess.run(
        [*map(str, command), "-o", str(folder / "out" / "o.gguf")],
        env=env,
        capture_output=True,
        timeout=120,
        check=False,
    )


SLOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")  # seconds of tables each, in libgguf


def write_recipe(folder: Path, zoo: Path, *without: str) -> Path:
    """A rule for each tensor of a zoo but those of some types."""
    path = folder / "zoo.recipe"
    types = {name: type_name(each.info.type) for name, each in open_model(zoo).tensors.items()}
    types = {name: kind for name, kind in types.items() if kind not in without}
    path.write_text("".join(f"^{name.replace('.', '[.]')}$={kind}\n" for name, kind in types.items()))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "zoo"), [("llama.cpp", "ml"), ("ik_llama.cpp", "ik")])
def test_every_type_of_the_zoo_goes_through_an_installed_one(tmp_path: Path, engine: str, zoo: str) -> None:
    source, made = ZOO / f"zoo-f32-{zoo}.gguf", ZOO / f"zoo-{zoo}.gguf"
    without = ("Q2_0", *SLOW) if zoo == "ml" else ("Q8_K_R16",)  # libgguf lacks the one, files the other
    rules = write_recipe(tmp_path, made, *without)
    done = quantize(
        fake(tmp_path), tmp_path, source, "--recipe", rules, "--imatrix", f"{source}.imatrix.dat", engine=engine
    )
    assert done.returncode == 0, done.stderr.decode()
    ours, theirs = open_model(tmp_path / "out" / "o.gguf"), open_model(made)
    assert list(ours.tensors) == list(theirs.tensors)
    others = {
        type_name(theirs.tensors[name].info.type)
        for name, each in ours.tensors.items()
        if each.extent.read() != theirs.tensors[name].extent.read()
    }
    assert others == set(without)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["o.gguf"]


def test_embeddings_keep_their_names(tmp_path: Path) -> None:
    """By which both engines know them: a program that renames nothing back would lose them otherwise."""
    model = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
    done = quantize(fake(tmp_path), tmp_path, model, "--preset", "Q4_K_M", engine="llama.cpp")
    assert done.returncode == 0, done.stderr.decode()
    made = open_model(tmp_path / "out" / "o.gguf")
    assert type_name(made.tensors["output.weight"].info.type) == "Q6_K"
    assert list(made.tensors) == list(open_model(model).tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo loading; echo 'it went wrong' >&2; exit 3", "ended with 3; it said last: loading | it went wrong"),
        ('for last; do :; done; shift $(($# - 4)); cp "$1" "$2"', "made bf16"),
        ('shift $(($# - 4)); head -c 100000 "$1" > "$2"', "llama-quantize: what it wrote is not a valid GGUF"),
        ('shift $(($# - 4)); echo nonsense > "$2"', "not a GGUF"),
    ],
)
def test_whatever_it_does_nothing_half_made_is_left(tmp_path: Path, body: str, said: str) -> None:
    model = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
    done = quantize(program(tmp_path, body), tmp_path, model, "--tensor", "attn_q=iq4_ks", engine="ik_llama.cpp")
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_what_it_started_ends_with_a_signal(tmp_path: Path) -> None:
    """A wrapper script is common; llama-quantize behind it would go on for hours, into a folder that is gone."""
    model = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
    tool = program(tmp_path, f"sleep 100 & echo $! > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; wait")
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "gguftool", "quantize", str(model), "--tensor", "attn_q=iq4_ks"]
    command += ["--engine", "ik_llama.cpp", "--llama-quantize", str(tool), "-o", str(tmp_path / "out" / "o.gguf")]
    run = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    sleeper = int((tmp_path / "pid").read_text())
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=30) == 143
    assert ended(sleeper), "what the script started goes on"
    assert not list((tmp_path / "out").iterdir())


def ended(process: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return False


def test_an_output_that_exists_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "o.gguf").write_bytes(b"mine")
    tool = program(tmp_path, f"touch {tmp_path / 'ran'}; exit 1")
    model = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
    done = quantize(tool, tmp_path, model, "--tensor", "attn_q=q4_K", engine="llama.cpp")
    assert done.returncode == 2
    assert b"exists already" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_dry_run_does_not_run_it(tmp_path: Path) -> None:
    tool = program(tmp_path, f"touch {tmp_path / 'ran'}; exit 1")
    model = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
    done = quantize(tool, tmp_path, model, "--tensor", "attn_q=iq4_ks", "--dry-run", engine="ik_llama.cpp")
    assert done.returncode == 0, done.stderr
    assert b"quantized to iq4_ks" in done.stdout
    assert not (tmp_path / "ran").exists()
    assert not os.listdir(tmp_path / "out")


def test_what_the_engine_does_not_make_is_refused(tmp_path: Path) -> None:
    model = FIXTURES / "engines" / "tiny-llama-BF16.gguf"
    done = quantize(fake(tmp_path), tmp_path, model, "--tensor", "attn_q=q4_0_4_4", engine="ik_llama.cpp")
    assert done.returncode == 2
    assert b"makes no q4_0_4_4" in done.stderr
