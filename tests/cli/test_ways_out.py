"""Every command that a message prints as a way out works as it stands, with odd names of files."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gguftool.analysis.lint.check import check
from gguftool.cli.app import app
from gguftool.errors import PlanError
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.sources.sidecars import PART, RESUME, helper_path
from gguftool.surgery.edit.plan import Edits, plan_edit
from tests.support import builders as b
from tests.support.check_models import F32, Q8_0, File, T, model
from tests.support.command import run_gguftool
from tests.support.half_way import SHARDS, half_way
from tests.support.head_corpus import corpus
from tests.support.paths import FIXTURES, REPO
from tests.support.shuffled_models import ShuffledModel
from tests.support.syscalls import count_calls, killed_at

COMMAND = re.compile(r"'(gguftool .+?)'(?=$|[ ,;:.])", re.MULTILINE)
ALONE = re.compile(r"^ +(gguftool .+)$", re.MULTILINE)
F16 = 1
NAME = 'it is a $HOME "x".gguf'
PACKAGE = REPO / "gguftool"


def nested() -> bytes:
    return struct.pack("<IIQIQI", 9, 9, 1, 4, 1, 7)


@dataclass(frozen=True)
class Case:
    """A file with a fault, and the code of the finding that has to go away in the file that the command makes."""

    code: str
    data: bytes
    in_place: bool = False


def weight(**more: object) -> T:
    return T("blk.0.ffn_down.weight", (256, 32), Q8_0, **more)  # type: ignore[arg-type]


KINDS = ("Q4_K", "Q8_0")


def fused() -> bytes:
    """A model that llama.cpp reads, and ik_llama.cpp once its tensors are taken apart."""
    whole = tuple(b.tensor(f"blk.{layer}.attn_qkv.weight", "Q4_K", (256, 256)) for layer in range(4))
    return ShuffledModel("llama", KINDS, -1, "<", more=whole, drop=r"attn_[qkv]\.weight").data()


def of_single_experts() -> bytes:
    """A model as converters made it in 2023."""
    single = tuple(
        b.tensor(f"blk.{layer}.ffn_{role}.{expert}.weight", "Q8_0", (64, 256) if role == "down" else (256, 64))
        for layer in range(3)
        for role in ("gate", "down", "up")
        for expert in range(8)
    )
    return ShuffledModel("qwen3moe", KINDS, -1, "<", more=single, drop="_exps").data()


CASES = (
    Case("F03", model(weight(step=8704 + 64), T("blk.0.b.weight")).bytes()),
    Case("F05", model(T("blk.0.a.weight", offset=1088 * 3), T("blk.0.b.weight", offset=1088 * 2)).bytes()),
    Case("F06", model(T("blk.0.a.weight", (32, 31), step=1064), T("blk.0.b.weight")).bytes()),
    Case("F07", model(T("blk.0.x.weight", (9,), F32), T("blk.0.y.weight", (9,), F32), padding=b"\1").bytes()),
    Case("F08", model(kvs=[("general.alignment", "u32", 4)], alignment=4).bytes()),
    Case("F09", model(kvs=[("a.b", "u32", 1), ("a.b", "u32", 2)]).bytes()),
    Case("F10", model(kvs=[("clé", "u32", 1)]).bytes()),
    Case("F10", model(kvs=[("clé", "u32", 1), ("clè", "u32", 1)]).bytes()),
    Case("F11", model(kvs=[("a.b", "bool", 2)]).bytes()),
    Case("F15", File(tensors=[T("token_embd.weight")], kvs=[("llama.block_count", "u32", 0)]).bytes()),
    Case("F17", model(tail=b"GGUX" * 16).bytes()),
    Case("P02", model(kvs=[("", "u32", 1)]).bytes()),
    Case("P03", model(kvs=[("a.b", "raw", nested())]).bytes()),
    Case("S08", model(weight(step=8704 + 64), T("blk.0.b.weight")).bytes()),
    Case("S09", model(kvs=[("general.alignment", "u32", 64)], alignment=64).bytes()),
    Case("T01", model(T("blk.0.ffn_down.weight", (256, 32), 212)).bytes()),
    Case("S05", model(embd=T("token_embd.weight", (256, 32), 212)).bytes()),
    Case("T06", model(T("blk.0.attn_norm.weight", (256,), F16), T("blk.0.ffn_norm.weight", (256,), F16)).bytes()),
    Case("K02", model(kvs=[("tokenizer.ggml.bos_token_id", "i32", 1)]).bytes()),
    Case("K02", model(kvs=[("split.count", "u32", 1)]).bytes()),
    Case("S09", model(kvs=[("general.alignment", "u64", 32)]).bytes()),
    Case("H02", model(kvs=[("general.file_type", "i32", 7)]).bytes()),
    Case("H03", model(weight(), kvs=[("general.file_type", "u32", 2)]).bytes(), in_place=True),
    Case("A03", fused()),
    Case("A03", of_single_experts()),
    Case("A03", ShuffledModel("qwen35", KINDS, -1, "<", keys=(("nextn_predict_layers", 0),)).data()),
    Case("A03", ShuffledModel("llama", KINDS, -1, "<", more=(b.tensor("v.patch_embd.weight", "F32", (4, 4)),)).data()),
    Case("A04", ShuffledModel("qwen35", KINDS, -1, "<", drop=r"blk\.8\.").data()),
)


def in_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a printed command as pasted into a shell, in the folder where it was printed."""
    prelude = f'gguftool() {{ PYTHONPATH="{REPO}" "{sys.executable}" -m gguftool "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", prelude + command], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def commands_in(text: str) -> list[str]:
    """Commands in quotes, as messages have them, and those on lines of their own, as `check` prints them."""
    return list(dict.fromkeys((*COMMAND.findall(text), *ALONE.findall(text))))


