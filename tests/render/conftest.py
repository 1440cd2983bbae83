"""One browser for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import COMMAND, Browser, find_chromium, running_browser


@pytest.fixture(scope="session")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(f"needs a headless Chromium: {COMMAND}")
    with running_browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(_running: Browser) -> Browser:
    """A headless Chromium without a page."""
    return _running
