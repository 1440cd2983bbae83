"""What the environment has wrong, or lacks, is one line at once, without a secret of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import builders as b
from tests.support.command import environment, one_error_line, run_gguftool
from tests.support.rude_server import RudeServer


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("GGUFTOOL_HTTP_PATIENCE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def rude() -> Iterator[RudeServer]:
    with RudeServer({"m.gguf": b.small_model()}) as server:
        yield server


_BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == blocked:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
blocked = sys.argv.pop(1)
from gguftool.cli.main import main
main()
"""


@pytest.mark.parametrize("module", ["urllib3", "huggingface_hub", "fsspec"])
def test_each_missing_package_is_one_line(rude: RudeServer, module: str) -> None:
    name = "memory://m.gguf" if module == "fsspec" else rude.url("honest", "m.gguf")
    command = [sys.executable, "-c", _BLOCKED, module, "dump", name]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=environment())
    assert done.returncode == 2
    assert "pip install huggingface_hub" in one_error_line(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "name", "said"),
    [
        ("http_proxy", "http://me:open5esame@[::bad", "http://host.example/m.gguf", "proxy"),
        ("http_proxy", "http://me:open5esame@127.0.0.1:1", "http://host.example/m.gguf", "proxy.*refused"),
        ("REQUESTS_CA_BUNDLE", __file__, "https://127.0.0.1:1/m.gguf", "REQUESTS_CA_BUNDLE"),
        ("HF_HUB_ETAG_TIMEOUT", "soon", "hf://org/repo/m.gguf", "HF_"),
        ("HF_TOKEN", "hf_open5es\N{LATIN SMALL LETTER A WITH DIAERESIS}me", "hf://org/repo/m.gguf", "HF_TOKEN"),
        ("HF_ENDPOINT", "hub", "hf://org/repo/m.gguf", "HF_ENDPOINT"),
        ("HF_ENDPOINT", "hub", "http://127.0.0.1:1/m.gguf", "HF_ENDPOINT"),
        ("HF_ENDPOINT", "http://127.0.0.1:1", "hf://org/repo/m.gguf", "refused"),
        ("HF_ENDPOINT", "http://127.0.0.1:1", "hf://org/repo", "refused"),
        ("LANG", "C", "http://127.0.0.1:1/m.gguf", "refused"),
    ],
)
def test_a_wrong_environment_is_one_line_at_once(variable: str, value: str, name: str, said: str) -> None:
    env = {**environment(), "GGUFTOOL_HTTP_PATIENCE": "600", variable: value}  # more than the run may take
    command = [sys.executable, "-m", "gguftool", "dump", name]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=env)
    assert done.returncode == 2, done.stderr.decode()
    assert re.search(said, one_error_line(done.stderr))
    assert b"open5es" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("fetch", "M", "-o", "http://host.example/out.gguf"),
        ("merge", "M", "-o", "file:///out.gguf"),
        ("split", "M", "http://host.example/out"),
        ("export", "M", "--tensor", ".", "-o", "s3://bucket/out.safetensors"),
        ("report", "M", "--html", "hf://org/repo/page.html"),
        ("recipe", "extract", "M", "-o", "http://host.example/my.recipe"),
        ("fetch", "M", "--repair", "http://host.example/out.gguf"),
    ],
)
def test_no_url_is_written_to_as_a_folder(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "m.gguf").write_bytes(b.small_model())
    done = run_gguftool(*("m.gguf" if word == "M" else word for word in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert "give a path" in " ".join(done.stderr.decode().split())
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_recipe_at_an_address_is_checked(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.small_model())
    with RudeServer({"my.recipe": b".=q8_0\n"}) as server:
        done = run_gguftool("recipe", "check", server.url("honest", "my.recipe"), "--model", tmp_path / "m.gguf")
    assert b"cannot open" not in done.stderr
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["hf:org/repo/m.gguf", "https:/host.example/m.gguf", "http:host.example/m.gguf"])
def test_an_address_with_too_few_slashes_is_told_so(name: str) -> None:
    assert "has // after" in one_error_line(run_gguftool("dump", name).stderr)


def test_a_space_in_an_address_is_told_how_to_write(rude: RudeServer) -> None:
    assert "%20" in one_error_line(run_gguftool("dump", rude.url("honest", "a b.gguf")).stderr)


def test_a_donor_with_a_query_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.small_model())
    name = json.loads(run_gguftool("dump", tmp_path / "m.gguf", "--json").stdout)["tensors"][0]["name"]
    donor = tmp_path / "donor.safetensors"
    assert run_gguftool("export", tmp_path / "m.gguf", "--tensor", name, "-o", donor).returncode == 0
    with RudeServer({"donor.safetensors": donor.read_bytes(), "bad.safetensors": b"x" * 64}) as server:
        for file, code in (("donor", 0), ("bad", 2)):
            url = server.url("honest", f"{file}.safetensors").replace("http://", "http://me:open5esame@")
            done = run_gguftool(
                *("swap", tmp_path / "m.gguf", "--from", f"{url}?download=open5esame"),
                *("--tensor", name, "-o", tmp_path / f"{file}.gguf"),
            )
            assert done.returncode == code, done.stderr.decode()
            assert b"open5es" not in done.stderr
            assert b"not a GGUF" not in done.stderr


@pytest.mark.parametrize("command", ["dump", "check", "report", "fetch"])
def test_a_name_does_not_cause_requests_without_end(tmp_path: Path, command: str) -> None:
    name = "m-00002-of-99999.gguf"
    with RudeServer({name: b.small_model()}) as server:
        output = ("-o", tmp_path / "out.gguf") if command == "fetch" else ()
        done = run_gguftool(command, server.url("honest", name), *output, timeout=20)
        assert done.returncode == 2
        assert "--this-file-only" in (done.stdout + done.stderr).decode()
        assert len(server.requests) < 3