def codes_of(file: Path) -> set[str]:
    return set(re.findall(r"^\w+ +([A-Z]\d\d)", run_gguftool("check", file).stdout.decode(), re.MULTILINE))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_the_command_of_a_finding_mends_it(tmp_path: Path, case: Case) -> None:
    (tmp_path / NAME).write_bytes(case.data)
    shown = run_gguftool("check", NAME, "--select", case.code, cwd=tmp_path).stdout.decode()
    assert case.code in shown
    (command,) = commands_in(shown)
    done = in_shell(command, tmp_path)
    assert done.returncode == 0, (command, done.stderr)
    (made,) = (path for path in tmp_path.iterdir() if case.in_place or path.name != NAME)
    assert case.code not in codes_of(made)


def test_every_command_that_a_mistake_in_a_head_is_answered_with_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command for the 236 heads of the corpus runs, and what it makes is without the findings that it was for."""
    monkeypatch.chdir(tmp_path)
    file = "a b.gguf"
    seen: set[str] = set()
    for name, head in corpus():
        Path(file).write_bytes(head.bytes())
        for group in check(file).groups:
            if not group.command:
                continue
            done = CliRunner().invoke(app, shlex.split(group.command)[1:])
            assert done.exit_code == 0, (name, group.command, done.output, done.exception)
            (made,) = (path for path in tmp_path.iterdir() if path.name != file)
            left = {code for after in check(made).groups for code in after.codes}
            assert not left & set(group.codes), (name, group.command)
            seen.update(group.codes)
            made.unlink()
    assert {"A01", "A02", "A03", "K01", "K02", "K03", "K05", "M07", "S09", "S11"} <= seen


def odd_set(folder: Path) -> str:
    for name, data in b.shard_set("m", ((), b.llama_tensors()[:3], b.llama_tensors()[3:])).items():
        (folder / name.replace("00002-of-00003", "00002-of-00003 (1)")).write_bytes(data)
    return "m-00001-of-00003.gguf"


def old_imatrix(folder: Path) -> str:
    shutil.copy(FIXTURES / "demo.imatrix.dat", folder / "i m.dat")
    return "i m.dat"


@pytest.mark.parametrize("put", [odd_set, old_imatrix])
def test_the_commands_about_whole_files_work(tmp_path: Path, put: Callable[[Path], str]) -> None:
    done = run_gguftool("check", put(tmp_path), cwd=tmp_path)
    commands = commands_in((done.stdout + done.stderr).decode())
    assert commands
    for command in commands[:1]:
        assert in_shell(command, tmp_path).returncode == 0, command


def test_a_key_that_is_not_there_is_found_by_the_command(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b.small_model())
    done = run_gguftool("dump", NAME, "--key", "nothing", cwd=tmp_path)
    (command,) = commands_in(done.stderr.decode())
    shown = in_shell(command, tmp_path)
    assert (shown.returncode, "general.architecture" in shown.stdout) == (0, True)


def test_a_model_instead_of_a_recipe_is_extracted_by_the_command(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b.small_model())
    done = run_gguftool("recipe", "check", NAME, "--model", NAME, cwd=tmp_path)
    (command,) = commands_in(done.stderr.decode())
    shown = in_shell(command, tmp_path)
    assert (shown.returncode, "attn_q" in shown.stdout) == (0, True)


# --- ways out that are options or commands of other situations -------------------------------------------------------


def test_a_set_without_the_keys_of_loaders_is_merged_by_the_command(tmp_path: Path) -> None:
    shards = b.shard_set("a set", ((), b.llama_tensors()[:3], b.llama_tensors()[3:]))
    first = next(iter(shards))
    shards[first] = b.gguf((*b.llama_kvs(), *b.split_kvs(1, 3, len(b.llama_tensors()))[:-1]), ())
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
    shown = run_gguftool("check", first, "--select", "H01", cwd=tmp_path).stdout.decode()
    assert "H01" in shown
    (command,) = commands_in(shown)
    before = set(tmp_path.iterdir())
    assert in_shell(command, tmp_path).returncode == 0, command
    (made,) = set(tmp_path.iterdir()) - before
    assert "H01" not in codes_of(made)


def cut_in_place(folder: Path) -> tuple[str, bytes]:
    """Kill a change in place between two writes; return the file's name and its old bytes."""
    path = folder / NAME
    path.write_bytes(b.small_model())
    old = path.read_bytes()
    change = Edits(settings=("general.name=str:other",))
    calls = count_calls(lambda: execute(plan_edit(open_model(path), change, None)))
    for at in reversed(range(len(calls))):
        path.write_bytes(old)
        plan = plan_edit(open_model(path), change, None)
        killed_at(at, lambda plan=plan: execute(plan))  # type: ignore[misc]
        if helper_path(path, "undo").exists() and path.read_bytes() != old:
            return NAME, old
    raise AssertionError("the journal went before the file changed")


