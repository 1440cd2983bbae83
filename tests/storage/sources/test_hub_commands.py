"""hf:// by the real huggingface_hub, against a stand-in for the Hub and its CDN on loopback.

Each command runs in a process of its own, since the library reads HF_ENDPOINT when it is imported; a guard on its path
lets it reach loopback only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import builders as b
from tests.support.command import one_error_line
from tests.support.hub_server import SIGNATURE, HubServer, Repo
from tests.support.mix_models import SHAPES, quant
from tests.support.paths import REPO
from tests.support.scripted_server import Exchange
from tests.support.suite import make_suite

pytestmark = pytest.mark.slow

TOKEN = "hf_7h1s1s4v3rys3cr3tt0k3n"
BIG = {"token_embd.weight": (256, 5000), "output.weight": (256, 500), "output_norm.weight": (256,)}
Ask = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("hub")
    big = Path(quant(folder / "big.gguf", "Q8_0", shapes=BIG)).read_bytes()
    shards = b.shard_set("Q4/model", [b.llama_tensors()[:2], b.llama_tensors()[2:4], b.llama_tensors()[4:]])
    page = {f"many/{number}.txt": b"" for number in range(30)}
    return {"big.gguf": big, "README.md": b"# a model\n", **shards, **page}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    repos = {
        "org/model": Repo.of(files),
        "org/gated": Repo.of({"big.gguf": files["big.gguf"]}, gated=frozenset()),
        "org/private": Repo.of({"big.gguf": files["big.gguf"]}, tokens=frozenset({TOKEN})),
    }
    with HubServer(repos, page=7) as server:
        yield server
        assert server.errors == []


@pytest.fixture
def ask(hub: HubServer, tmp_path: Path) -> Ask:
    """Run the command line as somebody with a token, whose Hub is the stand-in."""

    def run(*arguments: object, token: str | None = TOKEN, **more: str) -> subprocess.CompletedProcess[bytes]:
        left = tmp_path / "left-loopback"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
            "PYTHONPATH": os.pathsep.join(str(path) for path in (REPO, REPO / "tests" / "support" / "guard")),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "GGUFTOOL_HTTP_PATIENCE": "3",
            "GGUFTOOL_TEST_LEFT": str(left),
            **({"HF_TOKEN": token} if token else {}),
            **more,
        }
        environment = {key: value for key, value in environment.items() if token or key != "HF_TOKEN"}
        command = [sys.executable, "-m", "gguftool", *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=60, env=environment)
        assert not left.exists(), left.read_text()
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        for secret in (TOKEN, SIGNATURE):
            assert secret.encode() not in done.stdout + done.stderr + written
        return done

    return run


def tensors(done: subprocess.CompletedProcess[bytes]) -> int:
    assert done.returncode == 0, done.stderr
    return len(done.stdout.splitlines()) - 1


def test_the_guard_guards(ask: Ask) -> None:
    """What leaves loopback is noticed: otherwise the tests below would prove nothing."""
    with pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        ask("dump", "http://192.0.2.1/model.gguf")


def test_the_token_goes_to_the_hub_only(hub: HubServer, ask: Ask, tmp_path: Path, files: dict[str, bytes]) -> None:
    done = ask("merge", "hf://org/model/big.gguf", "-o", tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == files["big.gguf"]
    assert hub.authorizations() == {hub.port: {f"Bearer {TOKEN}"}, hub.other_port: set()}
    assert hub.asked(cdn=True) != []


@pytest.mark.parametrize("link", ["resolve", "blob"])
def test_links_of_pages_are_the_files(hub: HubServer, ask: Ask, link: str) -> None:
    assert tensors(ask("dump", "--csv", f"{hub.endpoint}/org/model/{link}/main/big.gguf")) == len(BIG)
    assert hub.authorizations()[hub.other_port] == set()


def test_a_token_for_the_hub_is_no_other_hosts(hub: HubServer, ask: Ask) -> None:
    """The CDN's address given by the user is any web server."""
    ask("dump", f"{hub.other}/repos/aa/bb.gguf")
    assert hub.authorizations() == {hub.port: set(), hub.other_port: set()}


