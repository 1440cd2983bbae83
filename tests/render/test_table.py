"""Tables and text on narrow screens: what is left out, what is cut, and what is not."""

from __future__ import annotations

import pytest

from gguftool.render.screen import Commands, Cut, cropped, fitted, width_of, wrapped
from gguftool.render.table import Column, Table, columns, render_text

NAMES = ("blk.10.ffn_gate_exps.weight", "模型的名字很长很长很长很长", "e\u0301" * 40, "x" * 500)
ROWS = tuple((str(at), f"{10**at:,}", name, "1234567890123") for at, name in enumerate(NAMES))
TABLE = Table(title="four", columns=columns(">#", ">bytes", "name", ">last", middle="name"), rows=ROWS, drop=("#",))


@pytest.mark.parametrize("width", range(24, 120))
def test_no_line_is_wider_whatever_the_characters(width: int) -> None:
    lines = render_text(TABLE, width).splitlines()
    assert [line for line in lines if width_of(line) > width] == []


def test_what_may_be_left_out_goes_first_then_texts_are_cut_then_the_last_numbers_go() -> None:
    assert "#" in render_text(TABLE, 200)
    assert render_text(TABLE, 54).splitlines()[1].split() == ["bytes", "name", "last"]
    narrow = render_text(TABLE, 24)
    assert "left out" in narrow
    assert "1234567890123" not in narrow
    assert "1,000" in narrow


def test_a_table_that_does_not_fit_gives_way_to_others() -> None:
    small = Table(title="", columns=columns(">n"), rows=(("1",),))
    wide = Table(title="", columns=columns(*(f">column {at}" for at in range(9))), rows=(), instead=(small, small))
    assert wide.as_rich(40) == "n\n1\n\nn\n1\n"
    assert wide.as_rich(200) == wide.as_text()


def test_words_of_a_cell_wrap_between_words() -> None:
    table = Table(
        title="", columns=(Column(name=""), Column(name="", cut=Cut.WRAP)), rows=(("size", "59.9 KiB in 1 file"),)
    )
    assert table.as_rich(16) == "size  59.9 KiB\n      in 1 file\n"


@pytest.mark.parametrize(
    ("cut", "shown"), [(Cut.END, "blk.10...."), (Cut.MIDDLE, "blk....ght"), (Cut.START, "....weight")]
)
def test_where_a_text_is_cut(cut: Cut, shown: str) -> None:
    assert cropped("blk.10.ffn_gate.weight", 10, cut) == shown
    assert cropped("short", 10, cut) == "short"


def test_a_number_keeps_its_unit_and_a_path_its_letters() -> None:
    assert wrapped("takes up to 59.9 KiB", 16) == ["takes up to", "59.9 KiB"]
    path = "/a/" + "long" * 20
    assert fitted(f"wrote {path}\n", 40) == f"wrote\n  {path}\n"


def test_a_command_stays_whole_below_what_it_does() -> None:
    commands = Commands(commands=((f"gguftool dump {'x' * 60}.gguf", "every key"),))
    assert commands.as_rich(40) == f"# every key\ngguftool dump {'x' * 60}.gguf\n"
    assert commands.as_rich(120) == commands.as_text()
