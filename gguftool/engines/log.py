"""The log of an engine, of bounded size, and the error lines in it."""

from __future__ import annotations

import re

from gguftool.errors import printable

_HEAD = 1 << 20  # bytes kept of the start
_TAIL = 1 << 18  # bytes kept of the end: an engine that fails prints the reason last
_LINE = 400  # characters shown of a line
_LINES = 4  # error lines shown

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
# llama-cli prints a spinner, and its log continues on that line.
_SPINNER = re.compile(r"Loading model\.\.\. ?[-|/\\]?|(?:[-|/\\ ]?\x08)+(?: \x08)*")
# llama.cpp since 2026: "0.00.009.093 E text"; ik_llama.cpp's server: "ERR [function] text | tid="..." timestamp=1"
_STAMP = re.compile(r"^(?:\d+\.\d\d\.\d{3}\.\d{3} )?(?:(?P<level>[EWIDT]) )?")
_TRAILER = re.compile(r" \| tid=.*$| timestamp=\d+.*$")
# Lines that name a cause, the best first; then lines that only say that something failed.
_CAUSES = (
    re.compile(r"error loading model: (?!error loading)|error loading model vocabulary", re.I),
    re.compile(r"GGML_ASSERT|GGML_ABORT|what\(\):|^[\w./+-]+\.(?:c|cpp|cu|h):\d+: "),
    re.compile(r"error while loading shared libraries|symbol lookup error|No module named|ImportError"),
    re.compile(r"error:|\bERR\b|invalid argument|unknown (?:argument|option)", re.I),
)
_FAILURE = re.compile(r"\berror\b|\bfailed\b|\babort|terminate called|\bfatal\b|unsupported|cannot", re.I)
_ECHO = re.compile(
    r"failed to load model|exiting due to|failed to init server|unable to (?:create context|load model)"
    r"|encountered an error while trying to fit|server exited before becoming ready",
    re.I,
)


class Log:
    """The start and the end of an engine's output."""

    def __init__(self) -> None:
        self.nbytes: int = 0
        self._head = bytearray()
        self._tail = bytearray()

    def add(self, data: bytes) -> None:
        """Add the next bytes."""
        self.nbytes += len(data)
        room = _HEAD - len(self._head)
        self._head += data[:room]
        self._tail += data[max(room, 0) :]
        if len(self._tail) > 2 * _TAIL:
            del self._tail[:-_TAIL]

    def text(self) -> str:
        """The start, and the end if there is more."""
        return (bytes(self._head) + bytes(self._tail)).decode("utf-8", "replace")

    def lines(self) -> list[str]:
        """Lines without colors, spinners and line ends."""
        return [_SPINNER.sub("", _COLOR.sub("", line)).strip() for line in re.split(r"[\r\n]+", self.text())]

    def errors(self) -> tuple[str, ...]:
        """Lines that say why it failed, the cause first: without timestamps, each once, safe to print."""
        ranked: dict[str, int] = {}
        for line in self.lines():
            match = _STAMP.match(line)
            level = match["level"] if match else None
            text = _TRAILER.sub("", line[match.end() if match else 0 :]).strip()
            rank = _rank(text, is_error=level == "E", is_other=level is not None and level != "E")
            if text and rank is not None:
                ranked.setdefault(text, rank)
        best = min(ranked.values(), default=0)
        kept = [text for text, rank in sorted(ranked.items(), key=lambda item: item[1]) if rank <= max(best, 3)]
        return tuple(dict.fromkeys(printable(text, _LINE) for text in kept[:_LINES]))

    def last_line(self) -> str:
        """The last line that is not empty, safe to print."""
        return printable(next((line for line in reversed(self.lines()) if line), ""), _LINE)


def _rank(text: str, *, is_error: bool, is_other: bool) -> int | None:
    """How well a line names the cause, 0 is the best; None for a line that is not about a failure."""
    if is_other:
        return None
    if _ECHO.search(text.rpartition("error loading model:")[2]):
        return len(_CAUSES) + 1
    for rank, cause in enumerate(_CAUSES):
        if cause.search(text):
            return rank
    return len(_CAUSES) if is_error or _FAILURE.search(text) else None
