"""--slow and --bench of `plan`: how much longer a byte of a type takes on a device."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from gguftool.cooking.devices import Device
from gguftool.cooking.mix import Slow
from gguftool.errors import did_you_mean, printable
from gguftool.format.ftypes import no_such_type
from gguftool.format.ggml import find_type
from gguftool.storage.sources.locate import open_source


def slow_types(slow: Sequence[str], bench: Sequence[str], devices: Sequence[Device]) -> tuple[Slow, ...]:
    """Read --slow and --bench; a type or a device that does not exist is a usage error."""
    found = (*map(_slow, slow), *(one for text in bench for one in _bench(text)))
    _check_slow(found, devices)
    return found


def _slow(text: str) -> Slow:
    where, _, number = text.rpartition("=")
    kind, _, device = where.partition("@")
    try:
        factor = float(number)
    except ValueError:
        factor = 0.0
    if not kind or not device or not 0 < factor < 1e6:
        raise typer.BadParameter(f"--slow takes TYPE@DEVICE=FACTOR such as q6_K@CPU=1.3, not '{printable(text, 80)}'")
    return Slow(type=kind, device=device, factor=factor)


def _bench(text: str) -> tuple[Slow, ...]:
    from gguftool.cooking.damage.suite_csv import MAX_FILE  # noqa: PLC0415 - only for --bench
    from gguftool.cooking.speeds import slowness_of  # noqa: PLC0415 - only for --bench

    device, _, name = text.partition("=")
    if not device or not name:
        raise typer.BadParameter(f"--bench takes DEVICE=FILE, not '{printable(text, 80)}'")
    source = open_source(name)
    return slowness_of(source.read_at(0, min(source.size, MAX_FILE + 1)), name, device)


def _check_slow(slow: Sequence[Slow], devices: Sequence[Device]) -> None:
    """Raise a usage error for a type or a device that does not exist: it would slow nothing down."""
    names = ["*", *(device.name for device in devices)]
    for one in slow:
        if one.type != "*" and find_type(one.type) is None:
            raise typer.BadParameter(f"--slow: {no_such_type(one.type)}")
        if devices and one.device not in names:
            raise typer.BadParameter(f"no --device is '{printable(one.device, 80)}'{did_you_mean(one.device, names)}")
