"""Files on a real web server: what opening and reading them costs, and when they are refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gguftool.errors import SourceError
from gguftool.model.opening import open_model, read_header
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import AbsentError, ChangedError
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.nginx import Nginx
from tests.support.rude_server import RudeServer
from tests.support.scripted_server import Exchange, WireServer

MIB = 1 << 20
Start = Callable[[Path], Nginx]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GGUFTOOL_HTTP_PATIENCE", "3")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_thistokenisnotforthisserver")


def _words(number: int, shortest: int, longest: int) -> list[str]:
    """Words that grow longer, as those of vocabularies do."""
    dice = random.Random(number)
    lengths = (max(1, int(shortest + (longest - shortest) * (at / number) ** 0.5)) for at in range(number))
    return ["".join(dice.choices("abcdefghij", k=length + dice.randint(0, 2))) for length in lengths]


def _vocabulary(tokens: int, merges: int, *, scores: bool) -> tuple[bytes, int]:
    """A model with that vocabulary and 20 MiB of data, and the length of its head."""
    kvs = [
        b.KV("general.architecture", b.STR, "llama"),
        b.KV("tokenizer.ggml.tokens", b.ARR, b.Array(b.STR, _words(tokens, 1, 12))),
        *([b.KV("tokenizer.ggml.scores", b.ARR, b.Array(b.F32, [0.5] * tokens))] if scores else []),
        b.KV("tokenizer.ggml.token_type", b.ARR, b.Array(b.I32, [1] * tokens)),
        *([b.KV("tokenizer.ggml.merges", b.ARR, b.Array(b.STR, _words(merges, 3, 16)))] if merges else []),
        b.KV("tokenizer.chat_template", b.STR, "template " * 2000),
    ]
    tensors = [b.tensor(f"blk.{at // 9}.ffn_gate_{at % 9}.weight", "F32", (8,)) for at in range(700)]
    return b.gguf(kvs, tensors) + bytes(20 * MIB), len(b.head(kvs, tensors))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "merges", "scores"),
    [
        (262_144, 0, True),
        (262_144, 514_906, False),
        (262_144, 262_000, True),
        (151_936, 151_387, False),
        (32_000, 0, True),
    ],
)
def test_a_head_costs_at_most_four_requests_and_half_as_many_bytes_again(
    nginx: Start, tmp_path: Path, tokens: int, merges: int, scores: bool
) -> None:
    data, length = _vocabulary(tokens, merges, scores=scores)
    (tmp_path / "m.gguf").write_bytes(data)
    server = nginx(tmp_path)
    header = read_header(open_source(server.url("m.gguf")))
    assert len(header.tensors) == 700
    asked = server.log()
    assert {line.method for line in asked} == {"GET"}
    assert 1 <= len(asked) <= 4
    assert length <= sum(line.body for line in asked) <= 1.5 * length + MIB
    assert asked[0].range == f"bytes=0-{MIB - 1}"
    assert {line.accept_encoding for line in asked} == {"identity"}
    assert {line.authorization for line in asked} == {""}
    assert len({line.connection for line in asked}) == 1


def test_dump_and_check_of_a_url_read_its_head_alone(nginx: Start, tmp_path: Path) -> None:
    big = b.tensor("output.weight", "Q8_0", (32, 200_000))
    (tmp_path / "m.gguf").write_bytes(b.gguf(b.llama_kvs(), (*b.llama_tensors(), big)))
    server = nginx(tmp_path)
    for command in (["dump"], ["report"], ["check", "--ignore", "K,V,A"]):  # small models lack what engines need
        done = run_gguftool(*command, server.url("m.gguf"))
        assert done.returncode == 0, done.stderr
        assert [line.body for line in server.log()] == [MIB]
        server.forget()
    assert run_gguftool("diff", server.url("m.gguf"), tmp_path / "m.gguf").returncode == 0
    assert len(server.log()) == 1


def test_hash_and_recipes_of_a_url_are_those_of_the_file(nginx: Start, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.small_model(layers=2))
    url = nginx(tmp_path).url("m.gguf")
    for command in (["recipe", "extract"], ["hash"]):
        far, near = (run_gguftool(*command, name).stdout for name in (url, tmp_path / "m.gguf"))
        assert far
        assert far.replace(url.encode(), b"M") == near.replace(str(tmp_path / "m.gguf").encode(), b"M")


def test_what_is_remote_is_not_changed_in_place(nginx: Start, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.small_model())
    url = nginx(tmp_path).url("m.gguf")
    donor = str(tmp_path / "m.gguf")
    for command in (
        ["edit", url, "--set", "general.name=str:New", "--in-place"],
        ["swap", url, "--from", donor, "--tensor", "output_norm.weight", "--in-place"],
        ["edit", url, "--recover"],
    ):
        done = run_gguftool(*command)
        assert done.returncode == 2, command
        assert "local" in one_error_line(done.stderr), done.stderr
    assert (tmp_path / "m.gguf").read_bytes() == b.small_model()


@pytest.fixture
def big(tmp_path: Path) -> bytes:
    data = random.Random(7).randbytes(5 * MIB + 77)
    (tmp_path / "big.bin").write_bytes(data)
    return data


def test_a_stream_is_one_request_over_a_kept_connection(nginx: Start, tmp_path: Path, big: bytes) -> None:
    server = nginx(tmp_path)
    source = open_source(server.url("big.bin"))
    server.forget()
    pieces = list(source.stream(1000, 3 * MIB))
    assert b"".join(pieces) == big[1000 : 1000 + 3 * MIB]
    assert len(pieces) > 3
    source.check_unchanged()
    assert source.read_at(len(big) - 5, 5) == big[-5:]
    asked = server.log()
    assert [line.range for line in asked] == ["bytes=1000-3146727", f"bytes={len(big) - 5}-{len(big) - 1}"]
    assert len({line.connection for line in asked}) == 1
    assert all(line.if_range for line in asked)


def test_many_threads_stream_at_once(nginx: Start, tmp_path: Path, big: bytes) -> None:
    source = open_source(nginx(tmp_path).url("big.bin"))
    step = 100_000
    with ThreadPoolExecutor(16) as pool:
        parts = pool.map(lambda at: b"".join(source.stream(at, min(step, len(big) - at))), range(0, len(big), step))
        assert b"".join(parts) == big


def test_who_stops_in_the_middle_of_a_stream_harms_nobody(nginx: Start, tmp_path: Path, big: bytes) -> None:
    source = open_source(nginx(tmp_path).url("big.bin"))
    for _ in range(5):
        stream = source.stream(0, len(big))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert source.read_at(2 * MIB, 100) == big[2 * MIB : 2 * MIB + 100]


def _rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", [_rewrite, lambda path: os.truncate(path, 3 * MIB), Path.unlink])
@pytest.mark.parametrize("where", ["", "no-etag/"])
def test_a_file_replaced_behind_its_head_is_an_error(
    nginx: Start, tmp_path: Path, big: bytes, change: Callable[[Path], None], where: str
) -> None:
    source = open_source(nginx(tmp_path).url(f"{where}big.bin"))
    change(tmp_path / "big.bin")
    with pytest.raises((ChangedError, AbsentError), match=r"changed since it was opened|404"):
        source.read_at(2 * MIB, 10)


def test_a_weak_source_is_asked_again_before_it_is_believed(nginx: Start, tmp_path: Path, big: bytes) -> None:
    source = open_source(nginx(tmp_path).url("no-etag/big.bin"))
    source.check_unchanged()
    _rewrite(tmp_path / "big.bin")
    with pytest.raises(ChangedError):
        source.check_unchanged()


def test_a_server_without_ranges_is_closed_at_once(nginx: Start, tmp_path: Path) -> None:
    with (tmp_path / "huge.gguf").open("wb") as file:
        file.truncate(400 << 30)
    (tmp_path / "small.gguf").write_bytes(b.small_model())
    server = nginx(tmp_path)
    with pytest.raises(SourceError, match="the server has no ranges"):
        open_model(server.url("no-ranges/huge.gguf"))
    assert len(open_model(server.url("no-ranges/small.gguf")).tensors) == 6  # all of it is what was asked for
    time.sleep(0.2)
    assert server.sent < 32 * MIB


@pytest.mark.parametrize("data", [b"", b"x", b"G" * (MIB - 1), b"G" * MIB, b"G" * (MIB + 1)])
def test_small_and_empty_files(nginx: Start, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    source = open_source(nginx(tmp_path).url("a.bin"))
    assert source.size == len(data)
    assert source.read_at(0, len(data)) == data
    assert list(source.stream(0, 0)) == []


def test_identity_follows_the_content_and_not_the_signature(nginx: Start, tmp_path: Path, big: bytes) -> None:
    url = nginx(tmp_path).url("big.bin")
    first = open_source(f"{url}?X-Amz-Signature=aaaaaaaaaa&Expires=1")
    again = open_source(f"{url}?X-Amz-Signature=bbbbbbbbbb&Expires=2")
    other = open_source(f"{url}?file=2")
    assert first.identity == again.identity != other.identity
    assert first.name == url
    assert "aaaa" not in first.identity
    _rewrite(tmp_path / "big.bin")
    assert open_source(url).identity != first.identity


# --- sets ------------------------------------------------------------------------------------------------------------


def _shards(number: int = 3) -> dict[str, bytes]:
    tensors = b.llama_tensors(number)
    return b.shard_set("m", [tensors[at::number] for at in range(number)])


def test_any_shard_opens_its_set_without_a_listing(nginx: Start, tmp_path: Path) -> None:
    shards = _shards()
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
    server = nginx(tmp_path)
    model = open_model(server.url(f"{list(shards)[1]}?download=true"))
    assert model.is_complete
    assert [source.name for source in model.sources] == [server.url(name) for name in shards]
    asked = server.log()
    assert sorted(line.path for line in asked) == [f"/{name}" for name in shards]
    assert {line.query for line in asked} == {"download=true"}
    alone = open_model(server.url(list(shards)[1]), this_file_only=True)
    assert len(alone.files) == 1


def test_a_set_with_gaps_opens_and_names_them(nginx: Start, tmp_path: Path) -> None:
    shards = _shards()
    for name in list(shards)[:2]:
        (tmp_path / name).write_bytes(shards[name])
    server = nginx(tmp_path)
    model = open_model(server.url(next(iter(shards))))
    assert model.missing == (server.url(list(shards)[2]),)
    with pytest.raises(SourceError, match="404"):
        open_model(server.url(list(shards)[2]))  # what is named must be there


class _Together(WireServer):
    """Answers once `wanted` requests wait at the same time."""

    def __init__(self, files: dict[str, bytes], wanted: int) -> None:
        self.files, self.gate = files, threading.Barrier(wanted, timeout=10)
        super().__init__()

    def answer(self, exchange: Exchange) -> None:
        self.gate.wait()
        exchange.serve(self.files[exchange.request.path.rpartition("/")[2]]).reply()


def test_the_heads_of_a_set_are_read_eight_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGUFTOOL_HTTP_PATIENCE", "60")
    shards = _shards(16)
    with _Together(shards, 8) as server:
        assert open_model(f"{server.origin}/{next(iter(shards))}").is_complete
        assert len(server.requests) == 16
        assert not server.errors


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rude() -> Iterator[RudeServer]:
    with RudeServer({"m.gguf": b.small_model()}) as server:
        yield server


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("404", "status 404, text/plain, from 127.0.0.1:"),
        ("206_html", "a web page (HTML)"),
        ("206_lfs", "git-LFS pointer"),
        ("200_json", "application/json"),
        ("stall_before", "no answer within|nothing came"),  # of two clocks the one that is first
        ("closed", "the connection closed early"),
    ],
)
def test_one_line_says_what_came(rude: RudeServer, mode: str, said: str) -> None:
    done = run_gguftool(
        "dump", rude.url(mode, "m.gguf", "said").replace("http://", "http://me:opensesame@") + "?sig=5e5a3e"
    )
    assert done.returncode == 2
    line = one_error_line(done.stderr)
    assert any(part in line for part in said.split("|"))
    assert "opensesame" not in line
    assert "5e5a3e" not in line


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [
        ("206_html", "N05", ("status 206, text/html", "the first 64 bytes: '<!DOCTYPE html>")),
        ("206_lfs", "N04", ("sha256", "git-LFS pointer")),
        ("404", "N01", ("HTTP status 404, text/plain",)),
    ],
)
def test_check_tells_why_it_is_no_model(rude: RudeServer, mode: str, code: str, said: Sequence[str]) -> None:
    done = run_gguftool("check", rude.url(mode, "m.gguf", "check"))
    assert done.returncode == 2
    text = " ".join(done.stdout.decode().split())
    assert f" {code} " in text
    for words in said:
        assert words in text


def test_a_login_goes_to_its_host_alone(rude: RudeServer) -> None:
    rude.forget()
    url = rude.url("redirect_other", "m.gguf", "login").replace("http://", "http://me:opensesame@")
    assert len(open_model(url).tensors) == 6
    told = rude.authorizations()
    assert told[rude.port] == {"Basic bWU6b3BlbnNlc2FtZQ=="}
    assert not told.get(rude.other_port)


class _Proxy(WireServer):
    """A proxy for plain http, which has every file that it is asked for."""

    def answer(self, exchange: Exchange) -> None:
        exchange.serve(b.small_model()).reply()


@pytest.mark.parametrize("scheme", ["", "http://", "http://me:opensesame@"])
def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with _Proxy() as proxy:
        monkeypatch.setenv("http_proxy", f"{scheme}127.0.0.1:{proxy.port}")
        assert len(open_model("http://host.example/m.gguf").tensors) == 6
        (request,) = proxy.requests
        assert request.header("Host") == "host.example"
        login = request.header("Proxy-Authorization")
        assert login == ("Basic bWU6b3BlbnNlc2FtZQ==" if "@" in scheme else None)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(SourceError, match="Connection refused"):
            open_source("http://127.0.0.1:1/m.gguf")
        assert len(proxy.requests) == 1


def test_offline_is_refused_in_one_line(rude: RudeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rude.forget()
    for name in (rude.url("honest", "m.gguf"), "hf://org/repo/m.gguf", "hf://org/repo"):
        assert "HF_HUB_OFFLINE" in one_error_line(run_gguftool("dump", name).stderr)
    assert rude.requests == []


def test_without_the_extra_the_error_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from gguftool.cli.main import main; main()"
    for name in ("https://host.example/m.gguf", "hf://org/repo/m.gguf"):
        done = subprocess.run(
            [sys.executable, "-c", code, "dump", name],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2
        assert "pip install huggingface_hub" in one_error_line(done.stderr)


@pytest.mark.parametrize("patience", ["0", "-1", "soon", "nan", "1e9"])
def test_a_patience_that_is_none_is_refused(rude: RudeServer, monkeypatch: pytest.MonkeyPatch, patience: str) -> None:
    monkeypatch.setenv("GGUFTOOL_HTTP_PATIENCE", patience)
    with pytest.raises(SourceError, match="GGUFTOOL_HTTP_PATIENCE"):
        open_source(rude.url("honest", "m.gguf"))
