"""A source like a slow server: every request costs a round trip and is counted."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from gguftool.errors import SourceError
from gguftool.storage.sources.source import Source

PIECE = 1 << 16


@dataclass(eq=False)
class SlowSource(Source):
    """`data` with `latency` seconds per request and `rate` bytes per second and connection; fails after `fail_at`."""

    data: bytes
    latency: float = 0.0
    rate: float | None = None
    fail_at: int | None = None
    connections: int = 8
    name: str = "https://host.example/model.gguf"
    requests: list[tuple[int, int]] = field(default_factory=list)
    served: int = 0
    most_at_once: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def identity(self) -> str:
        return f"slow:{self.name}:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def parallelism(self) -> int:
        return self.connections

    @property
    def is_remote(self) -> bool:
        return True

    def check_unchanged(self) -> None:
        if self.fail_at is not None and self.served >= self.fail_at:
            raise SourceError("the server is gone", source=self.name)

    def read_at(self, offset: int, length: int) -> bytes:
        return b"".join(self.stream(offset, length))

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        with self._lock:
            self.requests.append((offset, length))
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            time.sleep(self.latency)
            for start in range(offset, offset + length, PIECE):
                piece = self.data[start : min(start + PIECE, offset + length)]
                if self.rate:
                    time.sleep(len(piece) / self.rate)
                with self._lock:
                    if self.fail_at is not None and self.served + len(piece) > self.fail_at:
                        self.fail_at = self.served
                        raise SourceError("the server is gone", source=self.name, offset=start)
                    self.served += len(piece)
                yield piece
        finally:
            with self._lock:
                self._open -= 1
