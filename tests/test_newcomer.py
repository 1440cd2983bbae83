"""Adding a type, an engine, a lint rule or a storage backend takes what docs/architecture.md says, and nothing else.

Each test edits one or two files of a copy of the package, as a newcomer would, and runs the command line of the copy.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import builders as b
from tests.support.paths import REPO

INVENTED = 5000  # a type id that is nobody's


class Copy:
    """A copy of the package: `insert` edits it, `run` runs its command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / "gguftool", folder / "gguftool", ignore=ignored)

    def insert(self, module: str, mark: str, line: str) -> None:
        """Insert `line` behind the only line that reads `mark`."""
        path = self.folder / "gguftool" / module
        lines = path.read_text().splitlines()
        assert lines.count(mark) == 1, f"{module} has {lines.count(mark)} lines '{mark}'"
        at = lines.index(mark) + 1
        path.write_text("\n".join([*lines[:at], line, *lines[at:], ""]))

    def append(self, module: str, text: str) -> None:
        """Append `text` to a module."""
        with open(self.folder / "gguftool" / module, "a") as file:
            file.write(text)

    def run(self, *words: object, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gguftool", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def model_of(path: Path, kind: int, row_bytes: int) -> Path:
    """Write a model with one matrix of the type `kind`, with 3 rows of `row_bytes`, which begin with a half of 1.0."""
    row = b"\x00\x3c" + bytes(range(row_bytes - 2))
    tensors = [*b.llama_tensors(), b.Tensor("output.weight", (32, 3), kind, row * 3)]
    path.write_bytes(b.gguf(b.llama_kvs(), tensors))
    return path


def test_a_type_is_one_row(copy: Copy, tmp_path: Path) -> None:
    model = model_of(tmp_path / "new.gguf", INVENTED, 20)
    before = json.loads(copy.run("dump", model, "--json"))["tensors"][-1]
    assert (before["type"], before["sizing"]) == (f"type#{INVENTED}", "by gap")

    copy.insert("format/ggml.py", "_TYPES = (", f'    _type({INVENTED}, "QX_0", "legacy", 32, 20, BOTH, "", _ENGINE),')
    listed = {row["name"]: row for row in json.loads(copy.run("types", "--json"))}
    assert (listed["QX_0"]["bits_per_weight"], listed["QX_0"]["quantizers"]) == (5.0, ["llama-quantize"])
    assert "qx_0 in recipes" in copy.run("types", "qx_0")
    after = json.loads(copy.run("dump", model, "--json"))["tensors"][-1]
    assert (after["type"], after["nbytes"], after["sizing"]) == ("QX_0", 60, "by type")
    assert "QX_0" in copy.run("report", model)
    assert "QX_0" not in copy.run("check", model, "--select", "T,S")  # as both engines have it now


def test_a_type_with_a_decoder_is_a_row_in_each_of_two_tables(copy: Copy, tmp_path: Path) -> None:
    model = model_of(tmp_path / "new.gguf", INVENTED, 34)
    copy.insert("format/ggml.py", "_TYPES = (", f'    _type({INVENTED}, "QX_0", "legacy", 32, 34, BOTH, "lookup", ()),')
    row = '    "QX_0": Lookup(scale_at=0, codes=(whole_bytes(2, 32),), values="int8"),'
    copy.insert("format/quants/types.py", "LOOKUPS: dict[str, Lookup] = {", row)
    assert json.loads(copy.run("types", "QX_0", "--json"))[0]["dequantized_by"] == "gguftool"

    out = tmp_path / "out.safetensors"
    copy.run("export", model, "--tensor", "output.weight", "--dtype", "f32", "-o", out)
    from safetensors.numpy import load_file

    (floats,) = load_file(out).values()
    assert floats.tolist() == [list(range(32))] * 3


def test_an_engine_is_a_row_and_its_name_beside_the_types_that_it_loads(copy: Copy, tmp_path: Path) -> None:
    model = model_of(tmp_path / "new.gguf", INVENTED, 20)
    copy.run("check", model, "--engine", "new.cpp", code=2)

    mark = "ENGINES: Final[dict[str, Engine]] = {"
    copy.insert("format/engine_facts/engines.py", mark, '    "new.cpp": Engine(),')
    row = f'    _type({INVENTED}, "QX_0", "legacy", 32, 20, ("new.cpp",), "", _ENGINE),'
    copy.insert("format/ggml.py", "_TYPES = (", row)
    report = json.loads(copy.run("check", model, "--json"))
    assert (report["engines"][0], report["able"]) == ("new.cpp", ["new.cpp"])
    assert json.loads(copy.run("check", model, "--engine", "new.cpp", "--json"))["findings"] == []
    recipe = tmp_path / "new.recipe"
    recipe.write_text(".*=qx_0\n")
    assert json.loads(copy.run("recipe", "check", recipe, "--model", model, "--json"))["engine"] == "new.cpp"


def test_a_lint_rule_is_one_function(copy: Copy, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b.small_model())
    rule = """

@rule("X99", Severity.ERROR, way_out="give it another name")
def tiny_name(target: LintTarget) -> Iterator[Hit]:
    \"\"\"The model is called Tiny.\"\"\"
    if target.string("general.name") == "Tiny":
        yield Hit(message="it is called Tiny")
"""
    copy.append("analysis/lint/types.py", rule)
    (finding,) = json.loads(copy.run("check", model, "--json", "--select", "X99", code=1))["findings"]
    assert (finding["code"], finding["message"]) == ("X99", "it is called Tiny")
    assert finding["way_out"] == "give it another name"


GZIP_BACKEND = '''

class GzipBackend(Backend):
    """Files packed by gzip."""

    def open(self, name: str, first_read: int) -> Source:
        """Unpack the file."""
        from gguftool.storage.sources.gzip_source import GzipSource

        return GzipSource(name)

    def expand(self, name: str, suffix: str) -> tuple[str, ...]:
        """Return the name."""
        return (name,)

    def siblings(self, name: str, suffix: str) -> tuple[str, ...]:
        """Return nothing."""
        return ()


SCHEMES["gzip"] = GzipBackend()
'''
GZIP_SOURCE = '''
import gzip

from gguftool.storage.sources.source import Source


class GzipSource(Source):
    """A file packed by gzip, unpacked in memory."""

    def __init__(self, name: str) -> None:
        self._name = name
        with gzip.open(name.removeprefix("gzip://")) as file:
            self._data = file.read()

    name = property(lambda self: self._name)
    size = property(lambda self: len(self._data))
    identity = property(lambda self: f"{self._name} {len(self._data)}")

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]
'''


def test_a_storage_backend_is_a_class_and_a_row_of_schemes(copy: Copy, tmp_path: Path) -> None:
    """It opens, can be checked and hashed, and two writers copy from it: nothing else knows about schemes."""
    model, donor = tmp_path / "tiny.gguf", tmp_path / "donor.gguf"
    model.write_bytes(b.small_model())
    donor.write_bytes(b.small_model(b.KV("general.author", b.STR, "somebody")))
    packed = tmp_path / "tiny.gguf.gz"
    packed.write_bytes(gzip.compress(model.read_bytes()))
    name = f"gzip://{packed}"
    copy.run("dump", name, code=2)

    copy.append("storage/sources/locate.py", GZIP_BACKEND)
    copy.append("storage/sources/gzip_source.py", GZIP_SOURCE)
    opened, plain = (json.loads(copy.run("dump", each, "--json")) for each in (name, model))
    assert (opened["metadata"], opened["tensors"]) == (plain["metadata"], plain["tensors"])
    copy.run("check", name, "--ignore", "K,V,A")  # it is too small to be a model
    assert copy.run("hash", name).split()[0] == copy.run("hash", model).split()[0]
    copy.run("merge", name, "-o", tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == model.read_bytes()
    for source, out in ((name, "one.gguf"), (model, "other.gguf")):
        copy.run("swap", donor, "--from", source, "--tensor", "attn_q", "-o", tmp_path / out)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
