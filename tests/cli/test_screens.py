"""What commands show on terminals of different widths: snapshots, no line wider than the terminal, no number broken.

After a change that is meant, `python -m tests.cli.test_screens` writes the snapshots again.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from gguftool import __version__
from gguftool.analysis.dump import dump
from gguftool.analysis.info import info
from gguftool.analysis.lint.check import check
from gguftool.analysis.report import report
from gguftool.cooking.damage.sensitivities import EvidenceFiles
from gguftool.cooking.devices import Context, parse_devices
from gguftool.cooking.mix import Mix, MixOptions, Target
from gguftool.cooking.planning import explore_mix
from gguftool.format.recipe import parse_recipe
from gguftool.record import replace
from gguftool.render.registry import joined, parts_of
from gguftool.render.screen import fitted, width_of
from gguftool.render.types import type_rows, types_table
from gguftool.render.units import parse_size
from tests.support.command import environment
from tests.support.paths import REPO

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals on Windows")

SCREENS = REPO / "tests" / "golden" / "screens"
DEMO = "fixtures/demo.gguf"
VERSION = "gguftool VERSION"  # in snapshots: a release changes no screen
WIDTHS = (40, 60, 80, 120, 200)
_NUMBER = re.compile(r"[0-9][0-9,.]*[0-9]|[0-9]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# The parts of each command's output.
COMMANDS: dict[str, Callable[[], tuple[object, ...]]] = {
    "info": lambda: parts_of(info(DEMO), command_name=DEMO),
    "dump": lambda: parts_of(dump(DEMO, array_limit=6)),
    "types": lambda: (types_table(type_rows()),),
    "report": lambda: parts_of(report(DEMO)),
    "check": lambda: parts_of(check(DEMO)),
    "plan": lambda: parts_of(_planned(PLAN)),
    "plan-devices": lambda: parts_of(_planned(PLAN_DEVICES)),
}
MEASURED = "tests/golden/screens/sensitivities.json"
KNOWN = ("--types", "q4_0,q5_0,q8_0", "--sensitivity", MEASURED)
PLAN = MixOptions(
    target=Target(size=61_000),
    types=("q4_0", "q5_0", "q8_0"),
    imatrix=False,
    compare=(("tests/golden/screens/by-hand.recipe", parse_recipe(".=q5_0", "by-hand.recipe")),),
    made_by=f"gguftool {__version__}",
)
PLAN_DEVICES = replace(
    PLAN,
    target=Target(),
    devices=parse_devices(("CUDA0=1645000:attn|output", "RAM=1640000"), parse_size),
    compare=(),
    context=Context(ctx=64),
)
# The words behind each command's name.
WORDS: dict[str, tuple[str, ...]] = {
    "types": (),
    "plan": (DEMO, "--size", "61000", *KNOWN, "--compare", "tests/golden/screens/by-hand.recipe"),
    "plan-devices": (DEMO, "--device", "CUDA0=1645000:attn|output", "--device", "RAM=1640000", "--ctx", "64", *KNOWN),
}


def _planned(options: MixOptions) -> Mix:
    return explore_mix((DEMO,), options, EvidenceFiles(sensitivity=MEASURED)).mix


def _line(name: str) -> list[str]:
    return [name.partition("-")[0], *WORDS.get(name, (DEMO,))]


def golden(name: str, width: int | str) -> str:
    """The snapshot of a screen, as this version prints it."""
    text = (SCREENS / f"{name}-{width}.txt").read_text(encoding="utf-8")
    return text.replace(VERSION, f"gguftool {__version__}")


def is_whole(line: str) -> bool:
    """Whether a line is to be copied as it is, however wide: a command, a rule of a recipe or of devices, a digest."""
    return line.lstrip("# ").startswith(("gguftool ", "^", "-ngl ", "run with: ", "sha256:"))


def on_terminal(width: int, name: str, **variables: str) -> str:
    """What the command `name` prints on a terminal of `width` columns, colours left out."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    inherited = {key: value for key, value in environment().items() if key not in ("COLUMNS", "NO_COLOR")}
    command = [sys.executable, "-m", "gguftool", *_line(name)]
    with subprocess.Popen(
        command, stdout=follower, stderr=subprocess.DEVNULL, env={**inherited, "TERM": "xterm", **variables}, cwd=REPO
    ):
        os.close(follower)
        shown = b"".join(_read(leader))
    os.close(leader)
    return shown.decode().replace("\r\n", "\n")


