"""Mutants that no test can notice, because they behave as the code does: samples leave them out.

Each entry holds the lines as `mutants_of` shows them, and why the two mean the same. An entry belongs here only if the
reason covers every input; what is merely hard to test does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_EXECUTE = "gguftool/storage/execute"

# Module -> (line of the code, line of the mutant, reason).
EQUIVALENT: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "gguftool/format/header.py": (
        (
            "return any(kv.key == GENERAL_TYPE and kv.type is ValueType.STRING and kv.value() == "
            '"imatrix" for kv in kvs)',
            "return any(kv.key == GENERAL_TYPE and kv.type >= ValueType.STRING and kv.value() == "
            '"imatrix" for kv in kvs)',
            "no value of another type equals a text",
        ),
        (
            "raw = change_width(raw, kind, cursor.order, 4, 8)",
            "raw = change_width(raw, kind, cursor.order, 4, 7)",
            "any width but 4 is that of the later versions",
        ),
        (
            "raw = change_width(raw, kind, cursor.order, 4, 8)",
            "raw = change_width(raw, kind, cursor.order, 4, 9)",
            "any width but 4 is that of the later versions",
        ),
        ("if first != index:", "if first is not index:", "`setdefault` returns the very object for a new name"),
        ("if first != index:", "if first < index:", "an earlier index is always the smaller one"),
        (
            "if version & 0xFFFF == 0 and version != 0:",
            "if version & 0xFFFF == 0 and version > 0:",
            "an unsigned number is not negative",
        ),
    ),
    "gguftool/format/cursor.py": (
        *(
            (
                "if self.pos + size > self.ready:",
                f"if self.pos + size {sign} self.ready:",
                "`need` checks the same bounds once more, exactly; this only saves the call",
            )
            for sign in (">=", "!=", "is not")
        ),
    ),
    "gguftool/surgery/metadata.py": (
        (
            "return sorted(entries, key=lambda entry: entry[0])",
            "return sorted(entries, key=lambda entry: entry[ -1])",
            "lists of the same entries are equal when sorted by any part that differs",
        ),
        (
            "return any(own == kind.name or own == fallback_type(kind.name, wide, engine) "
            "for kind in kinds for engine in BOTH)",
            "return any(own == kind.name or own is fallback_type(kind.name, wide, engine) "
            "for kind in kinds for engine in BOTH)",
            "names of types are constants, which CPython interns",
        ),
        (
            "if theirs or len(rest) < len(kvs):",
            "if theirs or len(rest) != len(kvs):",
            "`rest` is a part of `kvs`",
        ),
        (
            "old is not None and old.type in INTEGERS and old.value() == QUANTIZATION_VERSION",
            "old is not None and old.type in INTEGERS and old.value() is QUANTIZATION_VERSION",
            "small numbers are single objects in CPython",
        ),
        (
            "if old.type is ValueType.UINT32 and old.value() == ftype.id:",
            "if old.type is ValueType.UINT32 and old.value() is ftype.id:",
            "small numbers are single objects in CPython",
        ),
        (
            "if len(records) == 1 and theirs:  # models quantized with the same imatrix carry the same keys",
            "if len(records) <= 1 and theirs:  # models quantized with the same imatrix carry the same keys",
            "without records there are no makers, and so no keys of theirs",
        ),
    ),
    f"{_EXECUTE}/output_digests.py": (
        (
            "return max(0, min(place.length, self.ends.get(place.index, 0) - place.offset))",
            "return max(0, min(place.length, self.ends.get(place.index, -1) - place.offset))",
            "below 0 is 0",
        ),
        (
            "while self._left and self._left[0].index == index and self._take(fd, grown):",
            "while self._left and self._left[0].index is index and self._take(fd, grown):",
            "ranges of one output share the number; else the file would only be opened once more",
        ),
    ),
    f"{_EXECUTE}/consume_journal.py": (
        (
            "_require(data.startswith(_MAGIC) and length <= len(data))",
            "_require(data.startswith(_MAGIC) and length < len(data))",
            "the text stands behind the magic, so one of that length fails its digest",
        ),
        *(
            (
                "copied, complete = _parse_lines(data[end + _DIGEST + 1 :], "
                'len(content["sources"]), len(content["outputs"]))',
                f"copied, complete = _parse_lines(data[end + _DIGEST {rest} :], "
                'len(content["sources"]), len(content["outputs"]))',
                "the digest, or its end, reads as a line that is no record",
            )
            for rest in ("% 1", "- 1", "* 1", "// 1", "& 1", ">> 1", "** 1", "| 1", "^ 1", "+ 0")
        ),
    ),
    f"{_EXECUTE}/consume_state.py": (
        (
            "if status.st_size > output.size:",
            "if status.st_size >= output.size:",
            "equal sizes do not come here",
        ),
    ),
    f"{_EXECUTE}/fill.py": (
        (
            "error.filename = str(path if len(parts) == 1 else path.parent)",
            "error.filename = str(path if len(parts) <= 1 else path.parent)",
            "there is at least one part",
        ),
    ),
    f"{_EXECUTE}/publishing/set_journal.py": (
        (
            "if journal.suffix != PART:",
            "if journal.suffix is not PART:",
            "a journal to write has one of the two constants",
        ),
    ),
    f"{_EXECUTE}/run.py": (
        (
            "if is_streamed(opened[0].output):",
            "if is_streamed(opened[ -1].output):",
            "a streamed output is written alone",
        ),
    ),
    f"{_EXECUTE}/preflight.py": (
        *(
            (
                "if free is None or needed <= free:",
                f"if free is None or needed {sign} free:",
                "what fits is looked at once more below, without the shared bytes",
            )
            for sign in ("is", "==", "<")
        ),
    ),
    f"{_EXECUTE}/resume.py": (
        *(
            (
                "while at < len(ranges) and ranges[at][1] <= here:",
                f"while at < len(ranges) and ranges[at][1] {sign} here:",
                "ranges that are not skipped here take nothing from the copy below; it only takes longer",
            )
            for sign in ("is", "==", "<")
        ),
    ),
    f"{_EXECUTE}/copying.py": (
        *(
            (
                "self._parallelism = max((source.parallelism for source in sources), default=1)",
                f"self._parallelism = max((source.parallelism for source in sources), default= {number})",
                "without sources there are no segments, and so no threads",
            )
            for number in (0, 2)
        ),
        (
            "worth = (copy.extent.offset - copy.offset) % grid == 0 and length >= least",
            "worth = (copy.extent.offset ^ copy.offset) % grid == 0 and length >= least",
            "the grid is a power of two",
        ),
        (
            "worth = (copy.extent.offset - copy.offset) % grid == 0 and length >= least",
            "worth = (copy.extent.offset - copy.offset) % grid <= 0 and length >= least",
            "a remainder is not negative",
        ),
    ),
}

# `None` and the members of an enum are single objects without an `__eq__` of their own.
_SINGLE = re.compile(r" (is not|is) (?=None\b|[A-Z]\w+\.[A-Z])")


# The bare `*` of a signature: cosmic-ray takes it for a product. Calls that name their arguments work either way.
_BARE_STAR = re.compile(r"\*(?=,)")


def is_equivalent(module: str, old: str, new: str) -> bool:
    """Whether the change of one line of `module` changes no behaviour."""
    old, new = _spaced(old), _spaced(new)
    if new in _with_equality(old) or (new != old and new == _BARE_STAR.sub("/", old)):
        return True
    return any((_spaced(line), _spaced(other)) == (old, new) for line, other, _ in EQUIVALENT.get(module, ()))


def _with_equality(line: str) -> Iterator[str]:
    for found in _SINGLE.finditer(line):
        sign = "==" if found[1] == "is" else "!="
        yield f"{line[: found.start()]} {sign} {line[found.end() :]}"


def _spaced(line: str) -> str:
    return " ".join(line.split())
