"""Bars on a terminal: they say what is done, with sizes as other texts have them, and make room for notes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from gguftool.render.units import format_size
from tests.support import builders as b
from tests.support.command import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals on Windows")

_BYTES = """
from gguftool.cli.shared.console import progress_bar, remark
with progress_bar({total}, "hashing") as advance:
    advance(1 << 30)
    remark("half way")
    advance(1 << 29)
"""
_COUNT = """
from gguftool.cli.shared.console import counting_bar, remark
with counting_bar("measuring", "lines") as show:
    show(3, 12)
    remark("half way")
"""


def on_terminal(*words: object, width: int = 100) -> list[str]:
    """All that a program shows on a terminal of `width` columns: each line in each of its states."""
    import fcntl
    import struct
    import termios

    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    inherited = {key: value for key, value in environment().items() if key != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**inherited, "TERM": "xterm"},
    ):
        os.close(follower)
        shown = b""
        while True:
            try:
                data = os.read(leader, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
    os.close(leader)
    return [state for state in re.split(r"[\r\n]+", shown.decode()) if state]


@pytest.mark.parametrize(
    ("width", "form"),
    [
        (100, r"hashing:  50% \|.*\| 1.00 GiB of 2.00 GiB \[\d\d:\d\d<\d\d:\d\d, [\d.]+ [GTP]iB/s\]"),
        (50, r"hashing:  50% of 2.00 GiB, \d\d:\d\d left"),
    ],
)
def test_a_bar_says_what_is_done_in_the_units_of_other_texts(width: int, form: str) -> None:
    states = on_terminal("-c", _BYTES.format(total=2 << 30), width=width)
    assert [state for state in states if re.fullmatch(form, state)], states
    assert max(map(len, states)) <= width


def test_a_bar_without_a_known_end_counts() -> None:
    states = on_terminal("-c", _BYTES.format(total=0))
    assert [state for state in states if re.fullmatch(r"hashing: 1.00 GiB \[.*iB/s\]", state)], states


@pytest.mark.parametrize("program", [_BYTES.format(total=2 << 30), _COUNT])
def test_a_note_stands_where_the_bar_was_and_nothing_is_left_of_it(program: str) -> None:
    states = on_terminal("-c", program)
    at = states.index("note: half way")
    assert states[at - 1].isspace(), "the bar is wiped out first"
    assert not states[at + 1].isspace(), "and drawn again below"
    assert states[-1].isspace(), "at the end nothing of it is left"


def test_things_are_counted_with_their_name() -> None:
    assert [state for state in on_terminal("-c", _COUNT) if state.startswith("measuring: 3 of 12 lines [")]


@pytest.mark.parametrize(
    ("line", "what"),
    [("merge m.gguf -o o.gguf", "writing"), ("hash m.gguf", "hashing"), ("diff m.gguf m.gguf --data", "comparing")],
)
def test_commands_say_what_they_do(line: str, what: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("m.gguf", "wb") as file:
        file.write(b.small_model())
    shown = [state for state in on_terminal("-m", "gguftool", *line.split()) if state.startswith(f"{what}: ")]
    assert shown
    if what == "hashing":  # a tensor's bytes count once, although they are hashed for the whole file, too
        assert all(f" of {format_size(os.path.getsize('m.gguf'))} [" in state for state in shown), shown
