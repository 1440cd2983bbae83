"""Whatever a server does, what is read from it is right, or refused in one line: never a wrong byte, never a secret.

Each mode of the rude server is met three times: `dump` reads a head, `swap` takes one tensor from far behind it, and
`merge` takes the whole file over several connections. They run together in worker processes; most of them wait.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from gguftool.errors import SourceError
from gguftool.storage.sources.urls import follow
from tests.support.cli_workers import Run, pool, run_here
from tests.support.command import run_gguftool
from tests.support.mix_models import quant
from tests.support.rude_server import MODES, SECRET, Mode, RudeServer

TOKEN = "hf_7h1s1s4v3rys3cr3tt0k3n"
PASSWORD = "p455w0rd-0f-th3-us3r"  # the query of the URL that the user gives
PATIENCE = "3"  # seconds without progress; what users have is in docs/remote.md
LONGEST = 30.0
BUDGET = 32 << 20  # bytes that a server may get rid of in one run, those in the system's buffers included
SHAPES = {"token_embd.weight": (256, 5000), "output.weight": (256, 2000), "output_norm.weight": (256,)}
ACTIONS = ("dump", "swap", "merge")
BY_NAME = {mode.name: mode for mode in MODES}


@dataclass(frozen=True)
class World:
    """A server with one model, a local one to swap into, and what each action gives where nothing goes wrong."""

    server: RudeServer
    folder: Path
    right: dict[str, bytes]

    def url(self, mode: str, action: str) -> str:
        return f"{self.server.url(mode, 'far.gguf', action)}?X-Amz-Signature={PASSWORD}"

    def output(self, mode: str, action: str) -> Path:
        return self.folder / mode / action / "out.gguf"

    def arguments(self, url: str, action: str) -> tuple[str, ...]:
        near = str(self.folder / "near.gguf")
        return {
            "dump": ("dump", "--csv", url),
            "swap": ("swap", near, "--from", url, "--tensor", "output.weight", "-o", "out.gguf"),
            "merge": ("merge", url, "-o", "out.gguf"),
        }[action]

    def run(self, executor: ProcessPoolExecutor, mode: str, action: str) -> Future[Run]:
        home = self.output(mode, action).parent
        home.mkdir(parents=True)
        environment = {
            "GGUFTOOL_HTTP_PATIENCE": PATIENCE,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.folder / "hf"),
            "TMPDIR": str(home),
            "GGUFTOOL_TEST_LEFT": str(home / "left-loopback"),
        }
        return executor.submit(run_here, self.arguments(self.url(mode, action), action), environment, str(home))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rude")
    far = Path(quant(folder / "far.gguf", "Q8_0", shapes=SHAPES))
    quant(folder / "near.gguf", "Q4_K", shapes=SHAPES)
    with RudeServer({"far.gguf": far.read_bytes()}) as server:
        yield World(server, folder, _right(folder, str(far)))
        assert server.errors == []


def _right(folder: Path, far: str) -> dict[str, bytes]:
    """What each action gives with the file itself."""
    world = World(None, folder, {})  # type: ignore[arg-type]
    dumped = run_gguftool(*world.arguments(far, "dump")).stdout
    right = {"dump": dumped}
    for action in ("swap", "merge"):
        output = folder / f"{action}.gguf"
        arguments = [output if part == "out.gguf" else part for part in world.arguments(far, action)]
        assert run_gguftool(*arguments).returncode == 0
        right[action] = output.read_bytes()
    return right


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    with pool() as executor:
        yield executor


@pytest.fixture(scope="module", autouse=True)
def patient(world: World, workers: ProcessPoolExecutor, request: pytest.FixtureRequest) -> dict[str, Future[Run]]:
    """Runs with the patience that users have: begun before all others, since they take longest."""
    if not any(item.name == test_users_wait_no_longer.__name__ for item in request.session.items):
        return {}
    folder = str(world.folder)
    modes = ("stall_before", "stall_body", "slow", "503_forever")
    return {mode: workers.submit(run_here, ("dump", world.url(mode, "users")), {}, folder) for mode in modes}


@pytest.fixture(scope="module")
def runs(
    world: World, workers: ProcessPoolExecutor, request: pytest.FixtureRequest
) -> dict[tuple[str, str], Future[Run]]:
    """The runs that the chosen tests look at, all begun at once."""
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    pairs = [(found["mode"], found["action"]) for found in chosen if {"mode", "action"} <= found.keys()]
    return {pair: world.run(workers, *pair) for pair in dict.fromkeys(pairs)}


def outcome(world: World, mode: Mode, action: str, run: Run) -> str:
    """Say what came of a run: exact, refused, or wrong."""
    output = world.output(mode.name, action)
    if run.code == 2 and not output.exists():
        return "refused"
    if run.code == 0:
        shown = run.stdout.replace(world.server.url(mode.name, "far.gguf", action), "far.gguf")
        found = shown.encode() if action == "dump" else output.read_bytes() if output.exists() else b""
        return "exact" if found == world.right[action] else "wrong"
    return "wrong"


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("mode", [mode.name for mode in MODES])
def test_right_or_refused(world: World, runs: dict[tuple[str, str], Future[Run]], mode: str, action: str) -> None:
    row, run = BY_NAME[mode], runs[mode, action].result(timeout=240)
    assert run.seconds < LONGEST
    assert world.server.sent[f"/{mode}/{action}/far.gguf"] < BUDGET  # what has no end is left at once
    assert not (world.output(mode, action).parent / "left-loopback").exists()
    _assert_no_secret(world, mode, action, run)
    found = outcome(world, row, action, run)
    expected = row.dump if action == "dump" else row.copy
    if row.lies and action != "dump":
        assert run.code == 0
    elif expected is None or (action == "merge" and row.dump is None and found == "exact"):
        assert found == "exact", run  # a whole file may come in one range, which is none of data
    else:
        assert found == "refused", run
        _assert_one_line(run, expected)


def _assert_one_line(run: Run, expected: str) -> None:
    lines = run.stderr.splitlines()
    assert [line.startswith("gguftool: error: ") for line in lines] == [False] * (len(lines) - 1) + [True], lines
    assert "Traceback" not in run.said
    assert "127.0.0.1" in lines[-1]  # the host is named
    assert re.search(expected, lines[-1]), lines[-1]
    assert not [char for char in lines[-1] if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}]


def _assert_no_secret(world: World, mode: str, action: str, run: Run) -> None:
    home = world.output(mode, action).parent
    written = b"".join(path.read_bytes() + path.name.encode() for path in home.rglob("*") if path.is_file())
    for secret in (TOKEN, PASSWORD, SECRET):
        assert secret not in run.said
        assert secret.encode() not in written
    assert {path.name for path in home.iterdir() if not path.name.startswith(".gguftool-")} <= {"out.gguf"}


def test_nobody_is_told_the_token(world: World, runs: dict[tuple[str, str], Future[Run]]) -> None:
    for run in runs.values():
        run.result(timeout=240)
    assert world.server.authorizations() == {world.server.port: set(), world.server.other_port: set()}


def test_the_table_is_complete(
    world: World, runs: dict[tuple[str, str], Future[Run]], capsys: pytest.CaptureFixture[str]
) -> None:
    """At least 60 modes, none of them wrong; those that nothing but a hash can notice are counted apart."""
    found = {pair: outcome(world, BY_NAME[pair[0]], pair[1], run.result(timeout=240)) for pair, run in runs.items()}
    honest = {pair: what for pair, what in found.items() if not BY_NAME[pair[0]].lies}
    wrong = sorted(pair for pair, what in honest.items() if what == "wrong")
    refused = {mode for (mode, _), what in honest.items() if what == "refused"}
    exact = {mode for mode, _ in honest} - refused - {mode for mode, _ in wrong}
    with capsys.disabled():
        count = len({mode for mode, _ in honest})
        print(f"\n{count} modes: {len(exact)} exact, {len(refused)} refused, {len(wrong)} wrong")
    assert wrong == []
    assert len(MODES) >= 60
    assert len(BY_NAME) == len(MODES)


@pytest.mark.parametrize(
    ("start", "location", "says"),
    [
        ("https://127.0.0.1/a", "http://127.0.0.1/a", "https to http"),
        ("https://192.0.2.1/a", "https://127.0.0.1/a", "loopback"),
        ("https://192.0.2.1/a", "//[::1]/a", "loopback"),
        ("https://192.0.2.1/a", "https://0.0.0.0/a", "loopback"),
        ("http://192.0.2.1/a", "http://169.254.169.254/", "link-local"),
        ("http://127.0.0.1/a", "http://[fe80::1]/", "link-local"),
        ("http://127.0.0.1/a", "gopher://127.0.0.1/", "not followed"),
    ],
)
def test_where_a_redirect_may_not_lead(start: str, location: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        follow(start, location, start)


@pytest.mark.parametrize("location", ["https://127.0.0.1/b", "http://127.0.0.1:1/b", "/b", "?c"])
def test_where_a_redirect_may_lead(location: str) -> None:
    assert follow("http://127.0.0.1/a", location, "http://127.0.0.1/a").startswith(
        ("http://127.0.0.1", "https://127.0.0.1")
    )


@pytest.mark.slow
def test_users_wait_no_longer(patient: dict[str, Future[Run]]) -> None:
    """With the patience that is built in, the slowest of them end in time too."""
    for mode, future in patient.items():
        run = future.result(timeout=90)
        assert (run.code, run.seconds < LONGEST) == (2, True), (mode, run)
