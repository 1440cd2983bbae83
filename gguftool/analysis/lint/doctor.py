"""The doctor: says what a file is if it should be a GGUF but cannot be read as one.

It compares the first bytes with tables of signatures, and judges a file that no table knows by its name and by how far
the head parses. It reads at most a few kilobytes, whatever the size of the file; but it reads a file that may end
inside its head whole, up to `MAX_REPARSE`.

The causes are collected from bug reports of llama.cpp, Ollama, Hugging Face's viewer and others.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
from collections.abc import Sequence

from gguftool.analysis.lint.rules import Finding, Severity, names_in_words
from gguftool.analysis.lint.target import TensorView, out_of_file
from gguftool.analysis.lint.way_out import command_in
from gguftool.errors import (
    FormatError,
    GGUFToolError,
    LimitError,
    SourceError,
    command_line,
    printable,
    without_secrets,
)
from gguftool.format.cursor import NeedMoreData
from gguftool.format.header import MAGIC, parse, round_up
from gguftool.format.imatrix import legacy_start
from gguftool.model.model import ModelFile
from gguftool.record import record, replace
from gguftool.storage.sources.locate import is_local_folder, is_url, siblings
from gguftool.storage.sources.source import RemoteSource, Source

HEAD_READ = 4096
SAMPLES = 8  # places to sample in the data after a zeroed head
SAMPLE_READ = 512
MAX_REPARSE = 64 << 20  # bytes; larger files are not read whole to distinguish a cut head from a damaged one
MAX_REFETCH = 4 << 20  # the same for a remote file
FIRST_SHOWN = 64  # bytes of a remote file, which may be a server's message
PARTS_LISTED = 99

# Codes for files that are not a readable GGUF; docs/lint.md has a section for each.
DIAGNOSES = {
    "N01": "there is no such file, or it cannot be read",
    "N02": "a folder without GGUF files",
    "N03": "an empty file",
    "N04": "a git-lfs pointer",
    "N05": "a web page",
    "N06": "a server's error message",
    "N07": "a zeroed head: the write or download was interrupted",
    "N08": "a part of a file that was split by bytes",
    "N09": "truncated",
    "N10": "a model file from before GGUF",
    "N11": "another kind of file",
    "N12": "an importance matrix in the old format",
    "N13": "an unknown GGUF version",
    "N14": "a damaged head",
    "N15": "neither a GGUF nor any known kind of file",
    "N16": "more than gguftool reads",
}


@record
class Signature:
    """The bytes at an offset that identify a kind of file."""

    magic: bytes
    kind: str
    way_out: str
    offset: int = 0


_UNPACK = "unpack it first"
_TORCH = "it needs conversion: convert_hf_to_gguf.py of llama.cpp"
_OLD = "convert it with ik_llama.cpp's convert_llama_ggml_to_gguf.py, or fetch a GGUF of the model"

_ANCIENT = tuple(
    Signature(magic=magic[::step], kind=kind, way_out=_OLD)
    for step in (1, -1)
    for magic, kind in (
        (b"lmgg", "GGML, unversioned, of early 2023"),
        (b"fmgg", "GGMF, of March 2023"),
        (b"tjgg", "GGJT, of April to August 2023"),
        (b"algg", "GGLA, a LoRA adapter of 2023"),
    )
)

_OTHERS = (
    Signature(magic=b"\x1f\x8b", kind="gzip", way_out=f"{_UNPACK}: gunzip"),
    Signature(magic=b"\x28\xb5\x2f\xfd", kind="zstd (like Thireus' .zbst)", way_out=f"{_UNPACK}: zstd -d"),
    Signature(magic=b"BZh", kind="bzip2", way_out=f"{_UNPACK}: bunzip2 or lbzip2 -d"),
    Signature(magic=b"\xfd7zXZ\0", kind="xz", way_out=f"{_UNPACK}: unxz"),
    Signature(magic=b"7z\xbc\xaf\x27\x1c", kind="7-Zip", way_out=f"{_UNPACK}: 7z x"),
    Signature(magic=b"Rar!", kind="RAR", way_out=f"{_UNPACK}: unrar x"),
    Signature(magic=b"PK\x03\x04", kind="zip, or a zipped PyTorch checkpoint", way_out=f"{_UNPACK}; else {_TORCH}"),
    Signature(magic=b"MZ", kind="a llamafile or another program", way_out="unzip -l shows whether a .gguf is inside"),
    Signature(magic=b"\x7fELF", kind="a Linux program", way_out="fetch the model itself"),
    Signature(magic=b"\x80\x02", kind="a Python pickle", way_out=f"loading it runs code; {_TORCH}"),
    Signature(magic=b"\x89HDF", kind="HDF5", way_out=_TORCH),
    Signature(magic=b"\x93NUMPY", kind="a numpy array", way_out="fetch the model itself"),
    Signature(magic=b"%PDF", kind="a PDF", way_out="fetch the model itself"),
    Signature(magic=b"ustar", kind="tar", way_out=f"{_UNPACK}: tar xf", offset=257),
)

_LINK_OUT = "fetch it by its /resolve/ link (not /blob/), or: hf download ORG/REPO FILE"
_PAGES = (b"<!do", b"<html", b"<head", b"<body")
_MESSAGES = (
    (b"entry not found", "the repository has no such file; look at its list of files"),
    (b"repository not found", "the name is wrong, or the repository is private: hf auth login"),
    (b"invalid username", "the token was refused: hf auth login"),
    (b"access to model", "the model is gated: accept its terms on its page, then hf auth login"),
    (b"unauthorized", "a token is needed: hf auth login"),
    (b"forbidden", "the link has expired or a token is needed"),
    (b"not found", "the address is wrong"),
    (b"<?xml", "the link has expired: fetch the file again"),
    (b'{"error', "fetch the file again"),
    (b'{"message', "fetch the file again"),
)

# Names of parts: the stem, then the number or letters that give the order.
_PARTS = (
    re.compile(
        r"(?P<stem>.+?)[.-]part[-_.]?(?P<number>[0-9]{1,5})(?:[-_]?of[-_]?[0-9]{1,5})?", re.IGNORECASE | re.DOTALL
    ),
    re.compile(
        r"(?P<stem>.+\.gguf)[.-](?:part|split)[-_.]?(?P<number>[a-z]{1,3}|[0-9]{1,5})", re.IGNORECASE | re.DOTALL
    ),
    re.compile(r"(?P<stem>.+\.gguf)\.?(?P<number>a[a-z]|[0-9]{2,5})", re.IGNORECASE | re.DOTALL),
)


# --- entry points ----------------------------------------------------------------------------------------------------


def diagnose_absent(name: str, error: SourceError) -> Finding:
    """Diagnose a path that could not be opened as one or more files."""
    if is_url(name):
        return _finding(
            "N01", without_secrets(name), error.message, "check the address; the message shows what the server sent"
        )
    if is_local_folder(name):
        inside = _entries(name)
        parts = [entry for entry in inside if _part_of(entry)]
        if parts:
            return _finding(
                "N02", os.path.join(name, parts[0]), "it holds parts of files", _cat(name, parts[0], inside)
            )
        few = ", ".join(printable(entry, 80) for entry in inside[:5])
        return _finding(
            "N02",
            name,
            f"it holds {len(inside)} other files: {few}" if inside else "it holds no files",
            "name the folder or file of the model",
        )
    folder, base = os.path.split(name)
    if not os.path.lexists(name):
        entries = _entries(folder or ".")
        parts = [entry for entry in entries if (part := _part_of(entry)) and _output(part["stem"]) == base]
        if parts:
            return _finding("N08", name, "only its parts exist", _cat(folder, parts[0], entries))
        stem = base.removesuffix(".gguf")
        shards = [entry for entry in entries if stem and entry.startswith(f"{stem}-00001-of-")]
        if shards:
            return _finding("N01", name, error.message, f"name the set's first shard: {printable(shards[0])}")
    return _finding("N01", name, error.message, "check the path and its permissions")


def diagnose_unreadable(source: Source, error: GGUFToolError) -> Finding:
    """Diagnose a file with a head that does not parse; for a remote file, add the server's answer."""
    found = _diagnose(source, error)
    if not isinstance(source, RemoteSource) or isinstance(error, SourceError):
        return found
    first = printable(source.read_at(0, min(FIRST_SHOWN, source.size)).decode("latin-1"), 8 * FIRST_SHOWN)
    answer = f"the server's answer: {source.answer}; the first {FIRST_SHOWN} bytes: '{first}'"
    return replace(found, message=f"{found.message}; {answer}")