def test_everything_is_read_of_one_commit(hub: HubServer, ask: Ask, files: dict[str, bytes], tmp_path: Path) -> None:
    """Once a commit is known, nothing is asked for by the branch's name: it may move in between."""
    ask("merge", "hf://org/model/Q4", "-o", tmp_path / "out.gguf")
    commit = hub.repos["org/model"].revisions["main"]
    asked = [path for path in hub.asked() if "/resolve/" in path]
    assert len({path.rpartition("/")[2] for path in asked}) == 3
    assert {path.split("/resolve/")[1].split("/")[0] for path in asked} == {commit}


def test_a_branch_that_moves_between_head_and_data(
    hub: HubServer, ask: Ask, files: dict[str, bytes], tmp_path: Path
) -> None:
    """The output is of the commit that was opened, or nothing: never half of each."""
    commit, repo = hub.repos["org/model"].revisions["main"], hub.repos["org/model"]

    def move(exchange: Exchange) -> None:
        if exchange.request.port == hub.other_port and len(repo.commits) == 1:
            repo.commit({**files, "big.gguf": bytes(len(files["big.gguf"]))})

    hub.before = move
    done = ask("merge", "hf://org/model/big.gguf", "-o", tmp_path / "out.gguf")
    assert repo.revisions["main"] != commit
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == files["big.gguf"]


def test_a_revision_is_asked_for(hub: HubServer, ask: Ask, files: dict[str, bytes]) -> None:
    old = hub.repos["org/model"].revisions["main"]
    hub.repos["org/model"].commit({"README.md": b"empty now"})
    assert ask("dump", "hf://org/model/big.gguf").returncode == 2
    assert tensors(ask("dump", "--csv", f"hf://org/model@{old}/big.gguf")) == len(BIG)


@pytest.mark.parametrize("named", ["Q4", "Q4/model-00001-of-00003.gguf", "Q4/model-00003-of-00003.gguf"])
def test_a_set_opens_from_its_folder_and_from_any_shard(hub: HubServer, ask: Ask, named: str) -> None:
    assert tensors(ask("dump", "--csv", f"hf://org/model/{named}")) == len(b.llama_tensors())


