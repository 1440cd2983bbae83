"""The options that all writers share are added to a command's signature, and reach it as two records."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from tests.support.command import commands

WRITERS = ("split", "merge", "swap", "edit", "quantize", "export", "fetch")
SHARED = ["jobs", "dry_run", "force", "no_sync", "no_resume", "hash_", "json"]


def given(line: str, *layout: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a command with the options of writers gets when `line` is parsed."""
    found: dict[str, Any] = {}

    def command(name: str, own: bool = False, **rest: Any) -> None:
        found.update(rest, name=name, own=own)

    parameters = [p for p in inspect.signature(command).parameters.values() if p.name != "rest"]
    extra = ["layout"] * bool(layout) + ["writing"]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*parameters, *(inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, annotation=Any) for one in extra)]
    )
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(writer(*layout, without=without)(command))
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    return found


def test_defaults_and_every_option() -> None:
    assert given("x") == {"name": "x", "own": False, "writing": Writing()}
    line = "x --own --jobs 3 --dry-run --force --no-sync --no-resume --hash --json"
    assert given(line) == {
        "name": "x",
        "own": True,
        "writing": Writing(dry_run=True, force=True, sync=False, resume=False, jobs=3, hash=True, json=True),
    }


def test_layout_options_are_those_that_the_command_names() -> None:
    line = "x --align 64 --pad --reserve 4KiB --force-sizes gap"
    found = given(line, "align", "pad", "reserve", "force_sizes")
    assert found["layout"] == LayoutFlags(align=64, pad=True, reserve=4096, force_sizes="gap")
    assert found["layout"].any
    assert not given("x", "align")["layout"].any
    with pytest.raises(AssertionError, match="No such option"):
        given("x --pad", "align", "force_sizes")


def test_what_a_command_does_without_is_not_offered() -> None:
    assert given("x --no-sync", without=("jobs", "hash_"))["writing"] == Writing(sync=False)
    with pytest.raises(AssertionError, match="No such option"):
        given("x --hash", without=("jobs", "hash_"))


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_ends_with_the_shared_options(name: str) -> None:
    names = [parameter.name for parameter in commands()[name].params if parameter.name != "help"]
    assert names[-len(SHARED) :] == SHARED