def _diagnose(source: Source, error: GGUFToolError) -> Finding:
    if isinstance(error, SourceError):
        return _finding("N01", source.name, str(error.message), "")
    if source.size == 0:
        return _finding(
            "N03", source.name, "0 bytes", "the download failed, or it was named as output by mistake: fetch it again"
        )
    head = source.read_at(0, min(HEAD_READ, source.size))
    for look in (_pointer, _server_text, _part, _ancient, _zeroed, _other, _old_imatrix, _bad_head):
        found = look(source, head, error)
        if found is not None:
            return found
    shown = printable(head[:16].decode("latin-1"))
    return _finding("N15", source.name, f"the first bytes are '{shown}', expected 'GGUF'", "fetch the file again")


def diagnose_truncation(file: ModelFile, tensors: tuple[TensorView, ...]) -> Finding | None:
    """Diagnose a file that has a sound head but lacks data of its `tensors`; return None if it has all data."""
    hit = out_of_file(tensors)
    if not hit:
        return None
    size, needed = file.source.size, max(t.start + (t.nbytes or 0) for t in tensors)
    likely = file.header.data_offset + sum(round_up(t.nbytes or 0, t.alignment) for t in tensors)
    names = tuple(tensor.name for tensor in hit)
    if needed > 2 * likely + (1 << 20):
        message = f"{_lies(hit)} at offset {needed:,} of a file of {size:,} bytes: the offset is damaged"
        return _finding("N14", file.source.name, message, "fetch or make the file again", names)
    message = f"{needed - size:,} of {needed:,} bytes are missing, from {_lies(hit)} of {len(tensors):,}"
    part = _part_of(os.path.basename(file.source.name))
    if part:
        folder, base = os.path.split(file.source.name)
        return _finding(
            "N08", file.source.name, f"the first part: {message}", _cat(folder, base, _entries(folder or ".")), names
        )
    way_out = "resume the download (hf download, curl -C -), or copy it again; compare the size with the publisher's"
    return _finding("N09", file.source.name, message, way_out, names)