def _read(leader: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(leader, 1 << 16)
        except OSError:  # the other side is closed
            return
        if not data:
            return
        yield data


def at_width(name: str, width: int) -> str:
    """What `name` shows at a width, by its parts; the strip of layers is in plain text."""
    from gguftool.render.page.strip import Strip, strip_text

    shown = []
    for part in COMMANDS[name]():
        if isinstance(part, str):
            shown.append(fitted(part, width))
        else:
            shown.append(strip_text(part, width) if isinstance(part, Strip) else part.as_rich(width))  # type: ignore[attr-defined]
    return "\n".join(shown)


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_screen_is_as_it_was(name: str, width: int) -> None:
    assert at_width(name, width) == golden(name, width)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_gets_everything(name: str) -> None:
    whole = joined(COMMANDS[name]())  # type: ignore[arg-type]
    assert whole == golden(name, "pipe")
    piped = subprocess.run(
        [sys.executable, "-m", "gguftool", *_line(name)],
        capture_output=True,
        env={**environment(), "COLUMNS": "40"},
        check=False,
        cwd=REPO,
    )
    assert piped.stdout.decode() == whole


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_wider_than_the_terminal_and_no_number_is_broken(name: str) -> None:
    numbers = set(_NUMBER.findall(joined(COMMANDS[name]())))  # type: ignore[arg-type]
    for width in range(40, 251):
        shown = at_width(name, width)
        wide = [line for line in shown.splitlines() if width_of(line) > width]
        assert not [line for line in wide if not is_whole(line)], (width, wide)
        cropped = re.sub(r"[^ ]*\.\.\.[^ ]*", "", shown)  # what is left of a name that was cut
        assert set(_NUMBER.findall(cropped)) <= numbers | {str(count) for count in range(20)}, width


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [40, 80])
def test_a_real_terminal_gets_the_same(name: str, width: int) -> None:
    wanted = golden(name, width)
    shown = _COLOURS.sub("", on_terminal(width, name))
    assert _words(shown) == _words(wanted)
    assert [line for line in shown.splitlines() if line not in wanted.splitlines()] == [] or name == "report"
    assert max(width_of(line) for line in shown.splitlines() if not is_whole(line)) <= width


def _words(shown: str) -> list[str]:
    """The words: in colours the legend of a strip has no equals signs, and breaks elsewhere."""
    return shown.replace(" = ", " ").split()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"LC_ALL": "C"}, {"TERM": "dumb"}], ids=repr)
def test_neither_colours_nor_the_locale_change_a_line(name: str, variables: dict[str, str]) -> None:
    shown = on_terminal(60, name, **variables)
    assert _words(_COLOURS.sub("", shown)) == _words(golden(name, 60))
    assert shown.isascii()
    if "LC_ALL" not in variables:
        assert not re.search(r"\x1b\[[0-9;]*(?:3|4|9|10)[0-7]", shown), "a colour"


def _unversioned(text: str) -> str:
    return text.replace(f"gguftool {__version__}", VERSION)


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    os.chdir(REPO)
    for name, parts in COMMANDS.items():
        (SCREENS / f"{name}-pipe.txt").write_text(_unversioned(joined(parts())), encoding="utf-8")  # type: ignore[arg-type]
        for width in WIDTHS:
            (SCREENS / f"{name}-{width}.txt").write_text(_unversioned(at_width(name, width)), encoding="utf-8")
