"""A model card in markdown, as the Hub shows it. Text from files is escaped, or stands in a code block."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from gguftool.cooking.making.card import Card, make_card
from gguftool.errors import printable, shell_word
from gguftool.render.table import Table, columns, markdown_text, render_markdown
from gguftool.render.units import format_count, format_size
from gguftool.storage.plan import Plan

_MAX_RECIPE = 1 << 20  # characters of a recipe in a card
_FENCE = re.compile(r"`{3,}")


def card_of(plan: Plan, recipe: str, words: tuple[str, ...]) -> str:
    """Render the card of the model that `plan` writes from the text `recipe`, by the gguftool command `words`."""
    return card_markdown(make_card(plan, recipe, f"gguftool {' '.join(map(shell_word, words))}"))


def card_markdown(card: Card) -> str:
    """Render the card with its front matter."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: Card) -> Iterator[str]:
    yield from ("---", "library_name: gguf", "tags:", "- gguf", "- gguftool")
    if card.license:
        yield f"license: {json.dumps(printable(card.license))}"
    yield from ("---", "", f"# {markdown_text(card.title)}", "")
    if card.origin:
        yield from (f"Made from {markdown_text(card.origin)}.", "")
    yield f"{format_size(card.nbytes)} of tensors, {card.bits_per_weight:.3f} bits per weight,"
    yield f"{format_count(card.elements)} weights. {_engines(card)}"
    yield ""
    files = tuple((name, f"{size:,}") for name, size in card.files)
    yield render_markdown(Table(title="", columns=columns("file", ">bytes"), rows=files))
    rows = tuple(
        (one.type, f"{one.tensors:,}", format_size(one.nbytes), _share(one.nbytes, card)) for one in card.types
    )
    yield render_markdown(Table(title="", columns=columns("type", ">tensors", ">size", ">share"), rows=rows))
    if card.notes:
        yield from ("## What to expect", "", *(f"- {markdown_text(note)}" for note in card.notes), "")
    yield from ("## Run", "", *_fenced(_run(card), "sh"), "")
    yield from ("## How it was made", "", *_fenced(printable(card.command, 1 << 16), "sh"), "", "with this recipe:", "")
    yield from _fenced("\n".join(printable(line, 1 << 12) for line in card.recipe[:_MAX_RECIPE].splitlines()), "")


def _engines(card: Card) -> str:
    if not card.engines:
        return "No engine has all of its types."
    return f"Runs in {' and '.join(card.engines)}."


def _share(size: int, card: Card) -> str:
    return f"{size / card.nbytes:.1%}" if card.nbytes else ""


def _run(card: Card) -> str:
    arguments = f" {printable(card.arguments, 1 << 12)}" if card.arguments else ""
    return f"llama-server -m {shell_word(card.files[0][0])}{arguments}"


def _fenced(text: str, language: str) -> tuple[str, ...]:
    """Put the text into a code block with a fence longer than any in the text."""
    longest = max((len(found) for found in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return (f"{fence}{language}", text, fence)
