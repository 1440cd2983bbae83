"""Write the man page, docs/gguftool.1, from the help of the commands; the wheel puts it where `man gguftool` looks.

python docs/make_man.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from typer.main import get_command

from gguftool import __version__
from gguftool.cli.app import app

PAGE = Path(__file__).with_name("gguftool.1")
# Else these are typeset as quotation marks, accents and hyphens, which nobody can paste into a shell.
_ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "`": "\\(ga", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti"})
_EXIT = """
0  fine
1  differences (diff), findings (check, recipe check), or hashes that do not match (hash)
2  trouble: not a GGUF, cannot be read, cannot be written, bad usage
129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM
141  the reader of the output went away
"""


def escaped(text: str) -> str:
    """`text` as roff shows it: no character is a request or an escape."""
    text = text.translate(_ESCAPES)
    return f"\\&{text}" if text.startswith(".") else text


def paragraphs(help: str) -> Iterator[str]:
    """The paragraphs of a help text; after a backspace the lines of a paragraph stay."""
    for part in re.split(r"\n\s*\n", help.strip()):
        yield ".PP"
        if part.startswith("\b"):
            lines = [line for line in part.splitlines()[1:] if line.strip()]
            yield from (".nf", ".RS 4", *map(escaped, lines), ".RE", ".fi")
        else:
            yield escaped(" ".join(part.split()))


def label(param: Any) -> str:
    """An option with its value, or an argument."""
    choices = getattr(param.type, "choices", None)
    value = param.metavar or ("|".join(str(getattr(one, "value", one)) for one in choices) if choices else "")
    if param.param_type_name == "argument":
        return f"\\fI{escaped(value or param.name.upper())}\\fR"
    names = ", ".join(f"\\fB{escaped(name)}\\fR" for name in param.opts)
    return names if param.is_flag or not value else f"{names} \\fI{escaped(value)}\\fR"


def parameters(command: Any) -> Iterator[str]:
    """Every argument and option with its help."""
    for param in command.params:
        if param.name != "help":
            yield from (".TP", label(param), escaped(param.help or ""))


def section(name: str, command: Any) -> Iterator[str]:
    """A command, or a group with the commands in it."""
    inner = getattr(command, "commands", None)
    yield f'.SS "{escaped(name)}"'
    yield from paragraphs(command.help or "")
    if inner is None:
        yield from parameters(command)
    else:
        for word, each in inner.items():
            yield from section(f"{name} {word}", each)


def page() -> str:
    """The whole page."""
    root = get_command(app)
    lines = [
        '.\\" Written by docs/make_man.py from the help of the commands.',
        f'.TH GGUFTOOL 1 "" "gguftool {__version__}" "User Commands"',
        ".SH NAME",
        "gguftool \\- take GGUF model files apart and put them together again, tensor by tensor",
        ".SH SYNOPSIS",
        "\\fBgguftool\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGS\\fR]...",
        ".SH OPTIONS",
        *parameters(root),
        ".TP",
        "\\fB\\-h\\fR, \\fB\\-\\-help\\fR",
        "Show help; also behind a command.",
        ".SH COMMANDS",
    ]
    for name, row in root.commands.items():  # type: ignore[attr-defined]
        lines += section(name, row.load())
    lines.append(".SH EXIT STATUS")
    for line in _EXIT.strip().splitlines():
        code, _, text = line.partition("  ")
        lines += [".TP", f"\\fB{code}\\fR", escaped(text)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
