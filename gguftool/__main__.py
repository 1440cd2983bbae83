"""``python -m gguftool``."""

from gguftool.cli.main import main

main()
