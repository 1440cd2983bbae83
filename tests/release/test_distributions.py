"""The wheel and the source distribution: whole, the same bytes wherever they are built, usable without a checkout."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import gguftool
from tests.support.console_blocks import console_examples, lay_out_demo, shown_pattern
from tests.support.paths import REPO

BUILDERS = ("hatchling", "hatch_fancy_pypi_readme")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, BUILDERS)), reason="no hatchling: .venv/bin/pip install -e '.[dev]'"
    ),
    pytest.mark.skipif(os.name != "posix", reason="the README's examples are for a POSIX shell; run this on Linux"),
]

BUILD = """
import os, sys
os.umask(int(sys.argv[2], 8))
from hatchling import build
build.build_sdist(sys.argv[1])
build.build_wheel(sys.argv[1])
"""


def build(tree: Path, target: Path, umask: str = "022", **environment: str) -> Path:
    """Build both distributions of the checkout `tree` into `target`."""
    target.mkdir()
    command = [sys.executable, "-c", BUILD, str(target), umask]
    subprocess.run(command, cwd=tree, env={**os.environ, **environment}, check=True, capture_output=True, timeout=300)
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPO, tmp_path_factory.mktemp("release") / "dist")


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    return next(built.glob("*.tar.gz"))


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def git_lists(*options: str) -> set[str]:
    """The files of the checkout that `git ls-files` lists, without those that are removed but not yet committed."""
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=REPO, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this is no clone: git clone gives the list of files to compare with")
    return {name for name in done.stdout.decode("utf-8").split("\0") if name and (REPO / name).exists()}


# --- contents --------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("gguftool/")}
        other = set(archive.namelist()) - held
    files = [path for path in (REPO / "gguftool").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert held == {path.relative_to(REPO).as_posix() for path in files}
    assert "gguftool/py.typed" in held
    assert {"gguftool/format/engine_facts/llama.cpp.json", "gguftool/format/engine_facts/ik_llama.cpp.json"} <= held
    shared = {name.partition(".data/data/share/")[2] for name in other if ".data/" in name}
    assert shared == {
        "bash-completion/completions/gguftool",
        "fish/vendor_completions.d/gguftool.fish",
        "gguftool/gguftool.ps1",
        "man/man1/gguftool.1",
        "zsh/site-functions/_gguftool",
    }
    assert [name for name in other if not re.match(r"gguftool-[\d.]+\.(dist-info|data)/", name)] == []


def test_the_source_distribution_holds_every_file_of_the_repository(sdist: Path) -> None:
    tracked = git_lists("--cached")
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert tracked - held == set()
    assert held & git_lists("--others", "--ignored", "--exclude-standard") == set()


def test_the_same_bytes_come_of_another_folder_another_day(built: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = next(path for path in tmp_path.iterdir() if path.is_dir())
    for path in tree.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    again = build(tree, tmp_path / "dist", "077", TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    for path in built.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_version_is_that_of_the_package(wheel: Path, sdist: Path) -> None:
    assert metadata(wheel)["Version"] == gguftool.__version__
    assert sdist.name == f"gguftool-{gguftool.__version__}.tar.gz"


def test_the_description_is_the_readme_without_links_into_the_repository(wheel: Path) -> None:
    about = metadata(wheel)
    text = about.get_payload()
    assert isinstance(text, str)
    assert about["Description-Content-Type"] == "text/markdown"
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []
    without_links = re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]+\)", r"\1", (REPO / "README.md").read_text("utf-8"))
    assert text.strip() == without_links.strip()


# --- installed -------------------------------------------------------------------------------------------------------


class Installed:
    """An environment of its own with the wheel in it, and a working folder that holds what the README's tour names."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "venv" / "bin" / "python"
        self.work = folder / "work"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=300)
        self.work.mkdir()
        lay_out_demo(self.work)

    def install(self, *words: str) -> None:
        """Install with the pip that runs the tests."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "-q", *words]
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stderr

    def run(self, line: str) -> str:
        """Run a line of shell as a user does; return its output, with errors and remarks among it."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        variables |= {"PATH": f"{self.python.parent}:{variables['PATH']}", "COLUMNS": "200", "PYTHONUTF8": "1"}
        done = subprocess.run(
            ["sh", "-c", f"({line}) 2>&1"], cwd=self.work, env=variables, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        return done.stdout.rstrip("\n") + "\n" if done.stdout else ""

    def take_the_tour(self) -> None:
        """Run the README's examples, with the wheel alone."""
        where = self.run("python -c 'import gguftool; print(gguftool.__file__)'").strip()
        assert Path(where).is_relative_to(self.python.parents[1]), where
        for command, shown in console_examples(REPO / "README.md"):
            printed = self.run(command)
            assert re.fullmatch(shown_pattern(shown), printed), f"{command} prints\n{printed}"


needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="no pip: python -m ensurepip")


@needs_pip
def test_the_tour_runs_with_the_wheel_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are those of the tests, by a path; what is installed for development does not come along."""
    installed = Installed(tmp_path)
    installed.install("--no-deps", "--no-index", str(wheel))
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    ours = [path for path in map(Path, sys.path) if path.name in {"site-packages", "dist-packages"}]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in ours), encoding="utf-8")
    installed.take_the_tour()


@needs_pip
@pytest.mark.soak
def test_the_tour_runs_with_the_wheel_and_the_dependencies_that_it_names(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    installed.install(f"{wheel}[all]")
    installed.take_the_tour()


@needs_pip
@pytest.mark.soak
def test_the_wheel_runs_without_extras(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    installed.install(str(wheel))
    assert installed.run("gguftool --version") == f"gguftool {gguftool.__version__}\n"
    assert "21 tensors" in installed.run("gguftool dump fixtures/demo.gguf")
    installed.run("gguftool split fixtures/demo.gguf shards/demo && gguftool merge shards -o merged.gguf")
    assert (installed.work / "merged.gguf").read_bytes() == (REPO / "fixtures" / "demo.gguf").read_bytes()
