"""Models on the Hub, through huggingface_hub and a stand-in for the Hub and its CDN."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguftool.errors import SourceError
from gguftool.model.opening import open_model
from gguftool.storage.sources.hub import HubPath, parse_hub
from gguftool.storage.sources.locate import SCHEMES, HubBackend, canonical, expand, open_source
from gguftool.storage.sources.source import AbsentError, ChangedError
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.hub_server import SIGNATURE, HubServer, Repo

TOKEN = "hf_7h1s1s4v3rys3cr3tt0k3n"
TENSORS = b.llama_tensors(2)
SET = b.shard_set("UD-Q4_K_XL/m-UD-Q4_K_XL", [TENSORS[at::3] for at in range(3)])
FILES = {
    **SET,
    "README.md": b"hello",
    "m-Q8_0.gguf": b.small_model(),
    "m-Q4_K_M.gguf": b.small_model(layers=2),
    "deep/er/m-Q6_K.gguf": b.small_model(layers=3),
}
SHARDS = [f"hf://org/repo/{name}" for name in SET]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    import huggingface_hub.constants

    repos = {
        "org/repo": Repo.of(FILES),
        "org/private": Repo.of(FILES, tokens=frozenset({TOKEN})),
        "org/gated": Repo.of(FILES, gated=frozenset({TOKEN})),
    }
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HubServer(repos) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        # The library asks once a day which tools it might be run by; that would be counted here.
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setenv("GGUFTOOL_HTTP_PATIENCE", "3")
        _begin_a_run(monkeypatch)
        yield server
    huggingface_hub.close_session()


def _begin_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let revisions mean the commits that they have now, as in a new process."""
    monkeypatch.setitem(SCHEMES, "hf", HubBackend())


def _ranges(hub: HubServer, *, cdn: bool) -> list[str | None]:
    port = hub.other_port if cdn else hub.port
    return [request.header("Range") for request in hub.requests if request.port == port]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ("hf://org/repo/a/b.gguf", HubPath(repo="org/repo", path="a/b.gguf")),
        ("hf://models/org/repo/b.gguf", HubPath(repo="org/repo", path="b.gguf")),
        ("hf://org/repo@v1.0/b.gguf", HubPath(repo="org/repo", path="b.gguf", revision="v1.0")),
        ("hf://org/repo@refs/pr/3/b.gguf", HubPath(repo="org/repo", path="b.gguf", revision="refs/pr/3")),
        ("hf://org/repo@a%2Fb/b.gguf", HubPath(repo="org/repo", path="b.gguf", revision="a/b")),
        ("hf://datasets/org/repo/b.gguf", HubPath(repo="org/repo", path="b.gguf", kind="datasets")),
        ("hf://org/repo", HubPath(repo="org/repo", path="")),
        ("hf://org/repo/", HubPath(repo="org/repo", path="")),
    ],
)
def test_names_of_the_hub(spec: str, place: HubPath) -> None:
    assert parse_hub(spec) == place
    assert parse_hub(str(place)) == place


@pytest.mark.parametrize(
    "spec",
    ["hf://", "hf://org", "hf://org/../x.gguf", "hf://org/repo/a/../b", "hf://org/repo/a//b", "hf://o rg/repo/x"],
)
def test_what_is_no_name_of_the_hub_is_refused(spec: str) -> None:
    with pytest.raises(SourceError, match="expected hf://org/repo"):
        parse_hub(spec)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("/org/repo/blob/main/m-Q8_0.gguf", "hf://org/repo/m-Q8_0.gguf"),
        ("/org/repo/resolve/main/m-Q8_0.gguf?download=true", "hf://org/repo/m-Q8_0.gguf"),
        ("/org/repo/resolve/v1/a%20b.gguf", "hf://org/repo@v1/a b.gguf"),
        ("/org/repo/tree/main/UD-Q4_K_XL", "hf://org/repo/UD-Q4_K_XL"),
        ("/org/repo/tree/refs%2Fpr%2F1", "hf://org/repo@refs/pr/1"),
        ("/org/repo", "hf://org/repo"),
        ("/datasets/org/repo/blob/main/m.gguf", "hf://datasets/org/repo/m.gguf"),
    ],
)
def test_pages_of_the_hub_are_names_of_files(hub: HubServer, page: str, name: str) -> None:
    assert canonical(hub.endpoint + page) == name


