"""The options that all writing commands share; `writer` adds them to a command's signature.

Only what parsing needs is imported here, so that --help stays fast; `cli/shared/running.py` carries plans out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

from gguftool.cli.shared.options import (
    Align,
    Anyway,
    DryRun,
    Engines,
    Force,
    ForceSizesOption,
    HashOption,
    Jobs,
    Json,
    NoResume,
    NoSync,
    Pad,
    Reserve,
)
from gguftool.record import record


@record
class Writing:
    """How to write and what to print: the shared options of writers."""

    dry_run: bool = False
    force: bool = False
    sync: bool = True
    resume: bool = True
    jobs: int | None = None
    hash: bool = False
    json: bool = False


@record
class LayoutFlags:
    """How to lay out tensors (--align, --pad, --reserve, --force-sizes), and for which engine (--engine, --anyway)."""

    align: int | None = None
    pad: bool = False
    reserve: int = 0
    force_sizes: str | None = None
    engine: list[str] | None = None
    anyway: bool = False

    @property
    def any(self) -> bool:
        """Whether any of the options is given."""
        return self != LayoutFlags()


# Name -> annotation and default, in the order of --help.
_LAYOUT: dict[str, tuple[Any, Any]] = {
    "align": (Align, None),
    "pad": (Pad, False),
    "reserve": (Reserve, 0),
    "force_sizes": (ForceSizesOption, None),
    "engine": (Engines, None),
    "anyway": (Anyway, False),
}
_WRITING: dict[str, tuple[Any, Any]] = {
    "jobs": (Jobs, None),
    "dry_run": (DryRun, False),
    "force": (Force, False),
    "no_sync": (NoSync, False),
    "no_resume": (NoResume, False),
    "hash_": (HashOption, False),
    "json": (Json, False),
}


def writer(
    *layout: str, without: tuple[str, ...] = (), jobs: Any = Jobs
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of writers to a command, after its own; it takes them as one argument `writing`.

    `layout` names the layout options to add, which the command takes as one argument `layout`; `without` names shared
    options to leave out; `jobs` is the annotation of --jobs.
    """
    shared = {name: _LAYOUT[name] for name in _LAYOUT if name in layout}
    shared |= {name: kind for name, kind in {**_WRITING, "jobs": (jobs, None)}.items() if name not in without}
    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in shared.items()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        # Not typing.get_type_hints: on Python 3.10 it wraps parameters that default to None, and typer sees no option.
        parameters = signature(command, eval_str=True).parameters.values()
        own = [parameter for parameter in parameters if parameter.name not in ("layout", "writing")]

        @wraps(command)
        def run(**given: Any) -> None:
            flags = {name: given.pop(name) for name in shared}
            if layout:
                given["layout"] = LayoutFlags(**{name: flags[name] for name in layout})
            command(**given, writing=_writing(flags))

        run.__signature__ = Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
        return run

    return decorate


def _writing(flags: dict[str, Any]) -> Writing:
    return Writing(
        dry_run=flags.get("dry_run", False),
        force=flags["force"],
        sync=not flags["no_sync"],
        resume=not flags.get("no_resume", False),
        jobs=flags.get("jobs"),
        hash=flags.get("hash_", False),
        json=flags["json"],
    )
