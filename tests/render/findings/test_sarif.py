"""SARIF: valid by the standard's schema, and of use to GitHub's code scanning."""

from __future__ import annotations

import json
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gguftool.analysis.lint.check import check
from gguftool.cli.app import app
from gguftool.render.findings import sarif
from gguftool.render.findings.sarif import check_sarif, uri_of
from tests.support.check_models import F32, File, T, shards
from tests.support.head_corpus import corpus, llama
from tests.support.sarif import problems


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(path: str) -> dict[str, Any]:
    log = json.loads(check_sarif(check(path)))
    assert problems(log) == []
    (run,) = log["runs"]
    return run  # type: ignore[no-any-return]


def test_every_model_of_the_corpus_makes_a_valid_log(here: Path) -> None:
    for _, head in list(corpus())[::4]:
        (here / "m.gguf").write_bytes(head.bytes())
        run_of("m.gguf")


def test_a_result_names_its_rule_its_file_and_the_command(here: Path) -> None:
    (here / "models").mkdir()
    (here / "models" / "a b.gguf").write_bytes(llama().with_key("llama.embedding_length", "u32", 128).bytes())
    run = run_of("models/a b.gguf")
    (result,) = run["results"]
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert (result["ruleId"], rule["id"], result["level"]) == ("A02", "A02", "error")
    assert rule["shortDescription"]["text"] == "Dims that the metadata contradicts"
    assert "docs/lint.md#a02-dims-that-the-metadata-contradicts" in rule["help"]["text"]
    place = result["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "models/a%20b.gguf"}, "region": {"startLine": 1}}
    assert result["properties"]["command"].startswith('gguftool edit "models/a b.gguf" --set ')
    assert result["properties"]["tensors"] == 21
    assert run["invocations"] == [{"executionSuccessful": True}]


def test_what_is_no_gguf_is_a_result_too(here: Path) -> None:
    (here / "m.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    run = run_of("m.gguf")
    assert [(result["ruleId"], result["level"]) for result in run["results"]] == [("N04", "error")]
    assert run["invocations"] == [{"executionSuccessful": False}]
    done = CliRunner().invoke(app, ["check", "m.gguf", "--sarif"])
    assert (done.exit_code, json.loads(done.stdout)["version"]) == (2, "2.1.0")


def test_a_finding_is_in_the_shard_that_holds_its_tensor(here: Path) -> None:
    first, second = shards(here, 2)
    data = second.read_bytes()
    second.write_bytes(data + b"GGUX" * 16)  # bytes that belong to no tensor
    results = {result["ruleId"]: result for result in run_of(first.name)["results"]}
    place = results["F17"]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place["uri"] == second.name


def test_fingerprints_last_and_differ(here: Path) -> None:
    (here / "m.gguf").write_bytes(dict(corpus())["llama: attn_qkv fused"].bytes())
    once, again = (run_of("m.gguf")["results"] for _ in range(2))
    prints = [result["partialFingerprints"]["gguftool/v1"] for result in once]
    assert prints == [result["partialFingerprints"]["gguftool/v1"] for result in again]
    assert len(set(prints)) == len(prints) > 1


def test_hostile_names_stay_text(here: Path) -> None:
    hostile = File(tensors=[T(b"\xff\x1b[2J", (32, 0)), T("\u202e", (9,), F32)], kvs=[(b"\xfe", "u64", 1)])
    (here / "m.gguf").write_bytes(hostile.bytes())
    text = check_sarif(check("m.gguf"))
    assert text.isascii()
    assert problems(json.loads(text)) == []
    assert "\\u001b" not in text


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("m.gguf", "m.gguf"),
        ("./a/../m.gguf", "m.gguf"),
        ("50%#?.gguf", "50%25%23%3F.gguf"),
        ("/somewhere/else.gguf", "file:///somewhere/else.gguf"),
        ("hf://org/repo/m.gguf", "hf://org/repo/m.gguf"),
        ("https://user:secret@host/m.gguf?token=x", "https://host/m.gguf"),
    ],
)
def test_uris(name: str, uri: str) -> None:
    assert uri_of(name).startswith(uri)
    assert "secret" not in uri_of(name)


def test_help_has_an_address_if_the_package_names_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = Message()
    message["Version"] = "1"
    message["Project-URL"] = "Documentation, https://example.org/docs/"
    monkeypatch.setattr(sarif, "metadata", lambda _: message)
    (here / "m.gguf").write_bytes(llama().with_key("llama.embedding_length", "u32", 128).bytes())
    (rule,) = run_of("m.gguf")["tool"]["driver"]["rules"]
    assert rule["helpUri"] == "https://example.org/docs/lint.md#a02-dims-that-the-metadata-contradicts"
