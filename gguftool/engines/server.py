"""Ask a llama-server whether its model is loaded, and let it generate tokens, while other code watches it.

It listens on a port of its own choice on the loopback interface; /proc shows which.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import threading
import time

from gguftool.engines.child import family

_LISTENING = "0A"
_LOOPBACK = "0100007F"
_PAUSE = 0.05  # seconds between two requests
_SOCKET = re.compile(r"socket:\[(\d+)\]")


class ServerTalk:
    """Requests to one llama-server: wait until it is healthy, then request `tokens`, if there are any."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.answer: str = ""  # of a request that failed
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def is_ready(self, pid: int) -> bool:
        """Check once, without waiting; True when there are no requests left."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._talk, args=(pid,), daemon=True)
            self._thread.start()
        return self._done.is_set()

    def _talk(self, pid: int) -> None:
        """Send requests until there is an answer; ends when the server ends, because requests fail then."""
        while os.path.exists(f"/proc/{pid}"):
            port = next(filter(None, map(listening_port, family(pid))), None)
            with contextlib.suppress(OSError, http.client.HTTPException):
                if port and _ask(port, "GET", "/health")[0] == 200:
                    if self.tokens:
                        body = json.dumps({"prompt": "a", "n_predict": self.tokens, "ignore_eos": True})
                        status, text = _ask(port, "POST", "/completion", body)
                        self.answer = "" if status == 200 else text
                    self._done.set()
                    return
            time.sleep(_PAUSE)


def _ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read(1 << 16).decode("utf-8", "replace")
    finally:
        connection.close()


def listening_port(pid: int) -> int | None:
    """The port on the loopback interface at which a process listens, or None."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            names = [os.readlink(entry.path) for entry in entries]
        with open(f"/proc/{pid}/net/tcp", encoding="ascii") as table:
            rows = [line.split() for line in table][1:]
    except OSError:
        return None
    inodes = {match[1] for name in names if (match := _SOCKET.fullmatch(name))}
    for row in rows:
        address, _, port = row[1].partition(":")
        if row[3] == _LISTENING and address == _LOOPBACK and row[9] in inodes:
            return int(port, 16)
    return None