def test_pages_of_another_hub_stay_urls(hub: HubServer) -> None:
    link = "https://huggingface.co/org/repo/{}/main/m.gguf"
    assert canonical(link.format("blob")) == link.format("resolve")
    assert canonical("https://host.example/org/repo/blob/main/m.gguf").endswith("/blob/main/m.gguf")


# --- files, sets, folders --------------------------------------------------------------------------------------------


def test_a_file_costs_a_redirect_and_a_range(hub: HubServer) -> None:
    model = open_model("hf://org/repo/m-Q8_0.gguf")
    assert len(model.tensors) == 6
    assert hub.asked() == ["GET /org/repo/resolve/main/m-Q8_0.gguf"]
    assert _ranges(hub, cdn=True) == ["bytes=0-1048575"]
    source = model.sources[0]
    assert source.name == "hf://org/repo/m-Q8_0.gguf"
    commit = hub.repos["org/repo"].revisions["main"]
    assert source.commit == commit  # type: ignore[attr-defined]
    hub.forget()
    for tensor in model.tensors.values():
        assert tensor.extent.read()
    assert hub.asked() == []  # what the redirect led to holds for the data too


@pytest.mark.parametrize("name", [*SHARDS, "hf://org/repo/UD-Q4_K_XL", "hf://org/repo/UD-Q4_K_XL/*.gguf"])
def test_any_shard_and_the_folder_open_the_set_with_one_listing(hub: HubServer, name: str) -> None:
    model = open_model(name)
    assert model.is_complete
    assert [source.name for source in model.sources] == SHARDS
    asked = hub.asked()
    assert [line for line in asked if "/api/" in line] == ["GET /api/models/org/repo/revision/main"]
    commit = hub.repos["org/repo"].revisions["main"]
    assert sorted(asked)[1:] == [f"GET /org/repo/resolve/{commit}/{shard}" for shard in SET]
    assert len(_ranges(hub, cdn=True)) == 3
    for tensor in TENSORS:
        assert model.tensors[str(tensor.name)].extent.read() == tensor.data


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hf://org/repo/*Q4_K_M*.gguf", ["hf://org/repo/m-Q4_K_M.gguf"]),
        ("hf://org/repo/*/*-00001-of-*.gguf", SHARDS[:1]),
        ("hf://org/repo/d*/e?/*", ["hf://org/repo/deep/er/m-Q6_K.gguf"]),
        ("hf://org/repo", ["hf://org/repo/m-Q4_K_M.gguf", "hf://org/repo/m-Q8_0.gguf"]),
        ("hf://org/repo/m-Q8_0.gguf", ["hf://org/repo/m-Q8_0.gguf"]),
    ],
)
def test_globs_and_folders(hub: HubServer, name: str, found: list[str]) -> None:
    assert list(expand(name, ".gguf")) == found


def test_a_folder_without_models_names_those_that_have_some(hub: HubServer) -> None:
    with pytest.raises(SourceError, match=r"these do: hf://org/repo/deep/er$"):
        expand("hf://org/repo/deep", ".gguf")
    with pytest.raises(SourceError, match="no file matches"):
        expand("hf://org/repo/nothing*", ".gguf")


