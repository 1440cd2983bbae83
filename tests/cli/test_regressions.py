"""Ways in which bytes, inputs or names could have been wrong, each found once by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from gguftool.errors import PlanError
from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.format.pattern import BadPatternError, compile_pattern
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.sources.sidecars import helper_path, set_journal_path, undo_path
from gguftool.surgery.edit.plan import Edits, edited
from gguftool.surgery.inputs import find_inputs, open_inputs
from gguftool.surgery.split import plan_split
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.counted_work import calls_of
from tests.support.paths import FIXTURES

DEMO = FIXTURES / "demo.gguf"
MIX = FIXTURES / "mix"


def test_helper_names_of_one_set_do_not_collide() -> None:
    # 32 bits of a hash made these two shards of one set share a part file.
    one, other = (Path(f"m4372-{number:05d}-of-02001.gguf") for number in (811, 1087))
    assert helper_path(one, "part") != helper_path(other, "part")
    assert len(helper_path(one, "part").name) < 64


def test_editing_a_set_keeps_every_duplicate_key(tmp_path: Path) -> None:
    source = open_model(FIXTURES / "duplicate-keys.gguf")
    execute(plan_split(source, str(tmp_path / "d")), Options(sync=False))
    first = min(tmp_path.glob("d-*.gguf"))
    done = run_gguftool("edit", first, "--set", "x.y=u32:1", "--in-place")
    assert done.returncode == 0, done.stderr
    kept = [(kv.key, kv.raw) for kv in open_model(first).kvs if kv.key not in {"x.y", *_SPLIT}]
    assert kept == [(kv.key, kv.raw) for kv in source.kvs]


_SPLIT = {"split.no", "split.count", "split.tensors.count"}


def test_no_head_is_written_that_cannot_be_read_back(tmp_path: Path) -> None:
    big = tmp_path / "big.txt"
    with big.open("wb") as file:
        file.truncate(300 << 20)
    done = run_gguftool("edit", DEMO, "--set-file", f"a.b={big}", "-o", tmp_path / "o.gguf")
    assert done.returncode == 2
    assert "at most" in one_error_line(done.stderr)
    assert not (tmp_path / "o.gguf").exists()


def _copy(tmp_path: Path) -> Path:
    path = tmp_path / "j.gguf"
    path.write_bytes(DEMO.read_bytes())
    return path


def _undo(path: Path, said: object) -> None:
    text = json.dumps(said).encode() if not isinstance(said, bytes) else said
    undo_path(path).write_bytes(b"gguftool undo 1\n" + struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    "said",
    [
        {"target": "j.gguf", "size": 0, "ranges": []},
        b'{"target": "j.gguf", "size": 1e999, "ranges": []}',
        {"target": "j.gguf", "size": DEMO.stat().st_size, "ranges": []},
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_planted_undo_journal_changes_nothing(tmp_path: Path, said: object, dry_run: bool) -> None:
    path = _copy(tmp_path)
    _undo(path, said)
    options = ["--dry-run"] if dry_run else []
    done = run_gguftool("edit", path, "--set", "general.name=str:x", "--in-place", *options)
    assert done.returncode == 2
    one_error_line(done.stderr)
    assert path.read_bytes() == DEMO.read_bytes()


@pytest.mark.parametrize("name", ["victim.txt", "\ud800", "../j.gguf"])
def test_a_planted_set_journal_reaches_no_other_file(tmp_path: Path, name: str) -> None:
    gate = tmp_path / "j.gguf"
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"mine")
    helper_path(victim, "part").write_bytes(b"x")
    said = {"version": "gguftool set 1", "fingerprint": "0", "replace": True, "names": [[name, 1]]}
    set_journal_path(gate).write_text(json.dumps(said) + "\n")
    done = run_gguftool("edit", DEMO, "--set", "a.b=u32:1", "-o", gate)
    assert done.returncode == 2
    one_error_line(done.stderr)
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("pattern", [".?" * 40 + "zz", ".*" * 16 + "zzz", "(?x)(.*|.) *zzz", "(?ix)a"])
def test_patterns_that_could_run_for_ever_are_refused(pattern: str) -> None:
    def refuse() -> None:
        with pytest.raises(BadPatternError):
            compile_pattern.__wrapped__(pattern)

    assert calls_of(refuse) < 10 * len(pattern) + 200


def test_other_flags_are_pythons() -> None:
    assert compile_pattern("(?i)ATTN_Q").search("blk.0.attn_q.weight")
    assert compile_pattern("(?P<suffix>weight)$").search("blk.0.attn_q.weight")


def test_a_given_label_comes_before_what_a_name_claims(tmp_path: Path) -> None:
    liar = tmp_path / "tiny-Q8_0.gguf"
    liar.write_bytes((MIX / "tiny-Q4_0.gguf").read_bytes())
    inputs = open_inputs([f"other={liar}", f"q8_0={MIX / 'tiny-Q8_0.gguf'}"])
    assert find_inputs(inputs, "Q8_0") == [inputs[1]]
    assert find_inputs(inputs[:1], "q8_0") == [inputs[0]]


def test_provenance_tells_files_of_one_name_apart(tmp_path: Path) -> None:
    for folder, name in (("a", "tiny-Q8_0.gguf"), ("b", "tiny-Q4_0.gguf")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.gguf").write_bytes((MIX / name).read_bytes())
    recipe = tmp_path / "p.recipe"
    recipe.write_text("attn=q8_0\n.*=q4_0\n")
    inputs = (tmp_path / "a/m.gguf", f"q4_0={tmp_path / 'b/m.gguf'}")
    done = run_gguftool("merge", *inputs, "--recipe", recipe, "--provenance", "-o", tmp_path / "o.gguf")
    assert done.returncode == 0, done.stderr
    names = open_model(tmp_path / "o.gguf").get("gguftool.source.files")
    assert names is not None
    assert sorted(names.value()) == ["a/m.gguf", "b/m.gguf"]


def test_files_that_the_command_line_reads_are_no_outputs(tmp_path: Path) -> None:
    recipe = tmp_path / "r.recipe"
    recipe.write_text(".*=q8_0\n")
    inputs = (MIX / "tiny-Q8_0.gguf", MIX / "tiny-Q4_0.gguf")
    done = run_gguftool("merge", *inputs, "--recipe", recipe, "-o", recipe, "--force")
    assert done.returncode == 2
    assert recipe.read_text() == ".*=q8_0\n"
    done = run_gguftool("edit", DEMO, "--set-file", f"c.d={recipe}", "-o", recipe, "--force")
    assert done.returncode == 2
    assert recipe.read_text() == ".*=q8_0\n"


def test_a_gap_too_short_for_the_type_is_not_forced(tmp_path: Path) -> None:
    path = tmp_path / "share.gguf"
    tensors = (b.tensor("a", "F32", (8,), offset=0), b.tensor("b", "F32", (8,), offset=0))
    path.write_bytes(b.gguf((), tensors))
    done = run_gguftool("split", path, tmp_path / "s", "--force-sizes", "gap")
    assert done.returncode == 2
    assert "--force-sizes type" in one_error_line(done.stderr)


@pytest.mark.parametrize("rename", [(("a", "z"), ("b", "z")), (("a", "y"), ("a", "z"))])
def test_two_renames_make_no_duplicate(rename: tuple[tuple[str, str], ...]) -> None:
    kvs: list[KV] = [make_kv(key, ValueType.UINT32, 1) for key in "ab"]
    with pytest.raises(PlanError, match="two renames"):
        edited(kvs, Edits(rename=rename))


@pytest.mark.parametrize("arguments", [("dump", DEMO, "--filter"), ("diff", DEMO, DEMO, "--ignore")])
def test_expressions_of_every_option_are_held_to_the_same_rule(arguments: tuple[object, ...]) -> None:
    done = run_gguftool(*arguments, ".?" * 40 + "zz", timeout=10)
    assert done.returncode == 2
    assert b"can take forever" in b" ".join(done.stderr.split())
