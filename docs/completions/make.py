"""Write the completion scripts that the wheel puts where shells look: what `gguftool --show-completion SHELL` prints.

python docs/completions/make.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gguftool.cli.shared.completing import script_of

FOLDER = Path(__file__).resolve().parent
# The names that the shells load completions by.
FILES = {"gguftool.bash": "bash", "_gguftool": "zsh", "gguftool.fish": "fish", "gguftool.ps1": "powershell"}


def scripts() -> dict[str, str]:
    """Name and text of each file."""
    return {name: f"{script_of(shell)}\n" for name, shell in FILES.items()}


if __name__ == "__main__":
    for name, text in scripts().items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
