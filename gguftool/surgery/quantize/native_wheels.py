"""What to install for native quantizers: libgguf where it has a wheel, otherwise xllamacpp.

Source: what pip found for each system and Python on 2026-11-30 (libgguf 0.2.2, xllamacpp 0.2.13 and 2026.10). Without a
wheel pip builds from source, which needs a C++ compiler.
"""

from __future__ import annotations

import platform
import sys

from gguftool.record import record

_LIBGGUF = {"Linux": ("x86_64",), "Darwin": ("x86_64", "arm64"), "Windows": ("amd64",)}
_XLLAMACPP = {"Linux": ("x86_64", "aarch64"), "Darwin": ("x86_64", "arm64"), "Windows": ("amd64",)}  # glibc and musl
_NEWEST_PYTHON = (3, 13)  # the newest that libgguf has wheels for; xllamacpp has them for all


@record
class Machine:
    """The properties by which pip chooses wheels: `system` as `platform.system` names it, `python` as (3, 13)."""

    system: str
    machine: str
    is_glibc: bool
    python: tuple[int, int]


def this_machine() -> Machine:
    """The machine and Python that run this."""
    return Machine(
        system=platform.system(),
        machine=platform.machine().lower(),
        is_glibc=platform.libc_ver()[0] == "glibc",
        python=(sys.version_info[0], sys.version_info[1]),
    )


def how_to_install(here: Machine) -> str:
    """The command that installs native quantizers on `here`, with the reason if it is not the usual one."""
    lacking = _without_libgguf(here)
    if not lacking:
        return "pip install libgguf"
    if here.machine not in _XLLAMACPP.get(here.system, ()):
        return f"pip install libgguf (no wheel for {lacking}: pip needs a C++ compiler to build it)"
    return f"pip install xllamacpp (libgguf has no wheel for {lacking})"


def _without_libgguf(here: Machine) -> str:
    """Why libgguf has no wheel for `here`, or "" if it has one."""
    if here.system == "Linux" and not here.is_glibc:
        return "Linux with musl"
    if here.machine not in _LIBGGUF.get(here.system, ()):
        return f"{here.system} on {here.machine or 'this processor'}"
    if here.python > _NEWEST_PYTHON:
        return f"Python {here.python[0]}.{here.python[1]}"
    return ""