def test_an_unfinished_change_in_place_is_undone_by_the_command(tmp_path: Path) -> None:
    name, old = cut_in_place(tmp_path)
    done = run_gguftool("dump", name, cwd=tmp_path)
    (command,) = commands_in(done.stderr.decode())
    undone = in_shell(command, tmp_path)
    assert undone.returncode == 0, undone.stderr
    assert (tmp_path / name).read_bytes() == old
    assert run_gguftool("dump", name, cwd=tmp_path).returncode == 0


def test_a_set_between_old_and_new_is_finished_by_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "it is a run"
    half_way(folder)
    done = run_gguftool("dump", SHARDS[1], cwd=folder)
    (command,) = commands_in(done.stderr.decode())
    assert in_shell(command, folder).returncode == 0, command
    assert run_gguftool("dump", SHARDS[1], cwd=folder).returncode == 0


def test_an_edit_that_does_not_fit_in_place_is_made_by_the_command(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b.small_model())
    value = "it costs $5 " * 20
    done = run_gguftool("edit", NAME, "--set", f"general.name={value}", "--in-place", cwd=tmp_path)
    assert done.returncode == 2
    (command,) = commands_in(done.stderr.decode())
    assert in_shell(command, tmp_path).returncode == 0, command
    (made,) = (path for path in tmp_path.iterdir() if path.name != NAME)
    assert open_model(made)["general.name"] == value
    again = run_gguftool("edit", made, "--set", "general.name=" + "y" * 5000, "--in-place")
    assert again.returncode == 0, again.stderr


