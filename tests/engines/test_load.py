"""Loading in engines that crash, hang, lie or lose their words: what is made of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gguftool.engines import load as module
from gguftool.engines.load import Outcome, Verdict, load
from gguftool.engines.probe import find_engine
from gguftool.engines.skeleton import SkeletonFile
from gguftool.engines.tiny_model import bad_model, good_model
from gguftool.format.header import parse
from tests.support.fake_engine import REFUSAL, engine_python, engine_script

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="engines are asked on Linux; run it there")

SMALL = SkeletonFile(head=b"GGUF", size=100_000)
HUGE = SkeletonFile(head=b"GGUF", size=1 << 42)
MAPS = "f = open(model, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"


def ask(program: Path, file: SkeletonFile = SMALL, **options: object) -> Outcome:
    folder = program.parent / "scratch"
    folder.mkdir(exist_ok=True)
    engine = find_engine(str(program), folder, tokens=int(options.get("tokens", 0)))  # type: ignore[call-overload]
    return load(engine, [file], folder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "verdict", "how", "line"),
    [
        ("exit 0", Verdict.LOADED, "exit status 0", None),
        ("echo 'error loading model: bad' >&2; exit 1", Verdict.REFUSED, "exit status 1", "error loading model: bad"),
        ("echo 'error loading model: bad'; exit 0", Verdict.REFUSED, "without having loaded it", "bad"),
        ("echo 'x.cpp:1: GGML_ASSERT(n) failed' >&2; kill -ABRT $$", Verdict.CRASHED, "SIGABRT", "GGML_ASSERT(n)"),
        ("kill -SEGV $$", Verdict.CRASHED, "SIGSEGV", None),
        ("exit 139", Verdict.CRASHED, "SIGSEGV", None),  # of a wrapper script
        ("kill -KILL $$", Verdict.EXCEEDED, "SIGKILL", None),
    ],
)
def test_an_end_is_a_verdict(tmp_path: Path, body: str, verdict: Verdict, how: str, line: str | None) -> None:
    outcome = ask(engine_script(tmp_path, body))
    assert outcome.verdict is verdict
    assert how in outcome.how
    assert line in outcome.lines[0] if line else outcome.lines == ()
    assert outcome.is_good == (verdict is Verdict.LOADED)


def test_a_hang_exceeds_the_limits(tmp_path: Path) -> None:
    outcome = ask(engine_script(tmp_path, "sleep 100"), seconds=1)
    assert (outcome.verdict, outcome.how) == (Verdict.EXCEEDED, "it did not finish within 1 seconds")


def test_a_large_skeleton_is_loaded_until_it_is_mapped(tmp_path: Path) -> None:
    outcome = ask(engine_python(tmp_path, MAPS + "time.sleep(60)"), HUGE)
    assert outcome.verdict is Verdict.ACCEPTED
    assert outcome.seconds < 30


def test_a_small_one_or_one_that_is_to_run_is_loaded_to_the_end(tmp_path: Path) -> None:
    program = engine_python(tmp_path, MAPS + "time.sleep(0.5); print('at the end')")
    assert ask(program).verdict is Verdict.LOADED
    assert ask(engine_python(tmp_path / "scratch", MAPS + "time.sleep(0.5)"), HUGE, tokens=2).verdict is Verdict.RAN


def test_an_engine_that_died_before_its_words_came_is_asked_again(tmp_path: Path) -> None:
    body = f"echo x >> {tmp_path}/runs; [ $(wc -l < {tmp_path}/runs) -lt 3 ] || echo 'error loading model: bad'; exit 1"
    outcome = ask(engine_script(tmp_path, body))
    assert outcome.lines == ("error loading model: bad",)
    assert (tmp_path / "runs").read_text().count("x") == 3


def test_one_that_never_says_why_is_not_asked_forever(tmp_path: Path) -> None:
    outcome = ask(engine_script(tmp_path, f"echo x >> {tmp_path}/runs; exit 1"))
    assert (outcome.verdict, outcome.lines) == (Verdict.REFUSED, ())
    assert (tmp_path / "runs").read_text().count("x") == module._ASKED


@pytest.mark.parametrize(
    ("text", "how", "line"),
    [
        ("exit 0", "it does not refuse a model with an architecture that does not exist", None),
        ("echo 'x: error while loading shared libraries: libllama.so' >&2; exit 127", "known-good model", "libllama"),
        ("kill -SEGV $$", "it does not load a known-good model: SIGSEGV", None),
    ],
)
def test_a_broken_engine_says_nothing_about_the_model(tmp_path: Path, text: str, how: str, line: str | None) -> None:
    program = tmp_path / "llama-completion"
    program.write_text(f"#!/bin/sh\ncase $2 in *model.gguf*) echo asked > {tmp_path}/asked;; esac\n{text}\n")
    program.chmod(0o755)
    outcome = ask(program)
    assert outcome.verdict is Verdict.UNUSABLE
    assert how in outcome.how
    assert outcome.lines == () if line is None else line in outcome.lines[0]
    assert not (tmp_path / "asked").exists()


def test_the_trials_differ_in_nothing_but_the_architecture() -> None:
    good, bad = (parse(file.head, file.size) for file in (good_model(), bad_model()))
    assert good.tensors == bad.tensors
    assert [kv.value() for kv in good.kvs][1:] == [kv.value() for kv in bad.kvs][1:]
    assert "gguftool-none" in REFUSAL
    assert good_model().size < 100_000


def test_a_server_is_asked_for_its_health_and_for_tokens(tmp_path: Path) -> None:
    server = (
        "import http.server, os\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    asked = 0\n"
        "    def answer(self, code, text):\n"
        "        self.send_response(code); self.end_headers(); self.wfile.write(text)\n"
        "    def do_GET(self):\n"
        "        Handler.asked += 1\n"
        "        self.answer(503 if Handler.asked < 3 else 200, b'{}')\n"
        "    def do_POST(self):\n"
        "        body = self.rfile.read(int(self.headers['Content-Length']))\n"
        f"        open({str(tmp_path / 'asked')!r}, 'wb').write(body)\n"
        "        self.answer(500 if os.environ.get('FAIL') else 200, b'no kernel for this')\n"
        "assert sys.argv[sys.argv.index('--port') + 1] == '0'\n"
        "http.server.HTTPServer((sys.argv[sys.argv.index('--host') + 1], 0), Handler).serve_forever()\n"
    )
    program = engine_python(tmp_path, server, "llama-server")
    # The trials of a server end well only if it answers, too.
    text = program.read_text().replace("*good.gguf*) exit 0;;", "")
    program.write_text(text)
    assert ask(program).verdict is Verdict.LOADED
    assert not (tmp_path / "asked").exists()
    (tmp_path / "scratch" / "model.gguf").unlink()
    for name in ("good.gguf", "bad.gguf"):
        (tmp_path / "scratch" / name).unlink()
    assert ask(program, tokens=3).verdict is Verdict.RAN
    assert b'"n_predict": 3' in (tmp_path / "asked").read_bytes()


def test_a_server_that_ends_has_not_loaded_the_model(tmp_path: Path) -> None:
    program = engine_script(tmp_path, "exit 0", "llama-server")
    assert ask(program).verdict is Verdict.UNUSABLE