def _lies(hit: Sequence[TensorView]) -> str:
    return f"{len(hit):,} tensor(s)"


def _finding(code: str, name: str, message: str, way_out: str, tensors: tuple[str, ...] = ()) -> Finding:
    names = f" ({names_in_words(tensors)})" if tensors else ""
    return Finding(
        code=code,
        severity=Severity.ERROR,
        message=f"{DIAGNOSES[code]}: {message}{names}",
        where=printable(name, 4096),
        tensors=tensors,
        way_out=way_out,
        command=command_in(way_out),
        file=name,
    )


# --- what the first bytes say ----------------------------------------------------------------------------------------


def _pointer(source: Source, head: bytes, _: GGUFToolError) -> Finding | None:
    if not head.startswith(b"version https://git-lfs"):
        return None
    text = head.decode("utf-8", "replace")
    oid = re.search(r"^oid sha256:([0-9a-f]{64})\s*$", text, re.MULTILINE)
    size = re.search(r"^size ([0-9]{1,18})\s*$", text, re.MULTILINE)
    message = f"the file itself has {int(size[1]):,} bytes" if size else "without a size"
    message += f", sha256 {oid[1]}" if oid else ", without a sha256"
    base = shlex.quote(printable(os.path.basename(source.name)))
    return _finding("N04", source.name, message, f"git lfs pull --include {base}, or: hf download ORG/REPO {base}")


def _server_text(source: Source, head: bytes, _: GGUFToolError) -> Finding | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    start = text[:64].lower()
    shown = printable(text[:80].decode("utf-8", "replace").replace("\n", " "))
    if start.startswith(_PAGES):
        return _finding("N05", source.name, f"'{shown}'", _LINK_OUT)
    if head[:4] == MAGIC or not start.isascii() or b"\0" in text[:64]:
        return None
    for words, way_out in _MESSAGES:
        if start.startswith(words) or ((words.isalpha() or b" " in words) and words in start):
            return _finding("N06", source.name, f"'{shown}'", way_out)
    return None


def _ancient(source: Source, head: bytes, _: GGUFToolError) -> Finding | None:
    return _by_signature("N10", _ANCIENT, source, head)


def _other(source: Source, head: bytes, _: GGUFToolError) -> Finding | None:
    if head[8:10] == b'{"' and 2 <= struct.unpack("<Q", head[:8])[0] <= source.size - 8:
        return _finding("N11", source.name, "safetensors", _TORCH)
    return _by_signature("N11", _OTHERS, source, head)


def _by_signature(code: str, table: Sequence[Signature], source: Source, head: bytes) -> Finding | None:
    for sign in table:
        if head[sign.offset : sign.offset + len(sign.magic)] == sign.magic:
            return _finding(code, source.name, sign.kind, sign.way_out)
    return None