def test_a_file_type_that_contradicts_is_made_true_by_the_option(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(model(weight(), kvs=[("general.file_type", "u32", 32)]).bytes())
    done = run_gguftool("merge", path, "-o", tmp_path / "a.gguf")
    said = done.stderr.decode()
    assert "--true-file-type writes 7" in said, said
    assert run_gguftool("merge", path, "--true-file-type", "-o", tmp_path / "b.gguf").returncode == 0
    assert open_model(tmp_path / "b.gguf")["general.file_type"] == 7


def test_a_difference_of_metadata_passes_by_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b.small_model())
    edit = ("edit", tmp_path / "a.gguf", "--set", "llama.rope.freq_base=20000", "-o", tmp_path / "b.gguf")
    assert run_gguftool(*edit).returncode == 0
    words = ["merge", "A=a.gguf", "B=b.gguf", "--recipe", "x.recipe", "-o", "o.gguf"]
    (tmp_path / "x.recipe").write_text("attn_q=@B\n.*=@A\n")
    done = run_gguftool(*words, cwd=tmp_path)
    assert done.returncode == 2
    option = re.search(r"\((--allow-kv-mismatch \S+) lets it pass\)", done.stderr.decode())
    assert option, done.stderr
    assert run_gguftool(*words, *option[1].split(), cwd=tmp_path).returncode == 0


def test_a_tensor_on_which_engines_abort_is_written_by_the_option(tmp_path: Path) -> None:
    tensors = b.llama_tensors()
    norm = b.tensor("blk.0.attn_norm.weight", "F16", (9,))
    (tmp_path / "a.gguf").write_bytes(b.small_model())
    (tmp_path / "b.gguf").write_bytes(b.gguf(b.llama_kvs(), [norm if t.name == norm.name else t for t in tensors]))
    (tmp_path / "x.recipe").write_text("attn_norm=@B\n.*=@A\n")
    words = ("merge", "A=a.gguf", "B=b.gguf", "--recipe", "x.recipe", "-o", "y.gguf")
    done = run_gguftool(*words, cwd=tmp_path)
    assert (done.returncode, b"--anyway writes it" in done.stderr) == (2, True), done.stderr
    assert run_gguftool(*words, "--anyway", cwd=tmp_path).returncode == 0


