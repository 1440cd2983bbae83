"""``python -m gguftool``."""

from gguftool.cli.main import program

program()
