"""Complete a command line in a shell, by typer's own scripts and protocol; imported only when a shell asks.

An option's metavar says what its value is: a tensor type, an engine, a tensor or key of the model on the line, or one
of the words between bars. For everything else, the shell completes file names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguftool.model.model import Model

# Shells set this variable to start us; typer derives its name from the program's.
VARIABLE = "_GGUFTOOL_COMPLETE"
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
# Seconds to spend on reading the model's head; a shell waits for us at every press of the key.
PATIENCE = 1.0
_MOST_NAMES = 1000
# Shells evaluate what we print, and names come from files: any other character could be part of a command.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
# The same, after text that the user typed, such as the REGEX of a rule.
_SAFE = re.compile(r"[A-Za-z0-9_.,=*^+:@/\-]{1,1000}")
_WORDS = re.compile(r"[a-z0-9_.\-]+(\|[a-z0-9_.\-]+)+")
# When the key is first pressed, zsh loads a file from its folders and expects completions from it. typer's script only
# registers its function, so it would work only from the second press on.
_REGISTER = "compdef _gguftool_completion gguftool"
_REGISTER_OR_RUN = f"""if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _gguftool_completion "$@"
else
  {_REGISTER}
fi"""
# Metavars of models to read tensors and keys from; a donor comes first, because tensors are taken from it.
_MODELS = ("DONOR", "MODEL", "[MODEL]", "MODEL...", "[LABEL=]MODEL...", "SOURCE", "A")


def script_of(shell: str) -> str:
    """Make the script that teaches `shell`, one of `SHELLS`, to ask us."""
    make = import_module("typer.completion").get_completion_script
    script = str(make(prog_name="gguftool", complete_var=VARIABLE, shell=shell))
    return script.replace(_REGISTER, _REGISTER_OR_RUN) if shell == "zsh" else script


def complete(command: Any, instruction: str) -> int:
    """Print the completions of the line in the environment, as `instruction` says; return the exit code."""
    machinery = import_module("typer.completion")
    machinery.completion_init()
    try:
        return int(machinery.shell_complete(command, {}, "gguftool", VARIABLE, instruction))
    except Exception:  # a shell puts all that we print into the line: an odd line gets no completions
        return 1


def prepare(command: Any, line: Sequence[str]) -> None:
    """Let the parameters of `command` complete their values; `line` holds the words after its name."""
    item = import_module("typer.completion").shell_completion.CompletionItem
    for param in command.params:
        values = _values_of(command.name, param, tuple(line))
        if values is not None:
            param.shell_complete = _completer(values, item)


def _completer(values: Callable[[Any, str], Iterable[str]], item: Any) -> Callable[[Any, str], list[Any]]:
    def shell_complete(context: Any, incomplete: str) -> list[Any]:
        found = [value for value in values(context, incomplete) if value.startswith(incomplete)]
        return [item(value) for value in found if _SAFE.fullmatch(value)]

    return shell_complete


def _values_of(command: str, param: Any, line: tuple[str, ...]) -> Callable[[Any, str], Iterable[str]] | None:
    """Find the function that lists the values of a parameter; None if the shell completes file names."""
    metavar = param.metavar or ""
    if metavar == "TYPE" or (command == "types" and metavar == "[NAME]"):
        return lambda context, incomplete: _types(incomplete)
    if metavar in ("TYPE,...", "T,T"):
        return lambda context, incomplete: _last(incomplete, ",")
    if metavar in ("REGEX=TYPE", "PATTERN=TYPE"):
        return lambda context, incomplete: (
            _last(incomplete, "=") if "=" in incomplete else _names(context, line, _tensors)
        )
    if metavar in ("PATTERN", "WHAT"):
        return lambda context, incomplete: _names(context, line, _tensors)
    if metavar == "KEY":
        return lambda context, incomplete: _names(context, line, _keys)
    if metavar.startswith("KEY="):
        return lambda context, incomplete: [f"{key}=" for key in _names(context, line, _keys)]
    if "--engine" in param.opts and metavar == "NAME":
        return lambda context, incomplete: _engines()
    if _WORDS.fullmatch(metavar):
        return lambda context, incomplete: metavar.split("|")
    return None


def _engines() -> tuple[str, ...]:
    from gguftool.format.engine_facts.engines import ENGINES  # noqa: PLC0415 - only when asked

    return tuple(ENGINES)


def _types(incomplete: str) -> list[str]:
    """List the types as recipes spell them, or by their names if the word begins with a capital."""
    from gguftool.format.ggml import TYPES  # noqa: PLC0415 - only when asked

    capitals = incomplete[:1].isupper()
    return [traits.name if capitals else traits.alias for traits in TYPES.values() if traits.in_files]


def _last(incomplete: str, mark: str) -> list[str]:
    """Complete the type after the last `mark` of the word, and keep the text before it."""
    before, found, word = incomplete.rpartition(mark)
    return [f"{before}{found}{name}" for name in _types(word)]


def _tensors(model: Model) -> Iterable[str]:
    return iter(model.tensors)


def _keys(model: Model) -> Iterable[str]:
    return (kv.key for kv in model.kvs)


def _names(context: Any, line: Sequence[str], names: Callable[[Model], Iterable[str]]) -> list[str]:
    """List names in the first model of the line that is a local file; empty if it takes too long or is not a model.

    typer gives up if the last option has no value yet, and then knows no arguments: hence the words of `line`.
    """
    found: list[str] = []

    def read() -> None:
        from gguftool.model.opening import open_model  # noqa: PLC0415 - only when asked

        path = next((path for text in (*_models(context), *line) for path in _paths(text)), None)
        try:
            plain = [] if path is None else [name for name in names(open_model(path)) if _PLAIN.fullmatch(name)]
        except Exception:  # an error about the file has no place between the words of a command line
            return
        found.extend(plain[:_MOST_NAMES])

    # A thread, because we would wait forever for a named pipe or a dead network drive. It ends with the process.
    reader = Thread(target=read, daemon=True)
    reader.start()
    reader.join(PATIENCE)
    return found[:]


def _models(context: Any) -> Iterable[str]:
    """Yield the models of the line, in the order of `_MODELS`."""
    for metavar in _MODELS:
        for param in context.command.params:
            value = context.params.get(param.name) if param.metavar == metavar else None
            values: Sequence[object] = value if isinstance(value, list | tuple) else [value]
            yield from (str(one) for one in values if one is not None)


def _paths(text: str) -> Iterable[str]:
    """Yield `text`, or the MODEL of LABEL=MODEL, if it exists here; an address never does."""
    from gguftool.storage.sources.locate import scheme_of  # noqa: PLC0415 - only when asked

    for path in (text, text.partition("=")[2]):
        if path and not scheme_of(path) and os.path.exists(path):
            yield path
