"""Names that try to act on a terminal, a page or a table."""

from __future__ import annotations

HOSTILE = (
    "\x1b[31mred",
    "two\nlines",
    "rtl\u202egnp",
    "<script>alert(1)</script>",
    "bad\udcff",
    "x" * 4096,
    "a|b`c`&#27;",
)
