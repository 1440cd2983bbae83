"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gguftool.errors import did_you_mean, printable
from gguftool.render.format import Format
from gguftool.render.units import parse_size


def _size(text: str | int) -> int:
    if isinstance(text, int):
        return text  # a default value
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _alignment(text: str) -> int:
    value = _size(text)
    if value < 8 or value & (value - 1) or value > 1 << 20:
        raise typer.BadParameter(
            f"{text} is not a power of two from 8 to 1 MiB; 32 is usual, 4096 lets files share blocks"
        )
    return value


def local_name(text: str) -> str:
    """Check the name of a file to write or change; a URL, or a folder called ``http:``, is a usage error."""
    from gguftool.storage.sources.locate import scheme_of  # noqa: PLC0415 - not for --help

    if scheme_of(text):
        raise typer.BadParameter("is a URL; gguftool writes only local files: give a path")
    return text


def local_path(text: str | Path) -> Path:
    """Read the path of a file to write or change."""
    return Path(local_name(str(text)))


def one_format(**given: bool) -> Format:
    """Choose the output format, text by default; more than one is a usage error.

    The keywords are the names of the options, and of the formats.
    """
    names = [name for name, wanted in given.items() if wanted]
    if len(names) > 1:
        raise typer.BadParameter(f"{' and '.join(f'--{name}' for name in names)} exclude each other")
    return Format(names[0]) if names else Format.TEXT


def size_option(*names: str, help: str) -> Any:
    """Make an option that takes a size such as 48G or 1.5GiB."""
    return typer.Option(*names, help=help, parser=_size, metavar="SIZE", show_default=False)


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A GGUF file, any shard of a set, a folder, or a quoted glob.")
]
ModelsArgument = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="GGUF files, shards, folders or quoted globs.")
]
OutputOption = Annotated[
    Path, typer.Option("-o", "--output", parser=local_path, metavar="OUT", help="The file to write.")
]
ThisFileOnly = Annotated[
    bool, typer.Option("--this-file-only", help="Open a shard by itself, without the rest of its set.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]
FullPaths = Annotated[
    bool, typer.Option("--full-paths", help="Show files with their full local paths in every format.")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print markdown, to paste into a thread.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print csv with plain numbers.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace outputs that already exist.")]
NoSync = Annotated[
    bool, typer.Option("--no-sync", help="Do not wait for the disk: faster, but a power cut may lose the output.")
]
NoResume = Annotated[bool, typer.Option("--no-resume", help="Start over instead of resuming an interrupted run.")]
HashOption = Annotated[
    bool, typer.Option("--hash", help="Print the sha256 of the files and tensors written, hashed while copying.")
]
Align = Annotated[
    int | None,
    typer.Option(
        "--align",
        parser=_alignment,
        metavar="N",
        help="Pad tensors to N bytes and set general.alignment. Default: as in the input.",
        show_default=False,
    ),
]
ForceSizesOption = Annotated[
    str | None,
    typer.Option(
        "--force-sizes",
        metavar="gap|type",
        help="Which to believe if a tensor's type and its space in the file disagree.",
    ),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", min=1, help="Threads. Default: chosen by measurement.")
]
Patterns = Annotated[
    list[str],
    typer.Option(
        "--tensor",
        metavar="PATTERN",
        help="A tensor's name, or a regular expression to search for in the names. Repeatable.",
    ),
]
Pad = Annotated[
    bool,
    typer.Option(
        "--pad", help="Fill the head (gguftool.padding), so that the rest can share blocks with its source on disk."
    ),
]
Reserve = Annotated[
    int, size_option("--reserve", help="Leave this much room in the head for later edits in place, such as 64KiB.")
]
MaxSize = Annotated[
    int | None, size_option("--max-size", help="Write a set of files up to this size; OUT is their prefix.")
]
KeepFileType = Annotated[
    bool, typer.Option("--keep-file-type", help="Keep general.file_type whatever the tensors are.")
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Also write what the engines do not load, and tensors on which they abort.")
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="The engine that the output is for: llama.cpp or ik_llama.cpp. Default: both. Repeatable.",
        show_default=False,
    ),
]
OptionalOutput = Annotated[
    Path | None,
    typer.Option("-o", "--output", parser=local_path, metavar="OUT", help="The file to write.", show_default=False),
]
InPlace = Annotated[bool, typer.Option("--in-place", help="Change the file itself, with an undo journal.")]


def engines_named(names: Sequence[str] | None) -> tuple[str, ...]:
    """List the engines that --engine names, in the order of the docs; empty without the option."""
    from gguftool.format.engine_facts.engines import ENGINES  # noqa: PLC0415 - not for --help

    for name in names or ():
        if name not in ENGINES:
            meant = did_you_mean(name, ENGINES)
            raise typer.BadParameter(f"--engine takes {' or '.join(ENGINES)}, not '{printable(name)}'{meant}")
    return tuple(engine for engine in ENGINES if engine in (names or ()))


def check_engine(name: str | None) -> None:
    """Raise a usage error if `name` is not an engine."""
    engines_named(None if name is None else (name,))


def shell_words(option: str, text: str) -> tuple[str, ...]:
    """Split the value of `option` as a shell does; an open quote is a usage error."""
    import shlex  # noqa: PLC0415 - not for --help

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def one_target(output: Path | None, *, in_place: bool) -> Path | None:
    """Check that exactly one of -o and --in-place is given; return the output, or None for in place."""
    if (output is None) != in_place:
        raise typer.BadParameter("give either -o OUT or --in-place")
    return output
