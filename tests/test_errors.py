"""Errors name file, place and offset; text from files cannot act on a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import (
    ExecuteError,
    FormatError,
    GGUFToolError,
    PlanError,
    SourceError,
    listed,
    printable,
)


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ({}, "wrong"),
        ({"source": "a.gguf"}, "a.gguf: wrong"),
        ({"where": "magic"}, "magic: wrong"),
        ({"source": "a.gguf", "where": "magic"}, "a.gguf (magic): wrong"),
        ({"source": "a.gguf", "offset": 0}, "a.gguf (offset 0): wrong"),
        ({"source": "a.gguf", "where": "KV 3", "offset": 12345}, "a.gguf (KV 3, offset 12,345): wrong"),
        ({"source": "a\x1b[2J.gguf"}, "a\\x1b[2J.gguf: wrong"),
        ({"where": "key \x1b[2J"}, "key \\x1b[2J: wrong"),
        ({"problems": ["a\nb", "\u202ec"]}, "wrong: a\\nb; \\u202ec"),
    ],
)
def test_an_error_names_what_it_knows(place: dict[str, object], shown: str) -> None:
    assert str(GGUFToolError("wrong", **place)) == shown  # type: ignore[arg-type]


def test_no_message_reaches_a_terminal_raw() -> None:
    error = SourceError("the server says: \x1b]0;title\x07 \x9b31m" + "x" * 5000, source="a.gguf")
    assert str(error) == error.headline
    assert str(error).isprintable()
    assert str(error).endswith("x" * 5000)


@pytest.mark.parametrize("kind", [FormatError, SourceError, PlanError, ExecuteError])
def test_every_kind_is_caught_by_the_base(kind: type[GGUFToolError]) -> None:
    with pytest.raises(GGUFToolError):
        raise kind("x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blk.0.attn_q.weight", "blk.0.attn_q.weight"),
        ("größe 模型 😀", "größe 模型 😀"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil", "\\u202eevil"),
        ("\u2028\u200b\ufeff", "\\u2028\\u200b\\ufeff"),
        (b"\xff\x80".decode("utf-8", "surrogateescape"), "\\xff\\x80"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_printable_escapes_what_a_terminal_could_act_on(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_printable_never_leaves_anything_else(text: str) -> None:
    shown = printable(text, 10_000)
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def test_long_texts_are_cut_and_say_so() -> None:
    assert printable("x" * 5000, 10) == "xxxxxxxxxx... (5,000 characters)"
    assert printable("x" * 10, 10) == "x" * 10


def test_long_lists_are_cut_and_say_so() -> None:
    assert listed(["a\n", "b"]) == "a\\n, b"
    assert listed([str(number) for number in range(1003)], limit=2) == "0, 1 and 1,001 more"
