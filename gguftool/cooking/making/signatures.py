"""Detached GPG signatures of published maps: ``tensors.map.sig`` next to a map, ``SHARD.gguf.sig`` next to shard 1.

An installed gpg checks them with the user's keys, or with a file of keys in a GPG home of its own; then nothing of the
user's is read or changed.  The result is read from gpg's status lines, which are made for programs.

Source: GnuPG, doc/DETAILS (status lines GOODSIG, BADSIG, ERRSIG, VALIDSIG, NO_PUBKEY).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from gguftool.errors import LimitError, PlanError, SourceError, printable
from gguftool.record import record
from gguftool.storage.sources.locate import can_list, open_source, siblings
from gguftool.storage.sources.source import AbsentError

_PROGRAM = "gpg"
_MAX_SIGNED = 256 << 20  # bytes; a map has 20 MB, and shard 1 holds a vocabulary
_MAX_SIGNATURE = 64 << 10
_MAX_KEYS = 4 << 20
_SECONDS = 60


class Signature(Enum):
    """The result of checking a signature."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "its key is not known"
    ABSENT = "not signed"
    UNCHECKED = "gpg is not installed"


@record
class Signed:
    """A file, the result for its signature, and the signer, if gpg names one."""

    name: str
    signature: Signature
    signer: str = ""


def check_signatures(names: Iterable[str], keys: str | None = None) -> tuple[Signed, ...]:
    """Check the signatures next to the files `names`, with the keys in the file `keys`, or the user's.

    Raises `SourceError` if files or keys cannot be read, `PlanError` if `keys` are given but gpg is not installed.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        if keys is not None:
            raise PlanError(f"needs gpg, which is not installed: {_PROGRAM}", source="--trusted-keys")
        return tuple(Signed(name=name, signature=Signature.UNCHECKED) for name in names)
    with tempfile.TemporaryDirectory(prefix="gguftool-gpg-") as folder:
        home = _home_with(program, keys, Path(folder)) if keys is not None else None
        return tuple(_check(program, name, Path(folder), home) for name in names)


def _home_with(program: str, keys: str, folder: Path) -> Path:
    """A new GPG home in `folder` with only the keys of the file `keys`."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    data = _read(keys, _MAX_KEYS)
    (folder / "keys").write_bytes(data)
    result = _run([program, "--homedir", str(home), "--batch", "--quiet", "--import", str(folder / "keys")])
    if result.returncode:
        said = printable(result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])
        raise SourceError(f"holds no keys that gpg can read: {said}", source=keys)
    return home


def _check(program: str, name: str, folder: Path, home: Path | None) -> Signed:
    signature = f"{name}.sig"
    if can_list(name) and signature not in siblings(name, ".sig"):
        return Signed(name=name, signature=Signature.ABSENT)
    try:
        data = _read(signature, _MAX_SIGNATURE)
    except AbsentError:
        return Signed(name=name, signature=Signature.ABSENT)
    signed, detached = folder / "signed", folder / "signed.sig"
    signed.write_bytes(_read(name, _MAX_SIGNED))
    detached.write_bytes(data)
    of = ["--homedir", str(home)] if home is not None else []
    verify = ["--batch", "--status-fd", "1", "--verify", str(detached), str(signed)]
    return _verdict(name, _run([program, *of, *verify]).stdout.decode("utf-8", "replace"))


def _verdict(name: str, status: str) -> Signed:
    """Read gpg's status lines: every signature must be good."""
    lines = [line.split(" ", 3)[1:] for line in status.splitlines() if line.startswith("[GNUPG:] ")]
    words = {line[0]: line for line in lines if line}
    signer = " ".join(words.get("GOODSIG", words.get("NO_PUBKEY", []))[1:])
    if "BADSIG" in words:
        return Signed(name=name, signature=Signature.BAD)
    if "GOODSIG" in words and "VALIDSIG" in words and not {"ERRSIG", "NO_PUBKEY"} & words.keys():
        return Signed(name=name, signature=Signature.GOOD, signer=printable(signer))
    if "NO_PUBKEY" in words or "EXPKEYSIG" in words or "REVKEYSIG" in words:
        return Signed(name=name, signature=Signature.UNKNOWN, signer=printable(signer))
    return Signed(name=name, signature=Signature.BAD)


def _run(words: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"cannot be run: {error}", source=words[0]) from error


def _read(name: str, most: int) -> bytes:
    source = open_source(name)
    if source.size > most:
        raise LimitError(f"has {source.size:,} bytes; gguftool reads at most {most:,} of such a file", source=name)
    return source.read_at(0, source.size)
