"""Run the command line in worker processes: runs wait for slow servers at the same time, and start up only once.

Every worker refuses connections other than loopback with an error: these tests must not reach other machines.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.loopback import refuse_other_hosts

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass(frozen=True)
class Run:
    """The result of one command."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


def pool(workers: int = 16) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare)


def _prepare() -> None:
    """Import in advance, so that start-up is not timed."""
    for module in ("gguftool.cli.app", "huggingface_hub", "urllib3", "numpy"):
        importlib.import_module(module)
    refuse_other_hosts()


def run_here(arguments: tuple[str, ...], environment: Mapping[str, str], folder: str) -> Run:
    """Run the command line in this process, with additional variables, in `folder`. For workers."""
    began = time.monotonic()
    with _environment(environment), _streams() as (out, err), _signals():
        os.chdir(folder)
        sys.argv = ["gguftool", *arguments]
        code = _code()
    return Run(code, _text(out), _text(err), time.monotonic() - began)


def _code() -> int:
    from gguftool.cli.main import main

    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    except BaseException as escaped:
        print(f"Traceback: {escaped!r} escaped", file=sys.stderr)
        return 1


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "backslashreplace")  # type: ignore[attr-defined]


@contextmanager
def _streams() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    before = sys.stdout, sys.stderr
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in PROXIES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
