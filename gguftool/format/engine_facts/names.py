"""The names that an engine's release knows: architectures and tokenizers.

This is a part of the data of `heads.py`, which also has the requirements of each architecture and takes ten times as
long to read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from functools import cache
from typing import Any, Final

from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.record import record

_FILES: Final = {LLAMA_CPP: "llama.cpp.json", IK_LLAMA_CPP: "ik_llama.cpp.json"}


@record
class KnownNames:
    """The names that `engine` knows, its release and the release date."""

    engine: str
    release: str
    date: str
    architectures: Collection[str]
    tokenizers: Collection[str]
    pre_tokenizers: Collection[str]

    @property
    def shown(self) -> str:
        """The engine, its release and the release date, for people."""
        return f"{self.engine} {self.release} ({self.date})"


@cache
def engine_data(engine: str) -> dict[str, Any] | None:
    """The facts about `engine` as they are stored, or None if there are none."""
    if engine not in _FILES:
        return None
    loader: Any = __spec__.loader  # works for a wheel in a zip file, too; importlib.resources takes as long as the JSON
    data: dict[str, Any] = json.loads(loader.get_data(os.path.join(os.path.dirname(__file__), _FILES[engine])))
    return data


@cache
def known_names(engine: str) -> KnownNames | None:
    """The names that `engine` knows, or None if they are unknown."""
    data = engine_data(engine)
    if data is None:
        return None
    vocabulary = data["vocabulary"]
    return KnownNames(
        engine=engine,
        release=data["release"],
        date=data["date"],
        architectures=data["architectures"].keys(),
        tokenizers=frozenset(vocabulary["models"]),
        pre_tokenizers=frozenset(vocabulary["pre"]),
    )
