"""Who lacks native quantizers learns what to install on this very machine."""

from __future__ import annotations

import pytest

from gguftool.surgery.quantize.native_wheels import Machine, how_to_install, this_machine


def machine(system: str, processor: str, *, is_glibc: bool = False, python: tuple[int, int] = (3, 13)) -> Machine:
    return Machine(system=system, machine=processor, is_glibc=is_glibc, python=python)


WITH_A_WHEEL = (
    machine("Linux", "x86_64", is_glibc=True, python=(3, 10)),
    machine("Darwin", "arm64"),
    machine("Darwin", "x86_64"),
    machine("Windows", "amd64"),
)
WITHOUT = {
    "Linux with musl": machine("Linux", "x86_64"),
    "Linux on aarch64": machine("Linux", "aarch64", is_glibc=True),
    "Python 3.14": machine("Darwin", "arm64", python=(3, 14)),
}


@pytest.mark.parametrize("here", WITH_A_WHEEL, ids=lambda here: f"{here.system} {here.machine}")
def test_where_libgguf_has_a_wheel_it_is_named(here: Machine) -> None:
    assert how_to_install(here) == "pip install libgguf"


@pytest.mark.parametrize("reason", WITHOUT)
def test_elsewhere_xllamacpp_is_named_with_the_reason(reason: str) -> None:
    assert how_to_install(WITHOUT[reason]) == f"pip install xllamacpp (libgguf has no wheel for {reason})"


@pytest.mark.parametrize(
    "here", [machine("Windows", "arm64"), machine("Linux", "riscv64", is_glibc=True), machine("Linux", "s390x")]
)
def test_where_neither_has_one_a_compiler_is_named(here: Machine) -> None:
    words = how_to_install(here)
    assert words.startswith(f"pip install libgguf (no wheel for {here.system} ")
    assert "C++ compiler" in words


def test_this_machine_is_described() -> None:
    assert this_machine().machine == this_machine().machine.lower() != ""
    assert this_machine().system in {"Linux", "Darwin", "Windows"}
