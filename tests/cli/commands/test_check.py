"""The check command: exit codes, text, JSON, and what it costs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from gguftool.analysis.lint.check import CheckOptions, check
from gguftool.cli.app import app
from gguftool.engines import load
from gguftool.errors import PlanError
from gguftool.model.opening import read_header
from gguftool.storage.sources.local import LocalSource
from gguftool.storage.sources.locate import open_source
from tests.support.check_models import F32, Q4_K, File, T, model, shards
from tests.support.command import environment
from tests.support.counted_work import FACTOR, LINEAR, calls_of
from tests.support.fake_engine import engine_script
from tests.support.paths import REPO
from tests.support.rude_server import RudeServer


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def one_line(text: str) -> str:
    """Text of 80 columns without its line breaks."""
    return " ".join(text.split())


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A warning for ik_llama.cpp alone: the types of up and gate differ."""
    path = tmp_path / "mixed.gguf"
    pair = [T("blk.0.ffn_up_exps.weight", (256, 16, 2)), T("blk.0.ffn_gate_exps.weight", (256, 16, 2), Q4_K)]
    path.write_bytes(model(*pair, embd=T("token_embd.weight", (256, 32)), output=False, whole=True).bytes())
    return path


def test_exit_codes(tmp_path: Path, mixed: Path) -> None:
    good = tmp_path / "good.gguf"
    good.write_bytes(model(whole=True).bytes())
    assert run(good, "--fail-on", "info").exit_code == 0
    assert run(mixed).exit_code == 0
    assert run(mixed, "--fail-on", "warning").exit_code == 0  # llama.cpp runs it as it should
    assert run(mixed, "--fail-on", "info").exit_code == 1
    assert run(mixed, "--engine", "ik_llama.cpp").exit_code == 0
    assert run(mixed, "--engine", "ik_llama.cpp", "--fail-on", "warning").exit_code == 1
    assert run(mixed, "--engine", "ik_llama.cpp", "--fail-on", "warning", "--ignore", "M").exit_code == 0
    assert run(mixed, "--engine", "ik_llama.cpp", "--fail-on", "info", "--select", "T,S").exit_code == 0
    double = tmp_path / "double.gguf"
    double.write_bytes(model(kvs=[("a", "u32", 1), ("a", "u32", 1)], whole=True).bytes())
    assert run(double).exit_code == 1
    assert run(double, "--ignore", "f09").exit_code == 0
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model().bytes()[:-40])
    for options in ([], ["--ignore", "N"], ["--select", "S"]):
        assert run(cut, *options).exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["--engine", "ollama"],
        ["--select", "Z9"],
        ["--ignore", "lint"],
        ["--fail-on", "never"],
    ],
)
def test_bad_usage(mixed: Path, wrong: list[str]) -> None:
    assert run(mixed, *wrong).exit_code == 2


@pytest.mark.parametrize("wrong", ["exps", "(=CPU", "exps="])
def test_bad_places(mixed: Path, wrong: str) -> None:
    assert isinstance(run(mixed, "--place", wrong).exception, PlanError)


def test_text(mixed: Path) -> None:
    text = run(mixed, "--engine", "ik_llama.cpp").stdout
    assert "warning M01 [ik_llama.cpp] blk.0: ffn_up_exps is Q8_0, ffn_gate_exps is Q4_K" in text
    assert "        -> give both the same type" in text
    assert one_line(text).endswith("no errors for ik_llama.cpp")
    assert "info    M01 [ik_llama.cpp] (warning there) blk.0" in run(mixed).stdout


def test_place(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model(T("blk.0.ffn_down_exps.weight", (256, 16, 2), 212)).bytes())
    arguments = [path, "--engine", "ik_llama.cpp", "--select", "G01", "--fail-on", "warning"]
    assert run(*arguments, "--place", "exps=CUDA0").exit_code == 1
    assert run(*arguments, "--place", "attn=CUDA0", "--place", "exps=CPU").exit_code == 1
    assert run(*arguments, "--place", "exps=CPU").exit_code == 0
    assert run(*arguments).exit_code == 0


