"""The help of one command: its own options first, then those that many commands share, by topic.

typer groups options in panels, which only rich draws; rich would double the start-up.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

# A command with fewer options than this, including --help, shows them in one list.
_MANY = 14
# Section -> the long options in it, wherever a command has them. All others are the command's own.
_SECTIONS: dict[str, frozenset[str]] = {
    "Output": frozenset(
        ("--output", "--json", "--markdown", "--csv", "--html", "--plot", "--full-paths", "--hash", "--dry-run")
    ),
    "Layout": frozenset(
        ("--align", "--pad", "--reserve", "--max-size", "--force-sizes", "--keep-file-type", "--true-file-type")
    ),
    "Safety": frozenset(("--anyway", "--force", "--in-place", "--no-resume", "--no-verify", "--consume", "--yes")),
    "Speed": frozenset(("--jobs", "--no-sync")),
}


def section_of(names: list[str]) -> str:
    """Name the section of an option that has these `names`, such as ``-o`` and ``--output``."""
    return next((title for title, shared in _SECTIONS.items() if not shared.isdisjoint(names)), "Options")


class GroupedCommand(TyperCommand):
    """A command that shows its options in sections, and completes their values if a shell asks."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse `args`; for a shell that completes them, prepare the parameters."""
        if extra.get("resilient_parsing"):
            from gguftool.cli.shared.completing import prepare  # noqa: PLC0415 - only for shells

            prepare(self, args)
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by section; leave out empty sections."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", "Options", *_SECTIONS)}
        params = self.get_params(ctx)
        many = len([param for param in params if param.param_type_name == "option"]) >= _MANY
        for param in params:
            row = param.get_help_record(ctx)
            if row is None:
                continue
            if param.param_type_name == "argument":
                sections["Arguments"].append(row)
            else:
                sections[section_of(param.opts) if many else "Options"].append(row)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
