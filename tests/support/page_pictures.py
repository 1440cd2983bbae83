"""Make the pictures of pages in docs/images: `python -m tests.support.page_pictures [report|plan]`.

Three pages of `report` (SmolLM2, a model of 61 layers, three mixes of it) and of `plan` (SmolLM2, 61 layers, these on
three devices), each in three widths, light and dark. Needs Chromium, for `report` SmolLM2 (see `smollm2.py`), and
Pillow, which reduces the colours so that the pictures stay small.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from tests.support.browser import COMMAND, find_chromium, running_browser
from tests.support.html_pages import page_of, three_big_moes
from tests.support.paths import REPO
from tests.support.plan_pages import moe_page, smollm2_page
from tests.support.smollm2 import SMOLLM2_COMMAND, find_smollm2

IMAGES = REPO / "docs" / "images"
SIZES = {400: 2600, 1280: 2300, 1900: 1900}  # the width of the screen, and the most of the page to show
MODES = ("light", "dark")
PAGES = {"report": ("smollm2", "moe", "three"), "plan": ("smollm2", "moe", "devices")}
_DEVICES = ("CUDA0=1GiB:attn|shexp", "CUDA1=1.5GiB:blk[.](1?[0-9])[.]ffn", "CPU=4.5GiB")
LARGEST = 150_000  # bytes
_COLOURS = 96


def picture_path(command: str, page: str, width: int, mode: str) -> Path:
    """The place of a picture."""
    return IMAGES / f"{command}-{page}-{width}-{mode}.png"


def main() -> None:
    """Make the pictures of the commands named, or all; stop with the command that gets what is missing."""
    program = find_chromium()
    if program is None:
        sys.exit(f"needs Chromium: {COMMAND}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_browser(program, folder / "profile") as browser:
            for command in sys.argv[1:] or PAGES:
                pages = _reports(folder) if command == "report" else _plans()
                for page, text in pages.items():
                    file = folder / f"{page}.html"
                    file.write_text(text, encoding="utf-8")
                    for width, height in SIZES.items():
                        for mode in MODES:
                            browser.open(file, width=width, dark=mode == "dark")
                            picture_path(command, page, width, mode).write_bytes(_small(browser.picture(height)))


def _reports(folder: Path) -> dict[str, str]:
    smollm2 = find_smollm2()
    if smollm2 is None:
        sys.exit(f"needs SmolLM2: {SMOLLM2_COMMAND}")
    mixes = three_big_moes(folder)
    return {"smollm2": page_of(smollm2), "moe": page_of(*mixes[:1]), "three": page_of(*mixes)}


def _plans() -> dict[str, str]:
    return {"smollm2": smollm2_page(), "moe": moe_page(), "devices": moe_page(*_DEVICES)}


def _small(png: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