def test_a_shard_that_is_missing_is_named(hub: HubServer, ask: Ask, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos["org/model"].commit({path: data for path, data in files.items() if "00002-of" not in path})
    done = ask("merge", "hf://org/model/Q4/model-00001-of-00003.gguf", "-o", tmp_path / "out.gguf")
    assert done.returncode == 2
    assert "model-00002-of-00003.gguf" in one_error_line(done.stderr)


@pytest.mark.parametrize(
    ("spec", "token", "says"),
    [
        ("hf://org/gated/big.gguf", TOKEN, "gated"),
        ("hf://org/gated/big.gguf", None, "gated"),
        ("hf://org/private/big.gguf", None, "token"),
        ("hf://org/nothing/big.gguf", TOKEN, "repository"),
        ("hf://org/model/nothing.gguf", TOKEN, "no such file"),
        ("hf://org/model/nothing", TOKEN, "no such file"),
        ("hf://org/model@v9/big.gguf", TOKEN, "revision"),
        ("hf://org/model/README.md", TOKEN, "GGUF|gguf"),
        ("hf://org", TOKEN, "expected hf://"),
        ("hf://org/model/../../secret.gguf", TOKEN, "expected hf://"),
    ],
)
def test_what_cannot_be_had_is_said(hub: HubServer, ask: Ask, spec: str, token: str | None, says: str) -> None:
    done = ask("dump", spec, token=token)
    assert done.returncode == 2
    assert any(part in one_error_line(done.stderr) for part in says.split("|"))


def test_a_private_model_is_read_with_its_token(hub: HubServer, ask: Ask) -> None:
    assert tensors(ask("dump", "--csv", "hf://org/private/big.gguf")) == len(BIG)


def test_offline_asks_nobody(hub: HubServer, ask: Ask) -> None:
    for name in ("hf://org/model/big.gguf", f"{hub.endpoint}/org/model/resolve/main/big.gguf"):
        done = ask("dump", name, HF_HUB_OFFLINE="1")
        assert done.returncode == 2
        assert "HF_HUB_OFFLINE" in one_error_line(done.stderr)
    assert hub.asked() == hub.asked(cdn=True) == []


def test_a_hub_that_is_down_is_said(hub: HubServer, ask: Ask) -> None:
    hub.down = 503
    done = ask("dump", "hf://org/model/Q4")
    assert done.returncode == 2
    assert "503" in one_error_line(done.stderr)


def test_a_renamed_repository_is_followed(hub: HubServer, ask: Ask) -> None:
    hub.moved["org/old"] = "org/model"
    assert tensors(ask("dump", "--csv", "hf://org/old/big.gguf")) == len(BIG)
    assert hub.authorizations()[hub.other_port] == set()


def test_signed_links_that_expire_are_got_anew(
    hub: HubServer, ask: Ask, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.expires = 1
    done = ask("merge", "hf://org/model/big.gguf", "-o", tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == files["big.gguf"]
    assert len([path for path in hub.asked() if "/resolve/" in path]) >= 2


def test_no_head_is_asked_for_twice(hub: HubServer, ask: Ask) -> None:
    """Identity and size come with the redirect: one request of the Hub and one of its CDN for a head."""
    assert tensors(ask("dump", "--csv", "hf://org/model/big.gguf")) == len(BIG)
    assert [path.split()[0] for path in hub.asked()] == ["GET"]
    assert len(hub.asked(cdn=True)) == 1


def test_files_that_are_not_in_lfs(hub: HubServer, ask: Ask) -> None:
    hub.linked = hub.xet = False
    assert tensors(ask("dump", "--csv", "hf://org/model/big.gguf")) == len(BIG)


def test_check_tells_what_a_viewer_would_see(hub: HubServer, ask: Ask) -> None:
    done = ask("check", "--json", "hf://org/model/README.md")
    assert done.returncode in {1, 2}
    assert b"status 206" in done.stdout + done.stderr or b"status 200" in done.stdout + done.stderr
    json.loads(done.stdout or b"{}")


def test_a_folder_of_several_models_is_refused_before_any_is_opened(
    hub: HubServer, ask: Ask, files: dict[str, bytes]
) -> None:
    many = {f"model-{kind}.gguf": files["big.gguf"] for kind in ("Q4_0", "Q8_0", "F16")}
    hub.repos["org/many"] = Repo.of({**many, **{name: data for name, data in files.items() if name.startswith("Q4/")}})
    done = ask("dump", "hf://org/many")
    assert done.returncode == 2
    assert "3 models here" in one_error_line(done.stderr)
    assert not [request for request in hub.requests if "/resolve/" in request.path]
    assert ask("dump", "hf://org/many/*Q8_0*.gguf").returncode == 0


def test_a_mix_is_cooked_of_repositories_of_types(hub: HubServer, ask: Ask, tmp_path: Path) -> None:
    """Only the shards that the recipe takes are opened, and they are compared with the map by the hashes of the Hub."""
    template = Path(make_suite(tmp_path / "suite", ("Q4_K", "Q8_0")))
    for folder in template.parent.iterdir():
        hub.repos[f"org/{folder.name}"] = Repo.of({path.name: path.read_bytes() for path in folder.iterdir()})
    recipe = tmp_path / "mix.recipe"
    recipe.write_text("norm=f32\nattn=q4_K\n.*=q8_0\n")
    words = ("cook", recipe, "--from", f"hf://org/{template.name}")
    done = ask(*words, "-o", tmp_path / "far.gguf")
    assert done.returncode == 0, done.stderr
    near = ask("cook", recipe, "--from", template, "-o", tmp_path / "near.gguf")
    assert near.returncode == 0, near.stderr
    assert (tmp_path / "far.gguf").read_bytes() == (tmp_path / "near.gguf").read_bytes()
    opened = {path.rpartition("/")[2] for path in hub.asked() if path.startswith("GET") and "-of-" in path}
    assert len(opened) == 1 + len(SHAPES)  # each tensor once, and the metadata
    name = f"org/{template.name.replace('{QTYPE}', 'Q8_0')}"
    files = dict(hub.repos[name].commits[hub.repos[name].revisions["main"]])
    files["tensors.map"] = re.sub(rb":[0-9a-f]{64}:", b":" + b"1" * 64 + b":", files["tensors.map"])
    hub.repos[name].commit(files)
    done = ask(*words, "-o", tmp_path / "wrong.gguf")
    assert done.returncode == 2
    assert b"its server records sha256" in done.stderr
    assert not (tmp_path / "wrong.gguf").exists()
