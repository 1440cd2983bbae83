"""gguftool plan, as a user runs it: reports, recipes, charts, errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gguftool.format.recipe import parse_recipe
from gguftool.model.opening import open_model
from tests.support.command import one_error_line, run_gguftool
from tests.support.paths import FIXTURES
from tests.support.text_command import run_text

MODEL = str(FIXTURES / "mix" / "tiny-BF16.gguf")
QUANTS = [str(FIXTURES / "mix" / f"tiny-{name}.gguf") for name in ("Q4_0", "Q8_0")]
NAMES = tuple(name for name, tensor in open_model(MODEL).tensors.items() if tensor.type_name == "BF16")


def table(path: Path, floor: float = 0.0) -> str:
    """A calibration file of the model."""
    values = [round(0.0007 + 0.0003 * ((7 * at) % 11) + floor, 6) for at in range(len(NAMES))]
    path.write_text(f"QTYPE,{','.join(NAMES)}\nq4_0,{','.join(f'{value:.6f}' for value in values)}\n")
    return str(path)


def test_a_recipe_is_written_and_makes_a_file_of_the_size(tmp_path: Path) -> None:
    recipe, out = tmp_path / "mix.recipe", tmp_path / "mix.gguf"
    done = run_text("plan", MODEL, "--size", "26K", "--types", "q4_0,q5_0,q8_0", "-o", str(recipe))
    assert done.returncode == 0, done.stderr
    assert "nothing was measured: the levels of the preset" in done.stdout
    assert f"wrote {recipe}" in done.stderr
    assert "=q" not in done.stdout
    made = run_text("quantize", MODEL, "--recipe", str(recipe), "-o", str(out))
    assert made.returncode == 0, made.stderr
    assert 20_000 < out.stat().st_size <= 26_000
    again = run_gguftool("plan", MODEL, "--size", "26K", "-o", recipe)
    assert again.returncode == 2
    assert "--force" in one_error_line(again.stderr)


def test_without_an_output_the_recipe_ends_the_report() -> None:
    done = run_text("plan", MODEL, "--bpw", "6", "--types", "q4_0,q8_0")
    assert done.returncode == 0
    assert parse_recipe(done.stdout[done.stdout.index("# gguftool") :]).rules
    assert "input:" not in done.stdout


def test_a_planted_floor_gives_the_same_recipe(tmp_path: Path) -> None:
    rules = []
    for floor in (0.0, 0.0152):
        done = run_text("plan", MODEL, "--bpw", "5.5", "--measure", table(tmp_path / f"{floor}.csv", floor))
        assert done.returncode == 0, done.stderr
        assert "expected KLD: " in done.stdout
        assert "sha256:" in done.stdout
        rules.append([line for line in done.stdout.splitlines() if line.startswith("^")])
    assert rules[0] == rules[1]
    assert len(rules[0]) > 2


def test_json_holds_the_plan(tmp_path: Path) -> None:
    done = run_text("plan", MODEL, "--device", "GPU=20K:attn", "--device", "CPU=1M", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [device["name"] for device in found["devices"]] == ["GPU", "CPU"]
    assert found["arguments"] == "-ngl 999 -ot attn=CUDA0 -ot '.*=CPU'"
    assert sum(tensor["nbytes"] for tensor in found["tensors"]) == found["nbytes"]
    assert found["unit"] is None
    assert {"name", "nbytes", "damage", "planned"} <= set(found["rivals"][0])


def test_ready_made_quants_and_comparison(tmp_path: Path) -> None:
    recipe, other = tmp_path / "a.recipe", tmp_path / "other.recipe"
    other.write_text(".*=q8_0\n")
    measured = table(tmp_path / "kld_results.csv")
    done = run_text("plan", *QUANTS, "--bpw", "8.2", "--measure", measured, "--compare", str(other), "-o", str(recipe))
    assert done.returncode == 0, done.stderr
    assert str(other) in done.stdout
    merged = run_text("merge", *QUANTS, "--recipe", str(recipe), "-o", str(tmp_path / "m.gguf"))
    assert merged.returncode == 0, merged.stderr


@pytest.mark.parametrize("option", ["MODEL", "--measure", "--compare"])
def test_no_output_replaces_what_was_read(tmp_path: Path, option: str) -> None:
    given = {
        "MODEL": tmp_path / "m.gguf",
        "--measure": tmp_path / "kld_results.csv",
        "--compare": tmp_path / "o.recipe",
    }
    given["MODEL"].write_bytes(Path(MODEL).read_bytes())
    table(given["--measure"])
    given["--compare"].write_text(".*=q8_0\n")
    before = given[option].read_bytes()
    words = [str(given["MODEL"]), *(str(word) for name in ("--measure", "--compare") for word in (name, given[name]))]
    done = run_text("plan", *words, "--bpw", "6", "-o", str(given[option]), "--force")
    assert done.returncode == 2
    assert "an output cannot overwrite it" in done.stderr
    assert given[option].read_bytes() == before


def test_outputs_can_lie_in_several_folders(tmp_path: Path) -> None:
    recipe, page = tmp_path / "a" / "mix.recipe", tmp_path / "b" / "mix.html"
    done = run_text("plan", MODEL, "--bpw", "6", "-o", str(recipe), "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert parse_recipe(recipe.read_text()).rules
    assert page.read_text().startswith("<!")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_curve_can_be_drawn(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install -e '.[test]'")
    chart = tmp_path / f"curve.{ending}"
    done = run_text("plan", MODEL, "--bpw", "6", "--measure", table(tmp_path / "t.csv"), "--plot", str(chart))
    assert done.returncode == 0, done.stderr
    data = chart.read_bytes()
    assert data.startswith(b"\x89PNG") if ending == "png" else b"Q4_0" in data


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "give a target"),
        (["--size", "1M", "--bpw", "4"], "exclude each other"),
        (["--size", "1M", "--device", "CPU=1M"], "exclude each other"),
        (["--bpw", "4", "--engine", "vllm"], "--engine takes"),
        (["--bpw", "4", "--fuse", "all"], "--fuse takes up-gate, qkv, or only none"),
        (["--bpw", "4", "--plot", "x.pdf"], "--plot takes a file that ends in .png or .svg"),
        (["--bpw", "4", "--slow", "q4_K=2"], "--slow takes TYPE@DEVICE=FACTOR"),
        (["--bpw", "4", "--bench", "x"], "--bench takes DEVICE=FILE"),
        (["--max-ppl-ratio", "0.9"], "not a ratio of perplexities"),
        (["--device", "GPU"], "is not NAME=SIZE:REGEX"),
        (["--max-kld", "0.1"], "needs measurements"),
        (["--bpw", "0.5"], "the smallest types on offer take"),
        (["--device", "GPU=1K:attn", "--device", "CPU=1G"], "GPU: the smallest types on offer take 4,608 bytes"),
        (["--bpw", "5", "--lock", "attn_q=q4_0", "--lock", "attn=q8_0"], "contradict each other"),
    ],
)
def test_what_cannot_be_is_one_error_and_exit_2(options: list[str], problem: str) -> None:
    done = run_text("plan", MODEL, *options)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("gguftool: error:") == 1
    assert done.stdout == ""


def test_what_measurements_lack_is_one_error(tmp_path: Path) -> None:
    bad = tmp_path / "kld_results.csv"
    bad.write_text("QTYPE,blk.0.attn_q.weight,other.weight,more.weight\nq4_0,0.1,0.2,0.3\n")
    done = run_gguftool("plan", MODEL, "--bpw", 5, "--measure", bad)
    assert done.returncode == 2
    assert "2 tensors that the model lacks" in one_error_line(done.stderr)
    bad.write_text("QTYPE,a\nq9_9,1\nq4_0,x\n")
    done = run_gguftool("plan", MODEL, "--bpw", 5, "--measure", bad)
    assert done.returncode == 2
    assert "'q9_9' is not a type; line 3, a: 'x'" in one_error_line(done.stderr)


def test_names_from_files_reach_a_terminal_escaped(tmp_path: Path) -> None:
    bad = tmp_path / "t.csv"
    bad.write_bytes(b"QTYPE,\x1b[31mred,b\nq4_0,0.1,0.2\n")
    done = run_gguftool("plan", MODEL, "--bpw", 5, "--measure", bad)
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="hides modules by a path of POSIX")
def test_missing_extras_name_the_command(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    for name in ("scipy", "matplotlib"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "__init__.py").write_text("raise ImportError('hidden')\n")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from gguftool.cli.main import program; sys.exit(program())"
    import subprocess

    for options, lacking in (
        (["--bpw", "6", "--plot", str(tmp_path / "x.png")], "matplotlib"),
        (["--device", "GPU=1M", "--device", "CPU=1M"], "scipy"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, str(hidden), "plan", MODEL, *options],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.endswith(f"pip install {lacking}\n")


@pytest.mark.parametrize("option", ["--bpw", "--max-kld", "--max-ppl-ratio"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_target_that_is_no_number_is_bad_usage(option: str, number: str, tmp_path: Path) -> None:
    done = run_text("plan", MODEL, option, number, "--measure", table(tmp_path / "s.csv"))
    assert done.returncode == 2
    assert option in done.stderr
    assert number in done.stderr
    assert "Traceback" not in done.stderr


def test_no_output_replaces_an_input(tmp_path: Path) -> None:
    model, sums, start = tmp_path / "m.gguf", Path(table(tmp_path / "s.csv")), tmp_path / "start.recipe"
    model.write_bytes(Path(MODEL).read_bytes())
    start.write_text(".*=q8_0\n")
    basis = ("--measure", str(sums), "--start", str(start), "--bpw", "6", "--force")
    for option, path in (("-o", model), ("--html", model), ("-o", sums), ("-o", start)):
        before = path.read_bytes()
        done = run_gguftool("plan", model, *basis, option, path)
        assert done.returncode == 2
        assert "is an input" in one_error_line(done.stderr)
        assert path.read_bytes() == before
    quants = [tmp_path / Path(name).name for name in QUANTS]
    for own, name in zip(quants, QUANTS, strict=True):
        own.write_bytes(Path(name).read_bytes())
    done = run_gguftool("plan", *quants, "--bpw", "6", "--force", "-o", quants[1])
    assert "is an input" in one_error_line(done.stderr)
    assert quants[1].read_bytes() == Path(QUANTS[1]).read_bytes()


def test_a_recipe_names_no_folder(tmp_path: Path) -> None:
    start = tmp_path / "start.recipe"
    start.write_text(".*=q8_0\n")
    for basis in (("--measure", table(tmp_path / "s.csv")), ()):
        done = run_text("plan", MODEL, "--start", str(start), *basis, "-o", str(tmp_path / "mix.recipe"), "--force")
        assert done.returncode == 0, done.stderr
        recipe = (tmp_path / "mix.recipe").read_text()
        assert "# basis: " in recipe
        assert str(tmp_path) not in recipe


def test_two_outputs_of_one_name_are_bad_usage(tmp_path: Path) -> None:
    done = run_gguftool("plan", MODEL, "--bpw", "6", "-o", tmp_path / "one", "--html", tmp_path / "one")
    assert done.returncode == 2
    assert b"-o, --plot and --html" in done.stderr
    assert list(tmp_path.iterdir()) == []
