"""The typer application and the table of its commands; a command's module is imported only when the command runs."""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gguftool.cli.shared.console import fail, fail_use, write, write_version
from gguftool.cli.shared.grouped import GroupedCommand
from gguftool.errors import did_you_mean, printable

_HERE = "gguftool.cli.commands"
# Name, module and function (or the typer application of a group), and the first line of its help.
COMMANDS = (
    ("info", f"{_HERE}.info:info", "Show what a model is, on one screen."),
    ("dump", f"{_HERE}.dump:dump", "Show what is inside: metadata and tensors."),
    ("report", f"{_HERE}.report:report", "Show how parameters and bytes are distributed."),
    ("diff", f"{_HERE}.diff:diff", "Show how two models differ: metadata and tensors."),
    (
        "check",
        f"{_HERE}.check:check",
        "Find what is wrong, and which engines will not run it.",
    ),
    ("split", f"{_HERE}.split:split", "Split a model into shards."),
    ("merge", f"{_HERE}.merge:merge", "Merge shards, or a mix of several quants, into one model."),
    ("swap", f"{_HERE}.swap:swap", "Replace tensors with a donor's."),
    ("alter", f"{_HERE}.alter:alter", "Change which tensors a model has."),
    ("edit", f"{_HERE}.edit:edit", "Change metadata."),
    (
        "quantize",
        f"{_HERE}.cooking.quantize:quantize",
        "Quantize a model by a recipe, by rules, or by a preset.",
    ),
    (
        "measure",
        f"{_HERE}.cooking.measure:measure",
        "Measure what quantizing each tensor does to the output.",
    ),
    ("plan", f"{_HERE}.cooking.plan:plan", "Choose each tensor's type for a size, devices or quality."),
    (
        "cook",
        f"{_HERE}.cooking.cook:cook",
        "Make the file that a recipe describes.",
    ),
    ("export", f"{_HERE}.export:export", "Write tensors to a safetensors file."),
    ("fetch", f"{_HERE}.fetch:fetch", "Fetch a model or some of its tensors; repair a download."),
    ("hash", f"{_HERE}.hash:hash_", "Print the sha256 of each tensor's data, or check hashes."),
    ("types", f"{_HERE}.types:types", "List the tensor types, or explain one."),
    ("recipe", f"{_HERE}.cooking.recipe:app", "Check recipes, extract them from models, and convert them."),
    ("imatrix", f"{_HERE}.cooking.imatrix:app", "Show, convert, alter and make importance matrices."),
)
# How similar a word must be to a command's name for us to suggest it, by difflib. Its default of 0.6 suggests `split`
# for `list` (0.67: both have l, i and t); a name of four letters with two swapped, such as `dmup`, scores 0.75.
_SIMILAR = 0.7
# typer's message for a value that is not one of an option's words.
_NOT_ONE_OF = re.compile(r"'([^']*)' is not one of (('[^']*'(, )?)+)\.?$")
_QUOTED = re.compile(r"'([^']*)'")
# The base of all usage errors; typer exports only some classes that derive from it.
_USAGE_ERROR: Any = typer.BadParameter.__base__


class LazyCommand(TyperCommand):
    """A row of the table: a name and a summary until its arguments are parsed, then the real command."""

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self._target = target

    def load(self) -> Any:
        """Import the command's module and build the command, or the group of commands."""
        module, _, name = self._target.partition(":")
        found = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(rich_markup_mode=None, add_completion=False)
            found.command(self.name, cls=GroupedCommand)(function)
        return typer.main.get_command(found)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse `args` as the real command does, and return its context."""
        return self.load().make_context(info_name, args, parent, **extra)


def _is_model(word: str) -> bool:
    """Whether a word in place of a command must be a model: a path, an address, or a glob."""
    separators = {"/", os.sep, os.altsep or "/"}
    return any(mark in word for mark in (*separators, "*")) or word.lower().endswith(".gguf") or os.path.exists(word)


class CommandTable(TyperGroup):
    """The group of all commands in `COMMANDS`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for row in COMMANDS:
            self.add_command(LazyCommand(*row))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that `args` starts with; for an unknown one, suggest similar names."""
        name = args[0]
        if name == "help" and ctx.resilient_parsing:  # a shell completes the name that follows
            return self.resolve_command(ctx, args[1:]) if len(args) > 1 else (None, None, [])
        if name == "help":
            if len(args) == 1:
                write(f"{ctx.get_help()}\n")
                raise typer.Exit
            return self.resolve_command(ctx, [*args[1:], "--help"])
        if name not in self.commands and _is_model(name):
            return super().resolve_command(ctx, ["info", *args])
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches  # noqa: PLC0415 - only for typos

            near = ", ".join(map(repr, get_close_matches(name, self.commands, cutoff=_SIMILAR)))
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near}?" if near else ""))
        return super().resolve_command(ctx, args)


app: typer.Typer = typer.Typer(
    name="gguftool",
    cls=CommandTable,
    help="Take GGUF model files apart and put them together again, tensor by tensor.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        write_version()
        raise typer.Exit


def _show_completion(ctx: typer.Context, shell: str | None) -> None:
    if shell is None or ctx.resilient_parsing:
        return
    from gguftool.cli.shared.completing import SHELLS, script_of  # noqa: PLC0415 - only for this option

    if shell not in SHELLS:
        near = did_you_mean(shell, SHELLS)
        raise typer.BadParameter(f"takes {', '.join(SHELLS[:-1])} or {SHELLS[-1]}, not '{printable(shell, 40)}'{near}")
    write(f"{script_of(shell)}\n")
    raise typer.Exit


def _keep_heads(folder: str | None) -> None:
    if folder is not None:
        from gguftool.storage.sources.head_cache import VARIABLE  # noqa: PLC0415 - only for --cache

        os.environ[VARIABLE] = os.path.abspath(folder)


@app.callback()
def _root(
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="FOLDER",
            callback=_keep_heads,
            help="Keep the heads of remote files here for later runs. Default: GGUFTOOL_CACHE from the environment.",
            show_default=False,
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            metavar="SHELL",
            callback=_show_completion,
            is_eager=True,
            help="Print the completion script for bash, zsh, fish or powershell.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take GGUF model files apart and put them together again, tensor by tensor."""


def run() -> int:
    """Run the command line and return its exit code; print usage errors like all other errors."""
    instruction = os.environ.get("_GGUFTOOL_COMPLETE")  # `completing.VARIABLE`
    if instruction:
        from gguftool.cli.shared.completing import complete  # noqa: PLC0415 - only for shells

        return complete(typer.main.get_command(app), instruction)
    try:
        code = app(prog_name="gguftool", standalone_mode=False)
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its text is the help
            error.show()
        else:
            _fail_use(error)
        return 2
    except typer.Abort:
        fail("no answer to a question: standard input ended")
        return 2
    return code if isinstance(code, int) else 0


def _fail_use(error: Any) -> None:
    context = error.ctx
    hint = (context.get_usage(), f"Try '{context.command_path} -h' for help.") if context else ()
    text = " ".join(error.format_message().split())
    choice = _NOT_ONE_OF.search(text)
    fail_use(text.removesuffix(".") + did_you_mean(choice[1], _QUOTED.findall(choice[2])) if choice else text, hint)