def test_a_revision_means_one_commit_in_a_run(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repos["org/repo"]
    before = open_source("hf://org/repo/m-Q8_0.gguf")
    repo.commit({name: data[::-1] for name, data in FILES.items()})
    assert open_source("hf://org/repo/m-Q4_K_M.gguf").read_at(0, 4) == b"GGUF"  # of the commit seen first
    assert before.read_at(0, 4) == b"GGUF"
    _begin_a_run(monkeypatch)
    assert open_source("hf://org/repo/m-Q4_K_M.gguf").read_at(0, 4) != b"GGUF"


def test_an_older_commit_can_be_named(hub: HubServer) -> None:
    repo = hub.repos["org/repo"]
    old = repo.revisions["main"]
    repo.commit({"new.gguf": b.small_model()})
    assert len(open_model(f"hf://org/repo@{old}/m-Q8_0.gguf").tensors) == 6
    with pytest.raises(AbsentError, match="no such file at this revision"):
        open_model("hf://org/repo/m-Q8_0.gguf")


def test_identity_is_the_content_that_the_hub_recorded(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_source("hf://org/repo/m-Q8_0.gguf").identity
    hub.repos["org/repo"].commit({**FILES, "README.md": b"another"})
    _begin_a_run(monkeypatch)
    assert open_source("hf://org/repo/m-Q8_0.gguf").identity == first
    hub.repos["org/repo"].commit({"m-Q8_0.gguf": FILES["m-Q8_0.gguf"][:-32]})
    _begin_a_run(monkeypatch)
    assert open_source("hf://org/repo/m-Q8_0.gguf").identity != first


# --- tokens and secrets ----------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_alone(hub: HubServer) -> None:
    for name in ("hf://org/private/m-Q8_0.gguf", "hf://org/gated/UD-Q4_K_XL", f"{hub.endpoint}/org/gated/m-Q8_0.gguf"):
        if name.startswith("hf"):
            assert open_model(name).is_complete
    told = hub.authorizations()
    assert told[hub.port] == {f"Bearer {TOKEN}"}
    assert not told.get(hub.other_port)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("hf://org/private/m-Q8_0.gguf", "hf_another", "needs a token"),
        ("hf://org/private", "hf_another", "needs a token"),
        ("hf://org/gated/m-Q8_0.gguf", "hf_another", "accept its terms"),
        ("hf://org/gated", "hf_another", "accept its terms"),
        ("hf://org/gated/m-Q8_0.gguf", "", "accept its terms"),
        ("hf://org/nothing/m.gguf", TOKEN, "needs a token"),
        ("hf://org/repo@nothing/m-Q8_0.gguf", TOKEN, "no such revision"),
        ("hf://org/repo@nothing", TOKEN, "no such revision"),
        ("hf://org/repo/nothing.gguf", TOKEN, "no such file"),
    ],
)
def test_refusals_say_what_to_do(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, name: str, token: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    done = run_gguftool("dump", name)
    assert done.returncode == 2
    line = one_error_line(done.stderr)
    assert said in line
    assert token == "" or token not in line
    assert SIGNATURE not in line


@pytest.mark.slow
def test_signed_urls_are_never_shown(hub: HubServer) -> None:
    check = ["check", "--ignore", "K,V,A"]  # small models lack what engines need
    for command in (["dump", "--json"], [*check], [*check, "--json"], ["report"], ["hash", "--files"]):
        done = run_gguftool(*command, "hf://org/gated/m-Q8_0.gguf")
        assert done.returncode == 0, done.stderr
        for secret in (SIGNATURE, TOKEN, "Key=k"):
            assert secret not in (done.stdout + done.stderr).decode()


# --- when things go wrong --------------------------------------------------------------------------------------------


def test_an_expired_link_is_got_anew_once(hub: HubServer) -> None:
    hub.expires = 1
    source = open_source("hf://org/repo/m-Q8_0.gguf")
    data = FILES["m-Q8_0.gguf"]
    for at in (100, 200):
        assert b"".join(source.stream(at, 50)) == data[at : at + 50]
    assert len(hub.asked()) == 3
    hub.expires = 0
    with pytest.raises(SourceError, match="403"):
        list(source.stream(5, 50))


def test_a_file_that_changes_behind_an_expired_link_is_noticed(hub: HubServer) -> None:
    hub.expires = 1
    source = open_source("hf://org/repo/m-Q8_0.gguf")
    commit = hub.repos["org/repo"].revisions["main"]
    hub.repos["org/repo"].commits[commit]["m-Q8_0.gguf"] = bytes(len(FILES["m-Q8_0.gguf"]))
    with pytest.raises(ChangedError, match="changed since it was opened"):
        list(source.stream(5, 50))


def test_files_outside_lfs_and_repositories_that_moved(hub: HubServer) -> None:
    hub.linked = False
    hub.xet = False
    hub.moved["org/old"] = "org/repo"
    model = open_model("hf://org/old/m-Q8_0.gguf")
    assert len(model.tensors) == 6
    assert model.sources[0].sha256 is None  # type: ignore[attr-defined]


def test_a_hub_that_is_down_is_said_so(hub: HubServer) -> None:
    hub.down = 503
    for name in ("hf://org/repo/m-Q8_0.gguf", "hf://org/repo"):
        with pytest.raises(SourceError, match=r"HTTP status 503.*given up after") as error:
            open_model(name)
        assert "\n" not in str(error.value)


def test_check_tells_what_the_hub_said(hub: HubServer) -> None:
    done = run_gguftool("check", "hf://org/repo/README.md", "--this-file-only")
    text = " ".join(done.stdout.decode().split())
    assert done.returncode == 2
    for words in (
        "status 206",
        "5 bytes",
        "LFS",
        "Xet",
        f"commit {hub.repos['org/repo'].revisions['main']}",
        "'hello'",
    ):
        assert words in text