def _zeroed(source: Source, head: bytes, _: GGUFToolError) -> Finding | None:
    only_magic = head[:4] == MAGIC and not any(head[4:24])
    if any(head[:24]) and not only_magic:
        return None
    places = [source.size * at // (SAMPLES + 1) for at in range(1, SAMPLES + 1)]
    filled = sum(any(source.read_at(at, min(SAMPLE_READ, source.size - at))) for at in places)
    what = "only the magic is there" if only_magic else "the first bytes are zero"
    message = f"{what}; after that there is data at {filled} of {SAMPLES} sampled places"
    way_out = "fetch or make it again: writers put the head last, so the write did not finish"
    if filled:
        way_out += "; the data may be whole, and the head of a file with the same model and types would fit"
    return _finding("N07", source.name, message, way_out)


def _old_imatrix(source: Source, head: bytes, _: GGUFToolError) -> Finding | None:
    start = legacy_start(head)
    if start is None:
        return None
    message = f"{start[0]:,} entries, the first for {printable(start[1])}"
    command = command_line("imatrix", "show", source.name)
    way_out = f"{command} shows what is in it; llama-quantize takes it with --imatrix"
    return _finding("N12", source.name, message, way_out)


def _bad_head(source: Source, head: bytes, error: GGUFToolError) -> Finding | None:
    if head[:4] != MAGIC:
        return None
    if error.where == "version":
        return _finding("N13", source.name, error.message, "update gguftool, or fetch the file again")
    place = f"{error.where}, offset {error.offset:,}" if error.offset is not None else f"{error.where}"
    if _is_cut(source):
        message = f"the file of {source.size:,} bytes ends inside its head ({place})"
        return _finding("N09", source.name, message, "resume the download, or copy it again")
    if isinstance(error, LimitError):
        way_out = "this is a limit of gguftool, and the file may be sound; if its sha256 is right, please report it"
        return _finding("N16", source.name, f"{place}: {error.message}", way_out)
    return _finding("N14", source.name, f"{place}: {error.message}", "fetch the file again, and compare its sha256")


def _is_cut(source: Source) -> bool:
    """Whether the file ends inside its head."""
    if source.size > (MAX_REFETCH if source.is_remote else MAX_REPARSE):
        return False
    try:
        parse(source.read_at(0, source.size), 1 << 62)
    except NeedMoreData:
        return True
    except FormatError:
        pass
    return False


# --- parts -----------------------------------------------------------------------------------------------------------


def _part_of(base: str) -> re.Match[str] | None:
    return next((match for pattern in _PARTS if (match := pattern.fullmatch(base))), None)


def _part(source: Source, head: bytes, _: GGUFToolError) -> Finding | None:
    folder, base = os.path.split(source.name)
    part = _part_of(base)
    if part is None or _by_signature("N11", _OTHERS, source, head):
        return None
    entries = _entries(folder or ".")
    first = "" if head[:4] == MAGIC else "it does not start with GGUF, like any part but the first; "
    return _finding("N08", source.name, f"{first}part {part['number']}", _cat(folder, base, entries))


def _cat(folder: str, base: str, entries: Sequence[str]) -> str:
    """Write the command that joins `base` and the other parts, in order."""
    wanted = _part_of(base)
    stem = wanted["stem"] if wanted else base
    parts = [(part["number"], entry) for entry in entries if (part := _part_of(entry)) and part["stem"] == stem]
    parts.sort(key=lambda part: (int(part[0]) if part[0].isdigit() else 0, len(part[0]), part[0]))
    fetch = "download all parts, then " if is_url(folder) else ""
    folder = "" if fetch else folder
    names = [shlex.quote(printable(os.path.join(folder, entry), 4096)) for _, entry in parts]
    shown = " ".join(names[:PARTS_LISTED]) + (" ..." if len(names) > PARTS_LISTED else "")
    output = shlex.quote(printable(os.path.join(folder, _output(stem)), 4096))
    return f"{fetch}put all parts together: cat {shown} > {output}"


def _output(stem: str) -> str:
    return stem if stem.lower().endswith(".gguf") else f"{stem}.gguf"


def _entries(folder: str) -> list[str]:
    """List the names of the visible files in a folder; empty if it cannot be listed."""
    try:
        return [os.path.basename(path) for path in siblings(os.path.join(folder, ""), "")]
    except SourceError:
        return []
