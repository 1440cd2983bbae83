"""Find an engine to load models in: the kind of program, its engine, and its options.

Options come from its `--help`: no two releases have the same, and ik_llama.cpp lacks many. A program that cannot even
print its help still counts as an engine; loading the known-good model shows its problem.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from enum import Enum
from pathlib import Path

from gguftool.engines.child import Limits, run_child
from gguftool.errors import PlanError, printable
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.record import record

XLLAMACPP = "xllamacpp"
_PROGRAM = re.compile(r"llama-(cli|completion|perplexity|server|imatrix)(?![a-z])")
_OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
_VERSION = re.compile(r"version: *(\d+[^\n]{0,60})")
_LIMITS = Limits(seconds=30, anonymous=2 << 30)
# Options of only one engine's programs.
_IK_OPTION = "--run-time-repack"

_CONTEXT, _BATCH = "64", "8"


class Kind(Enum):
    """The kind of program, which decides the options that keep its work small."""

    XLLAMACPP = "xllamacpp"
    CLI = "llama-cli"
    COMPLETION = "llama-completion"
    PERPLEXITY = "llama-perplexity"
    SERVER = "llama-server"
    IMATRIX = "llama-imatrix"


LOADERS = tuple(kind for kind in Kind if kind is not Kind.IMATRIX)  # programs that load any model, without computing


@record
class LoadEngine:
    """A program that loads models; `engine` is the engine that it was built from, `options` are those in its help."""

    kind: Kind
    engine: str
    version: str
    path: Path | None = None
    options: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """Its name in reports."""
        return f"{self.kind.value} ({self.engine}{f' {self.version}' if self.version else ''})"


def require_linux(name: str) -> None:
    """Raise `PlanError` on other systems; call it before creating anything for the engine `name`."""
    if not sys.platform.startswith("linux"):
        raise PlanError("this works only on Linux: the engine's mappings and memory are read from /proc", source=name)


def find_engine(name: str, folder: Path, *, tokens: int = 0, kinds: tuple[Kind, ...] = LOADERS) -> LoadEngine:
    """Find the engine `name`: xllamacpp, or the path of a program of llama.cpp or ik_llama.cpp. It runs in `folder`.

    `kinds`: suitable programs.

    Raises `PlanError` if there is no such program, or this module cannot drive it or make it generate `tokens`.
    """
    require_linux(name)
    if name == XLLAMACPP and Kind.XLLAMACPP in kinds:
        return _xllamacpp()
    found = shutil.which(name)
    if found is None:
        raise PlanError("no such program, or it is not executable; give its path, or 'xllamacpp'", source=name)
    path = Path(found).absolute()
    match = _PROGRAM.search(path.name) or _PROGRAM.search(path.resolve().name)
    if match is None or Kind(match[0]) not in kinds:
        named = ", ".join(kind.value for kind in kinds)
        among = f"not {named}" if len(kinds) == 1 else f"not one of {named}"
        raise PlanError(f"is {among} by its name; name {'it' if len(kinds) == 1 else 'one of them'}", source=name)
    kind = Kind(match[0])
    if tokens and kind is Kind.PERPLEXITY:
        raise PlanError("llama-perplexity generates nothing: leave out --run, or name llama-completion", source=name)
    options = frozenset(_OPTION.findall(_output_of(path, "--help", folder)))
    version = _VERSION.search(_output_of(path, "--version", folder))
    return LoadEngine(
        kind=kind,
        engine=IK_LLAMA_CPP if _IK_OPTION in options else LLAMA_CPP,
        version=printable(version[1].strip()) if version else "",
        path=path,
        options=options,
    )


def _xllamacpp() -> LoadEngine:
    if importlib.util.find_spec(XLLAMACPP) is None:
        raise PlanError("is not installed: pip install xllamacpp", source=XLLAMACPP)
    from importlib.metadata import version

    # The last number is llama.cpp's build.
    return LoadEngine(kind=Kind.XLLAMACPP, engine=LLAMA_CPP, version=f"b{version(XLLAMACPP).rpartition('.')[2]}")


def _output_of(path: Path, option: str, folder: Path) -> str:
    return run_child([str(path), option], folder, _LIMITS).log.text()


def command_line(engine: LoadEngine, model: Path, tokens: int, text: Path) -> list[str]:
    """Build the command line that loads `model` and generates `tokens`, if there are any.

    `text` is for llama-perplexity, which needs an input.
    """
    if engine.kind is Kind.XLLAMACPP:
        program = Path(__file__).with_name("xllamacpp_child.py").read_text(encoding="utf-8")
        return [sys.executable, "-c", program, str(model), str(tokens)]
    words = [str(engine.path), "-m", str(model), "-c", _CONTEXT, "-b", _BATCH, "-ub", _BATCH]
    # Options that avoid a second copy of the weights, computing, devices and questions. Fit stays on: it builds the
    # graph before anything is mapped.
    wanted = (
        ("--load-mode", "mmap"),
        ("--no-repack",),
        ("--no-warmup",),
        ("--device", "none"),
        ("--offline",),
        ("--log-colors", "off"),
    )
    words += [word for option in wanted if option[0] in engine.options for word in option]
    if "--device" not in engine.options:
        words += ["-ngl", "0"]
    return words + _task(engine, tokens, text)


def _task(engine: LoadEngine, tokens: int, text: Path) -> list[str]:
    """The options that differ by kind of program: the work after the model is loaded."""
    if engine.kind is Kind.SERVER:
        return ["--host", "127.0.0.1", "--port", "0"]
    if engine.kind is Kind.PERPLEXITY:
        return ["-f", str(text)]
    # Without a conversation, if there is a choice: chat templates are not tested here.
    alone = "-st" if engine.kind is Kind.CLI and "-st" in engine.options else "-no-cnv"
    return ["-p", "a", "-n", str(tokens), *([alone] if alone in engine.options else [])]