def test_json(tmp_path: Path, mixed: Path) -> None:
    answer = json.loads(run(mixed, "--json", "--engine", "ik_llama.cpp").stdout)
    assert answer["readable"] is True
    assert answer["engines"] == ["ik_llama.cpp"]
    first = answer["findings"][0]
    assert (first["code"], first["severity"], first["where"]) == ("M01", "warning", "blk.0")
    assert first["tensors"] == ["blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_exps.weight"]
    missing = run(tmp_path / "none.gguf", "--json")
    assert missing.exit_code == 2
    assert json.loads(missing.stdout)["diagnoses"][0]["code"] == "N01"


def test_json_of_a_hostile_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    file = File(tensors=[T(b"\xff\x1b[2J", (32, 0)), T("\u202e")], kvs=[(b"\xfe", "u64", 2**64 - 1)])
    path.write_bytes(file.bytes())
    answer = run(path, "--json")
    names = [name for finding in json.loads(answer.stdout)["findings"] for name in finding["tensors"]]
    assert {"b64": "/xtbMko="} in names
    assert answer.exit_code == 1


def test_several_models_are_checked_one_by_one_and_a_set_once(tmp_path: Path, mixed: Path) -> None:
    names = shards(tmp_path, 3)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model().bytes()[:-40])
    quiet = ("--ignore", "K,V,A,S11")
    answer = json.loads(run(*names, mixed, *names, *quiet, "--json", "--full-paths").stdout)["reports"]
    assert [(report["files"], Path(report["model"])) for report in answer] == [(3, names[0]), (1, mixed)]
    assert {Path(path) for path in answer[0]["paths"]} == set(names)
    assert run(*names, "--json", *quiet).stdout == run(names[0], "--json", *quiet).stdout  # one model, one report
    assert (run(names[0], mixed, *quiet).exit_code, run(mixed, cut).exit_code) == (0, 2)
    assert run(mixed, names[0]).exit_code == 1
    assert len(json.loads(run(mixed, cut, "--sarif").stdout)["runs"]) == 1
    assert run(mixed, cut).stdout == run(mixed).stdout + run(cut).stdout


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(model().bytes())
    result = run(tmp_path)
    assert "there are 2 models here" in str(result.exception)


def test_a_set_beside_leftovers_of_another(tmp_path: Path) -> None:
    shards(tmp_path, prefix="a")
    shards(tmp_path, prefix="b")[0].unlink()
    result = run(tmp_path, "--ignore", "K,V,A")  # what it lacks to be a model
    assert result.exit_code == 0
    assert "left out 2 file(s)" in result.stderr


