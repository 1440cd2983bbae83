"""Make the pictures of the page in docs/images: `python -m tests.support.page_pictures`.

Three pages (SmolLM2, a model of 61 layers, three mixes of it), three widths, light and dark. Needs Chromium, SmolLM2
(see `smollm2.py`), and Pillow, which reduces the colours so that the pictures stay small.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from tests.support.browser import COMMAND, find_chromium, running_browser
from tests.support.html_pages import page_of, three_big_moes
from tests.support.paths import REPO
from tests.support.smollm2 import SMOLLM2_COMMAND, find_smollm2

IMAGES = REPO / "docs" / "images"
SIZES = {400: 2600, 1280: 2300, 1900: 1900}  # the width of the screen, and the most of the page to show
MODES = ("light", "dark")
PAGES = ("smollm2", "moe", "three")
LARGEST = 150_000  # bytes
_COLOURS = 96


def picture_path(page: str, width: int, mode: str) -> Path:
    """The place of a picture."""
    return IMAGES / f"report-{page}-{width}-{mode}.png"


def main() -> None:
    """Make all pictures; stop with the command that gets what is missing."""
    program, smollm2 = find_chromium(), find_smollm2()
    if program is None or smollm2 is None:
        sys.exit(f"needs Chromium and SmolLM2: {COMMAND}; {SMOLLM2_COMMAND}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mixes = three_big_moes(folder)
        models = {"smollm2": (smollm2,), "moe": mixes[:1], "three": mixes}
        with running_browser(program, folder / "profile") as browser:
            for page in PAGES:
                file = folder / f"{page}.html"
                file.write_text(page_of(*models[page]), encoding="utf-8")
                for width, height in SIZES.items():
                    for mode in MODES:
                        browser.open(file, width=width, dark=mode == "dark")
                        picture_path(page, width, mode).write_bytes(_small(browser.picture(height)))


def _small(png: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