def test_tensors_that_the_donor_of_metadata_lacks_come_by_the_option(tmp_path: Path) -> None:
    tensors = b.llama_tensors()
    (tmp_path / "a.gguf").write_bytes(b.gguf(b.llama_kvs(), tensors[:-1]))
    (tmp_path / "b.gguf").write_bytes(b.small_model())
    (tmp_path / "x.recipe").write_text("output_norm=@B\n.*=@A\n")
    words = ("merge", "A=a.gguf", "B=b.gguf", "--recipe", "x.recipe", "-o", "y.gguf")
    done = run_gguftool(*words, cwd=tmp_path)
    assert (done.returncode, b"--kv-from names" in done.stderr) == (2, True), done.stderr
    made = run_gguftool(*words, "--kv-from", "b.gguf", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert tensors[-1].name in open_model(tmp_path / "y.gguf").tensors


def test_an_unfinished_run_of_another_command_is_discarded_by_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b.small_model())
    words = ("merge", "a.gguf", "-o", "y.gguf")
    part, journal = (helper_path(tmp_path / "y.gguf", suffix) for suffix in (PART, RESUME))
    begun = {"version": "gguftool resume 1", "fingerprint": "another", "sources": [], "outputs": [["y.gguf", 100]]}
    for path, content in ((part, b"x" * 100), (journal, json.dumps(begun).encode() + b"\n")):
        path.write_bytes(content)
        path.chmod(0o600)
    done = run_gguftool(*words, cwd=tmp_path)
    assert (done.returncode, b"--no-resume removes them" in done.stderr) == (2, True), done.stderr
    made = run_gguftool(*words, "--no-resume", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.gguf", "y.gguf"}
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_rows_that_are_packed_together_are_taken_apart_by_the_command(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(model(T("blk.0.ffn_up.weight", (256, 32), 208)).bytes())  # Q8_0_R8
    with pytest.raises(PlanError) as refused:
        open_model(path).tensors["blk.0.ffn_up.weight"].take(1, range(4))
    (command,) = commands_in(str(refused.value))
    assert in_shell(command, tmp_path).returncode == 0, command
    (made,) = (each for each in tmp_path.iterdir() if each.name != NAME)
    assert open_model(made).tensors["blk.0.ffn_up.weight"].take(1, range(4)).shape == (4, 256)


# Commands by module: a call that makes one, or a text that spells one out. The tests above or elsewhere run them.
MADE = {
    "analysis/lint/doctor.py": 1,
    "analysis/lint/file.py": 9,
    "analysis/lint/heads/causes.py": 2,
    "analysis/lint/heads/keys.py": 3,
    "analysis/lint/heads/mending.py": 4,
    "analysis/lint/heads/tensor_set.py": 1,
    "analysis/lint/loaders.py": 6,
    "analysis/lint/scales.py": 1,
    "analysis/lint/shards.py": 3,
    "analysis/lint/types.py": 2,
    "analysis/lint/way_out.py": 3,
    "analysis/recipe_head.py": 1,  # looks for one
    "cli/commands/dump.py": 1,
    "cli/commands/fetch.py": 1,
    "cooking/damage/sensitivities.py": 1,  # names what writes such files
    "cooking/measuring/bench.py": 1,
    "cooking/measuring/run.py": 1,
    "engines/llama_quantize.py": 1,
    "engines/load.py": 1,
    "errors.py": 1,
    "format/ftypes.py": 1,
    "format/recipe.py": 1,
    "model/grouping.py": 2,
    "model/views.py": 1,
    "render/types.py": 2,
    "storage/execute/in_place.py": 2,
    "storage/execute/publishing/sets.py": 2,
    "storage/sources/sidecars.py": 2,
    "surgery/edit/plan.py": 1,
}


def made_in(module: Path) -> int:
    """How many commands a module makes: calls of `command_line`, and texts that begin a quoted command."""
    nodes = [*ast.walk(ast.parse(module.read_text("utf-8")))]
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    helpers = ("command_line", "edit_command", "merge_command", "alter_command")
    named = (call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls)
    spelled = sum(text.count("'gguftool ") for text in texts if "\n" not in text)  # not those of docstrings
    return sum(name in helpers for name in named) + spelled


def test_every_command_is_counted() -> None:
    """A new way out needs a case above, and its module a higher number."""
    found = {path.relative_to(PACKAGE).as_posix(): made_in(path) for path in PACKAGE.rglob("*.py")}
    assert {name: count for name, count in found.items() if count} == MADE


def test_no_message_spells_out_a_command_with_a_stand_in() -> None:
    """FILE, KEY and the like are filled in; rules' ways out may have FILE and NEW, which are filled in for them."""
    stand_in = re.compile(r"'gguftool [^']*\b(KEY|OLD|N|NAME|VALUE|MODEL|OUT|PREFIX)\b[^']*'")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not stand_in.search(node.value), (path, node.value)
                assert "gguftool[" not in node.value, (path, node.value)


def _far(count: int) -> bytes:
    """A head with a text of `count` bytes."""
    return b.head(n_kvs=1) + b.string("k") + struct.pack("<IQ", 8, count)


LIMITED = {
    "dims": b.gguf((), [b.Tensor("x", (1,) * 33, 0, bytes(4))]),
    "tensors": b.head(n_tensors=(1 << 20) + 1),
    "keys": b.head(n_kvs=(1 << 16) + 1),
    "nesting": b.head(n_kvs=1) + b.string("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
    "head": _far((256 << 20) + 1),
}


@pytest.mark.parametrize("kind", LIMITED)
def test_limits_are_not_called_damage(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(LIMITED[kind])
    with path.open("r+b") as file:
        file.truncate(300 << 20)  # a hole: large enough for the claims
    done = run_gguftool("check", path)
    assert (done.returncode, b"N16" in done.stdout, b"N14" in done.stdout) == (2, True, False), done.stdout
    assert b"damaged" not in done.stdout
    refused = run_gguftool("dump", path)
    assert (refused.returncode, b"damaged" in refused.stderr) == (2, False)


def test_a_length_beyond_the_end_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(_far(1 << 40))
    with path.open("r+b") as file:
        file.truncate(300 << 20)
    assert b"N14" in run_gguftool("check", path).stdout


RECIPES = {
    "rules": "a=q4_K\n" * 10_001,
    "text": "#" * ((16 << 20) + 1),
    "pattern": "a" * 4097 + "=q4_K",
    "choices": "(a|b)*" * 40 + "=q4_K",
}


@pytest.mark.parametrize("kind", RECIPES)
def test_limits_of_recipes_are_called_so(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.recipe").write_text(RECIPES[kind])
    (tmp_path / "x.gguf").write_bytes(b.small_model())
    for command in (
        ("recipe", "convert", "x.recipe", "--to", "recipe"),
        ("quantize", "x.gguf", "--recipe", "x.recipe", "-o", "y.gguf"),
    ):
        done = run_gguftool(*command, cwd=tmp_path)
        said = b"a limit of gguftool" in done.stderr or b"gguftool reads a recipe of at most" in done.stderr
        assert (done.returncode, said) == (2, True), done.stderr[:300]


@pytest.mark.parametrize(
    "command", [("hash", "x.gguf", "--check"), ("fetch", "x.gguf", "--repair", "y.gguf", "--check")]
)
def test_a_manifest_that_is_too_large_meets_a_limit(tmp_path: Path, command: tuple[str, ...]) -> None:
    for name in ("x.gguf", "y.gguf"):
        (tmp_path / name).write_bytes(b.small_model())
    with (tmp_path / "sums").open("wb") as file:
        file.truncate((64 << 20) + 1)
    done = run_gguftool(*command, "sums", cwd=tmp_path)
    assert (done.returncode, b"gguftool reads a manifest of at most 67,108,864" in done.stderr) == (2, True), (
        done.stderr
    )


def test_one_value_as_json_is_json(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b.small_model())
    shown = run_gguftool("dump", tmp_path / "x.gguf", "--key", "general.architecture", "--json").stdout
    assert json.loads(shown) == "llama"


def test_export_says_that_its_output_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b.small_model())
    done = run_gguftool("export", tmp_path / "x.gguf", "--tensor", "attn_q", "-o", tmp_path / "y.gguf")
    assert (done.returncode, b"becomes a safetensors file" in done.stderr) == (0, True)


def test_notes_that_models_share_are_one(tmp_path: Path) -> None:
    for name in ("x.gguf", "y.gguf"):
        (tmp_path / name).write_bytes(b.small_model())
    done = run_gguftool("report", tmp_path / "x.gguf", tmp_path / "y.gguf", "--place", "nothing=CPU")
    assert done.stderr.count(b"took no tensor") == 1
    assert b"2 models" in done.stderr
