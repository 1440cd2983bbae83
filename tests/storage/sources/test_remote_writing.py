"""merge, swap, export and fetch from a real web server, counted request by request in its access log."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import builders as b
from tests.support.builders import filler
from tests.support.command import environment, run_gguftool
from tests.support.hub_server import HubServer, Repo
from tests.support.nginx import Nginx

pytestmark = pytest.mark.slow

MIB = 1 << 20
N_TENSORS = 24
Start = Callable[..., Nginx]


def model(kind: str, rows: int = 512) -> bytes:
    """A model of `N_TENSORS` tensors of `kind`, other bytes in each kind."""
    tensors = []
    for number in range(N_TENSORS):
        made = b.tensor(f"blk.{number}.ffn_down.weight", kind, (256, rows))
        tensors.append(b.Tensor(made.name, made.dims, made.type, filler(f"{kind}{number}", len(made.data)), None))
    return b.gguf(b.llama_kvs(b.KV("general.quantization_version", b.U32, 2)), tensors)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for kind in ("F16", "Q8_0", "Q4_0"):
        (folder / f"model-{kind}.gguf").write_bytes(model(kind))
    (folder / "large.gguf").write_bytes(model("F16", rows=4096))  # 48 MiB
    return folder


def run(*args: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "gguftool", *map(str, args)]
    return subprocess.run(command, check=False, timeout=60, capture_output=True, env={**environment(), **env})


def good(*args: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    done = run(*args, **env)
    assert done.returncode == 0, done.stderr.decode()
    return done


def size_of(path: Path, name: str) -> int:
    dumped = json.loads(run_gguftool("dump", path, "--json").stdout)
    return next(int(tensor["nbytes"]) for tensor in dumped["tensors"] if tensor["name"] == name)


@pytest.mark.parametrize("more", [["--yes"], ["--dry-run"], []])
def test_consume_with_a_remote_donor_is_refused_before_it_asks_or_promises(
    more: list[str], served: Path, nginx: Start, tmp_path: Path
) -> None:
    url = nginx(served).url("model-Q4_0.gguf")
    whole = tmp_path / "in.gguf"
    whole.write_bytes((served / "model-Q8_0.gguf").read_bytes())
    good("split", whole, tmp_path / "set", "--max-tensors", "20")
    before = sorted(tmp_path.iterdir())
    (first, *_) = tmp_path.glob("set-00001-*")
    recipe = tmp_path / "r.txt"
    recipe.write_text("blk.7.=@far\n.=@near\n")
    line = ["merge", f"near={first}", f"far={url}", "--recipe", recipe, "-o", tmp_path / "o.gguf", "--consume"]
    done = run(*line, *more)
    assert done.returncode == 2
    assert b"only with local inputs" in done.stderr
    assert sorted(path for path in tmp_path.iterdir() if path != recipe) == before


def test_swap_of_one_tensor_moves_its_bytes_and_a_header(served: Path, nginx: Start, tmp_path: Path) -> None:
    server = nginx(served)
    name = "blk.7.ffn_down.weight"
    local, remote = served / "model-Q8_0.gguf", served / "model-Q4_0.gguf"
    good("swap", local, "--from", server.url(remote.name), "--tensor", name, "-o", tmp_path / "far.gguf")
    asked = server.log()
    good("swap", local, "--from", remote, "--tensor", name, "-o", tmp_path / "near.gguf")
    assert (tmp_path / "far.gguf").read_bytes() == (tmp_path / "near.gguf").read_bytes()
    header, *rest = [line for line in asked if line.status == 206]
    assert [line.body for line in rest] == [size_of(remote, name)]
    assert header.body <= MIB
    assert all(line.status == 206 for line in asked)


def test_a_mix_of_two_urls_and_a_local_file_takes_only_what_it_uses(served: Path, nginx: Start, tmp_path: Path) -> None:
    server = nginx(served)
    recipe = tmp_path / "r.recipe"
    recipe.write_text(r"blk\.[0-3]\..*=f16" + "\n" + r"blk\.(4|6|8)\..*=q4_0" + "\n.*=q8_0\n")
    names = ["model-F16.gguf", "model-Q4_0.gguf"]
    far = [server.url(name) for name in names]
    arguments = ["merge", "--recipe", recipe, *far, served / "model-Q8_0.gguf"]
    plan = json.loads(good(*arguments, "-o", tmp_path / "far.gguf", "--dry-run", "--json").stdout)
    heads = server.sent
    assert heads <= 2 * MIB + 2 * 1024
    uses = {use["name"]: use["nbytes"] for use in plan["uses"]}
    wanted = 4 * size_of(served / names[0], "blk.0.ffn_down.weight")
    wanted += 3 * size_of(served / names[1], "blk.0.ffn_down.weight")
    assert sum(uses[url] for url in far) == plan["bytes_fetched"] == wanted
    said = good(*arguments, "-o", tmp_path / "far.gguf", "--dry-run").stdout.decode()
    assert "fetched over the network" in said
    server.forget()
    good(*arguments, "-o", tmp_path / "far.gguf")
    assert server.sent == heads + wanted
    near = [served / name for name in names]
    good("merge", "--recipe", recipe, *near, served / "model-Q8_0.gguf", "-o", tmp_path / "near.gguf")
    assert (tmp_path / "far.gguf").read_bytes() == (tmp_path / "near.gguf").read_bytes()


def test_export_takes_the_tensors_alone(served: Path, nginx: Start, tmp_path: Path) -> None:
    server = nginx(served)
    for dtype in ("raw", "f32"):
        options = ("--tensor", "blk.3.ffn_down.weight", "--dtype", dtype)
        server.forget()
        good("export", server.url("model-Q4_0.gguf"), *options, "-o", tmp_path / f"far-{dtype}.safetensors")
        assert server.sent <= MIB + size_of(served / "model-Q4_0.gguf", "blk.3.ffn_down.weight")
        assert len(server.log()) <= 3
        good("export", served / "model-Q4_0.gguf", *options, "-o", tmp_path / f"near-{dtype}.safetensors")
        far, near = ((tmp_path / f"{place}-{dtype}.safetensors").read_bytes() for place in ("far", "near"))
        assert far == near


def test_fetch_is_the_file_byte_for_byte(served: Path, nginx: Start, tmp_path: Path) -> None:
    server = nginx(served)
    good("fetch", server.url("large.gguf"), "-o", tmp_path / "out.gguf")
    data = (served / "large.gguf").read_bytes()
    assert (tmp_path / "out.gguf").read_bytes() == data
    assert server.sent <= len(data) + MIB
    assert len([line for line in server.log() if line.status == 206]) >= 8


def test_killed_in_mid_fetch_it_fetches_only_what_is_missing(served: Path, nginx: Start, tmp_path: Path) -> None:
    server = nginx(served, slow="3m")  # a connection, and there are eight
    data = (served / "large.gguf").read_bytes()
    part_of_run = [
        sys.executable,
        "-m",
        "gguftool",
        "fetch",
        server.url("slow/large.gguf"),
        "-o",
        tmp_path / "out.gguf",
    ]
    first = subprocess.Popen(part_of_run, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _on_disk(tmp_path) < len(data) // 2:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    time.sleep(0.3)  # until the server has noticed, and logged
    assert not (tmp_path / "out.gguf").exists()
    once = server.sent
    assert once >= len(data) // 2
    done = good("fetch", server.url("slow/large.gguf"), "-o", tmp_path / "out.gguf")
    assert b"resumed after" in done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == data
    # Two heads, what landed since the last note (16 MiB a note), what was on its way in eight connections' buffers.
    assert server.sent <= len(data) + 2 * MIB + 16 * MIB + 8 * 2 * MIB, (once, server.sent)
    assert server.sent - once < len(data) * 3 // 4


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.glob(".gguftool-*.part"))


def test_a_server_that_goes_away_is_exit_2_and_the_same_command_goes_on(
    served: Path, nginx: Start, tmp_path: Path
) -> None:
    server = nginx(served, slow="2m")
    url, out = server.url("slow/large.gguf"), tmp_path / "out.gguf"
    command = [sys.executable, "-m", "gguftool", "fetch", url, "-o", str(out)]
    first = subprocess.Popen(command, env={**environment(), "GGUFTOOL_HTTP_PATIENCE": "3"}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _on_disk(tmp_path) < 10 * MIB:
        time.sleep(0.02)
    server.close()
    _, said = first.communicate(timeout=30)
    assert first.returncode == 2
    assert b"run the same command again" in said
    assert said.count(b"gguftool: error: ") == 1
    assert not out.exists()
    back = nginx(served, slow="20m", port=server.port)
    done = good(*shlex.split(shlex.join(command))[3:])
    assert b"resumed after" in done.stderr
    data = (served / "large.gguf").read_bytes()
    assert out.read_bytes() == data
    assert back.sent <= len(data) - 9 * MIB + MIB


def test_stopped_by_a_signal_and_replaced_before_it_went_on(served: Path, nginx: Start, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "m.gguf").write_bytes((served / "large.gguf").read_bytes())
    server = nginx(folder, slow="2m")
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "gguftool", "fetch", server.url("slow/m.gguf"), "-o", str(out)]
    first = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _on_disk(tmp_path) < 8 * MIB:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=20)
    assert first.returncode == 130
    assert b"run the same command again" in said
    os.utime(folder / "m.gguf", (1, 1))  # another ETag
    again = run("fetch", server.url("slow/m.gguf"), "-o", out)
    assert again.returncode == 2
    assert f"changed since: {server.url('slow/m.gguf')}".encode() in again.stderr
    assert b"--no-resume" in again.stderr
    good("fetch", server.url("m.gguf"), "-o", out, "--no-resume")
    assert out.read_bytes() == (folder / "m.gguf").read_bytes()


def test_a_file_that_is_replaced_in_mid_fetch_is_never_mixed(served: Path, nginx: Start, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "m.gguf").write_bytes((served / "large.gguf").read_bytes())
    server = nginx(folder, slow="2m")
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "gguftool", "fetch", server.url("slow/m.gguf"), "-o", str(out)]
    first = subprocess.Popen(command, env={**environment(), "GGUFTOOL_HTTP_PATIENCE": "5"}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _on_disk(tmp_path) < 10 * MIB:
        time.sleep(0.02)
    other = bytearray((folder / "m.gguf").read_bytes())
    other[-1] ^= 1
    (folder / "new").write_bytes(other)
    os.utime(folder / "new", (1, 1))
    (folder / "new").rename(folder / "m.gguf")
    _, said = first.communicate(timeout=40)
    if first.returncode == 0:  # all of the old file was on its way already
        pytest.fail("the file was served too fast for this test")
    assert first.returncode == 2
    assert b"changed since it was opened" in said
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["served"]
    good("fetch", server.url("m.gguf"), "-o", out)
    assert out.read_bytes() == other


def test_repair_of_a_truncated_download(served: Path, nginx: Start, tmp_path: Path) -> None:
    server = nginx(served)
    data = (served / "large.gguf").read_bytes()
    path = tmp_path / "local.gguf"
    path.write_bytes(data[: 40 * MIB] + bytes(MIB) + data[41 * MIB : -3 * MIB])
    done = good("fetch", "--repair", path, "--from", server.url("large.gguf"))
    assert path.read_bytes() == data
    assert b"3,145,728 bytes are missing at the end" in done.stderr
    assert b"1,048,576 bytes are zeros" in done.stderr
    assert b"no sha256 is recorded" in done.stderr
    assert 4 * MIB <= server.sent <= 5 * MIB + 8192
    again = good("fetch", "--repair", path, "--from", server.url("large.gguf"))
    assert b"no hole, no zeros" in again.stderr


@pytest.mark.parametrize("command", ["swap", "edit"])
def test_what_is_far_away_is_not_changed_in_place(command: str, served: Path, nginx: Start) -> None:
    url = nginx(served).url("model-Q8_0.gguf")
    more = {
        "swap": ("--from", served / "model-Q8_0.gguf", "--tensor", "blk.0.ffn_down.weight"),
        "edit": ("--set", "general.name=str:x"),
    }
    done = run(command, url, *more[command], "--in-place")
    assert done.returncode == 2
    assert b"-o OUT" in done.stderr


# --- the Hub ---


def hub(files: dict[str, bytes]) -> HubServer:
    return HubServer({"org/repo": Repo.of(files)})


def test_a_file_of_the_hub_is_verified_by_its_recorded_hash(served: Path, tmp_path: Path) -> None:
    data = (served / "model-Q8_0.gguf").read_bytes()
    with hub({"model.gguf": data}) as server:
        env = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
        good("fetch", "hf://org/repo/model.gguf", "-o", tmp_path / "out.gguf", **env)
        assert (tmp_path / "out.gguf").read_bytes() == data
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(data[:100_000] + bytes(8192) + data[108_192:-5])
        good("fetch", "--repair", broken, "--from", "hf://org/repo/model.gguf", **env)
        assert broken.read_bytes() == data
        sound = good("fetch", "--repair", broken, "--from", "hf://org/repo/model.gguf", **env)
        assert b"nothing to repair: its sha256 matches the recorded one" in sound.stderr


def test_a_set_of_the_hub_comes_merged_or_as_it_is(tmp_path: Path) -> None:
    tensors = b.llama_tensors()
    files = b.shard_set("Q8/m", [[], tensors[:3], tensors[3:]])
    with hub(dict(files)) as server:
        env = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
        good("fetch", "hf://org/repo/Q8", "-o", tmp_path / "one.gguf", **env)
        (tmp_path / "set").mkdir()
        good("fetch", "hf://org/repo/Q8", "-o", tmp_path / "set", **env)
    got = {f"Q8/{path.name}": path.read_bytes() for path in (tmp_path / "set").iterdir()}
    assert got == dict(files)
    good("merge", tmp_path / "set", "-o", tmp_path / "merged.gguf")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("one.gguf", "merged.gguf")}
    assert len(digests) == 1


def test_hashing_reads_each_byte_once(nginx: Start, served: Path) -> None:
    server = nginx(served)
    remote = good("hash", server.url("large.gguf"))
    assert remote.stdout == good("hash", served / "large.gguf").stdout
    size = (served / "large.gguf").stat().st_size
    assert server.sent <= size + 2 * MIB
    assert len(server.log()) <= N_TENSORS + 2