def test_the_hooks_of_pre_commit_run_as_it_runs_them(tmp_path: Path, mixed: Path) -> None:
    """pre-commit adds the names of the commit's files that match to the words of `entry`."""
    hooks = yaml.safe_load((REPO / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert [hook["id"] for hook in hooks] == ["gguftool-check", "gguftool-check-llama-cpp"]
    good, bad, text = tmp_path / "a good one.gguf", tmp_path / "bad.gguf", tmp_path / "x.gguf.md"
    good.write_bytes(model(whole=True).bytes())
    bad.write_bytes(model(kvs=[("a", "u32", 1), ("a", "u32", 1)], whole=True).bytes())
    for hook in hooks:
        assert hook["language"] == "python"  # pre-commit installs what pyproject.toml declares
        program, *words = hook["entry"].split()
        assert f"{program} =" in (REPO / "pyproject.toml").read_text("utf-8").partition("[project.scripts]")[2]
        assert [bool(re.search(hook["files"], str(path))) for path in (good, text)] == [True, False]
        for files, code in (((good, mixed), 0), ((good, bad), 1), ((text, good), 2)):
            assert CliRunner().invoke(app, [*words, *map(str, files)]).exit_code == code, (hook["id"], files)


@pytest.mark.slow
def test_a_set_of_1148_shards_takes_work_that_grows_with_it_and_reads_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few").mkdir()
    few = shards(tmp_path / "few", 1148 // FACTOR, first=model(layers=1148 // FACTOR - 2))
    many = shards(tmp_path, 1148, first=model(layers=1146))
    report = check(str(many[0]))
    assert (report.files, report.readable) == (1148, True)
    assert calls_of(lambda: check(str(many[0]))) < LINEAR * calls_of(lambda: check(str(few[0])))

    reads: list[tuple[str, int, int]] = []
    read = LocalSource.read_at

    def recorded(self: LocalSource, offset: int, length: int) -> bytes:
        reads.append((self.name, offset, length))
        return read(self, offset, length)

    monkeypatch.setattr(LocalSource, "read_at", recorded)
    check(str(many[0]))
    assert max(Counter(name for name, offset, _ in reads if not offset).values()) == 1
    behind_heads = [length for _, offset, length in reads if offset]
    assert sum(behind_heads) <= 3 * 24 * 256 + 16 * 4096


def test_the_data_of_large_tensors_is_only_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    head = model(*(T(f"blk.{n}.ffn_down.weight", (1 << 20, 64), F32, nbytes=0) for n in range(4)), layers=4).bytes()
    # Sizes as the types say, in a file with a hole in place of the data.
    size = (1 << 20) * 64 * 4
    data = bytearray(head)
    for n in range(4):
        name = f"blk.{n}.ffn_down.weight".encode()
        at = data.index(name) + len(name) + 4 + 2 * 8 + 4
        data[at : at + 8] = (2 * 1088 + n * size).to_bytes(8, "little")
    path.write_bytes(data)
    os.truncate(path, len(head) + 4 * size)
    reads: list[int] = []
    read = LocalSource.read_at

    def recorded(self: LocalSource, offset: int, length: int) -> bytes:
        reads.append(length)
        return read(self, offset, length)

    monkeypatch.setattr(LocalSource, "read_at", recorded)
    report = check(str(path), CheckOptions(select=("F",)))
    assert [f.code for f in report.findings] == ["F19"]
    assert len(report.findings[0].tensors) == 4
    assert sum(reads) < 1 << 18


# --- asking an engine ------------------------------------------------------------------------------------------------


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="engines are asked on Linux; run it there")


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "a good one.gguf"
    path.write_bytes(model(whole=True).bytes())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return path


@on_linux
def test_an_engine_that_loads_it_is_named_with_what_it_did(tmp_path: Path, good: Path) -> None:
    done = run(good, "--load", engine_script(tmp_path, "exit 0"))
    assert done.exit_code == 0
    assert one_line(done.output).endswith(
        "; by the rules no errors for llama.cpp and ik_llama.cpp; llama-completion (llama.cpp 123 (abcdef)) loads it, "
        "with zeros for data; nothing was computed"
    )
    done = run(good, "--load", engine_script(tmp_path, "exit 0"), "--run", 3, "--json")
    report = json.loads(done.stdout)["load"]
    assert (report["verdict"], report["tokens"]) == ("ran", 3)


@on_linux
def test_the_engine_gets_the_head_byte_for_byte_and_no_data(tmp_path: Path, good: Path) -> None:
    program = engine_script(tmp_path, f'cp "$2" {tmp_path}/seen.gguf')
    assert run(good, "--load", program).exit_code == 0
    seen, whole = (tmp_path / "seen.gguf").read_bytes(), good.read_bytes()
    head = read_header(open_source(str(good))).data_offset
    assert seen == whole[:head].ljust(len(whole), b"\0")
    assert seen != whole


@on_linux
@pytest.mark.usefixtures("good")
def test_of_a_remote_model_the_heads_alone_are_read(tmp_path: Path) -> None:
    whole = model(embd=T("token_embd.weight", (4096, 2048))).bytes()  # 9 MB
    program = engine_script(tmp_path, f'cp "$2" {tmp_path}/seen.gguf')
    with RudeServer({"m.gguf": whole}) as server:
        done = run(server.url("honest", "m.gguf"), "--load", program, "--json")
        assert json.loads(done.stdout)["load"]["verdict"] == "loaded"
        assert 0 < sum(server.sent.values()) < 3 << 20 < len(whole)
    assert (tmp_path / "seen.gguf").stat().st_size == len(whole)


@on_linux
def test_an_engine_that_refuses_it_is_an_error(tmp_path: Path, good: Path) -> None:
    program = engine_script(tmp_path, "echo '0.00.000.001 E error loading model: bad \033[1mname' >&2; exit 1")
    done = run(good, "--load", program)
    assert done.exit_code == 1
    text = one_line(done.output)
    assert "error E01 [llama.cpp] llama-completion (llama.cpp 123 (abcdef)): refuses it (exit status 1)" in text
    assert "\x1b" not in done.output
    assert "; by the rules no errors for ik_llama.cpp; " in text  # which was not asked
    assert run(good, "--load", program, "--ignore", "E01").exit_code == 0
    assert [f["code"] for f in json.loads(run(good, "--load", program, "--json").stdout)["findings"]] == ["E01"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_without_an_engine_nothing_is_imported_to_ask_one(good: Path) -> None:
    script = "import sys; from gguftool.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, "check", str(good)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "gguftool.render.findings.text" in loaded
    assert not loaded & {"gguftool.engines.load", "gguftool.analysis.lint.loading", "http.client"}


def test_run_needs_an_engine(good: Path) -> None:
    assert run(good, "--run", 3).exit_code == 2


def test_an_engine_without_a_name_is_not_left_out(good: Path) -> None:
    """As from a shell variable that is not set."""
    done = run(good, "--load", "")
    assert (done.exit_code, done.stdout) == (2, "")


def test_more_tokens_than_fit_are_not_the_models_fault(good: Path, tmp_path: Path) -> None:
    done = run(good, "--load", engine_script(tmp_path, "exit 1"), "--run", 51)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "51 is not in the range 1<=x<=50" in done.stderr


@on_linux
@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("echo 'x.cpp:1: GGML_ASSERT(n) failed' >&2; kill -ABRT $$", "E02", "GGML_ASSERT(n) failed"),
        ("sleep 500", "E03", "it did not finish within 1 seconds"),
        (r"printf 'error: \033]0;title\007\033[2J\342\200\256name\n' >&2; exit 1", "E01", "error: "),
        ("head -c 1000000000 /dev/zero; echo; echo 'error: at the end'; exit 1", "E01", "error: at the end"),
    ],
    ids=["crash", "hang", "escapes", "a gigabyte of log"],
)
def test_whatever_an_engine_does_is_one_finding_and_leaves_nothing(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: str, said: str
) -> None:
    monkeypatch.setattr(load, "_SECONDS", 1.0 if code == "E03" else 60.0)
    monkeypatch.setattr(load, "_BYTES_PER_SECOND", 1e12)
    done = run(good, "--load", engine_script(tmp_path, body), "--json")
    assert done.exit_code == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["code"], said in finding["message"]) == (code, True)
    assert finding["message"].isprintable()
    assert done.stdout.replace("\n", "").isprintable()
    assert list((tmp_path / "scratch").iterdir()) == []


@on_linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("then", ["wait", "yes"], ids=["hangs", "floods"])
def test_a_signal_ends_the_engine_and_removes_the_skeleton(
    tmp_path: Path, good: Path, number: signal.Signals, code: int, then: str
) -> None:
    program = engine_script(
        tmp_path, f"sleep 500 & echo $! > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; {then}"
    )
    command = [sys.executable, "-m", "gguftool", "check", str(good), "--load", str(program)]
    with subprocess.Popen(
        command, env={**environment(), "TMPDIR": str(tmp_path / "scratch")}, stderr=subprocess.PIPE
    ) as process:
        wait_for((tmp_path / "pid").exists)
        process.send_signal(number)
        assert process.wait(30) == code
    assert list((tmp_path / "scratch").iterdir()) == []
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
