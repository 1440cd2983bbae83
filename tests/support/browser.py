"""A headless Chromium, driven through its debugging pipe: no port, no library, and any width of the screen.

Its own command line cannot do that: windows have a least width, and no option sets the colour scheme.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = "apt-get install chromium"
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars --force-color-profile=srgb --remote-debugging-pipe"
)


def find_chromium() -> str | None:
    """The program, or None; nor is there one on Windows, where a child cannot be given pipes by their numbers."""
    if os.name != "posix":
        return None
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser refused a command, or a script in it failed."""


class Browser:
    """One page of a running browser; `problems` are the messages of its console and its security policy."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._last = 0
        self._session: str | None = None
        self.problems: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load `page` on a screen of that size, in CSS pixels."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        self.problems.clear()
        self._send("Page.navigate", url=page.absolute().as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """The value of `script`, an expression, in the page; promises are waited for."""
        answer = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, such as Tab or ArrowDown, as a person does."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("rawKeyDown", "keyUp"):
            self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def tap(self, x: float, y: float) -> None:
        """Tap at that place of the screen, as with a finger."""
        self._send("Emulation.setTouchEmulationEnabled", enabled=True)
        self._send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def picture(self, most: int) -> bytes:
        """The page as PNG, from its top, as on a screen that is as high as the page but not above `most` pixels."""
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        width, height = size["width"], min(most, size["height"])
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Ask the browser to end."""
        self._session = None
        with contextlib.suppress(OSError, BrowserError):
            self._send("Browser.close")
        self._commands.close()
        self._answers.close()

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last:
            self._note(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise BrowserError("the browser has ended")
            message += byte
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(event["params"]["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded":
            self.problems.append(str(event["params"]["entry"]["text"]))


@contextlib.contextmanager
def running_browser(program: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile in the folder `profile`; it ends with the block."""
    import fcntl

    (to_browser, commands), (answers, from_browser) = os.pipe(), os.pipe()
    # A high number each, so that the shell can put them in the places that the browser reads, 3 and 4.
    inside = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]
    script = f'exec "$@" 3<&{inside[0]} 4>&{inside[1]}'
    command = ["bash", "-c", script, "bash", program, *_FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, pass_fds=inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for fd in (to_browser, from_browser, *inside):
        os.close(fd)
    browser = Browser(commands, answers)
    try:
        yield browser
    finally:
        browser.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
