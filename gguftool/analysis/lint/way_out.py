"""Commands that findings print as ways out, with the real names of files and values, quoted for a shell."""

from __future__ import annotations

import re

from gguftool.analysis.lint.target import LintTarget
from gguftool.errors import command_line, shell_word
from gguftool.format.kv import KV, ValueType
from gguftool.storage.sources.locate import new_name

_SPELLINGS = {
    ValueType.UINT8: "u8",
    ValueType.INT8: "i8",
    ValueType.UINT16: "u16",
    ValueType.INT16: "i16",
    ValueType.UINT32: "u32",
    ValueType.INT32: "i32",
    ValueType.UINT64: "u64",
    ValueType.INT64: "i64",
    ValueType.FLOAT32: "f32",
    ValueType.FLOAT64: "f64",
    ValueType.BOOL: "bool",
    ValueType.STRING: "str",
}
MAX_COMMAND = 1000  # characters that a command on a screen may have
_TEMPLATE = re.compile(r"'gguftool [^']*'")
_COMMAND = re.compile(r"'(gguftool (?:[^'$]|\$'[^']*'|\$)*)'(?=$|[ ,;:.)])")  # $'...' is a word with escapes


def model_name(target: LintTarget) -> str:
    """Name the file for a command on `target`: the one with the metadata, which opens the whole set."""
    return target.files[0].source.name


def edit_command(target: LintTarget, *words: str, does: str) -> str:
    """Write the command that makes a new file with these metadata changes, and what it `does`; "" if it is too long."""
    if sum(map(len, words)) > MAX_COMMAND:
        return ""
    command = command_line("edit", model_name(target), *words, "-o", new_file_name(target))
    return f"{command} {does}"


def alter_command(target: LintTarget, *words: str, does: str) -> str:
    """Write the command that makes a new file with these operations of alter, and what it `does`."""
    return f"{command_line('alter', model_name(target), *words, '-o', new_file_name(target))} {does}"


def new_file_name(target: LintTarget) -> str:
    """Choose a name that no file has, for what a command makes from `target`."""
    shard = target.files[0].shard
    return new_name(model_name(target), shard.prefix if shard else "")


def value_text(kv: KV) -> str:
    """Write a single value as `edit --set` takes it: ``u32:7``."""
    value = str(kv.value())
    return f"{_SPELLINGS[kv.type]}:{value.lower() if kv.type is ValueType.BOOL else value}"


def filled(way_out: str, target: LintTarget) -> str:
    """Replace FILE and NEW in the commands of a rule's way out with the real names."""

    def fill(match: re.Match[str]) -> str:
        names = {"FILE": shell_word(model_name(target)), "NEW": shell_word(new_file_name(target))}
        return re.sub(r"\b(FILE|NEW)\b", lambda word: names[word[1]], match[0])

    return _TEMPLATE.sub(fill, way_out)


def split_way_out(way_out: str) -> tuple[str, str]:
    """Split a way out into its words, in which "this command" stands for the command, and the command without quotes.

    Without a command, the second part is "".
    """
    match = _COMMAND.search(way_out)
    if match is None:
        return way_out, ""
    return f"{way_out[: match.start()]}this command{way_out[match.end() :]}", match[1]


def command_in(way_out: str) -> str:
    """Find the command in a way out, ready to paste, or ""."""
    return split_way_out(way_out)[1]
