"""File types against the reference data."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from gguftool.format import ftypes
from gguftool.format.ggml import find_type
from tests.support.paths import FIXTURES

ENGINES = {"mainline": "llama.cpp", "ik": "ik_llama.cpp"}


@cache
def reference() -> list[dict[str, Any]]:
    return json.loads((FIXTURES / "engines" / "ftypes.json").read_text())  # type: ignore[no-any-return]


def test_every_live_file_type_of_the_reference_has_its_name() -> None:
    wrong = [
        (row["id"], row["short"], ftypes.ftype_name(row["id"]))
        for row in reference()
        if row["status"] == "live" and row["short"] not in ftypes.ftype_name(row["id"]).split("/")
    ]
    assert not wrong


def test_the_majority_gives_the_file_type_that_the_engine_guesses() -> None:
    wrong = []
    for row in reference():
        for kind in row["guessed_from_majority_type"] or ():
            found = ftypes.ftype_of_majority(kind, ENGINES[row["engine"]])
            if row["status"] == "live" and (found is None or found.id != row["id"]):
                wrong.append((kind, row["engine"], row["id"], found))
    assert not wrong


def test_default_tensor_types_exist() -> None:
    for row in reference():
        for ftype in ftypes.find_ftypes(row["short"]):
            assert ftype.tensor_type == "" or find_type(ftype.tensor_type) is not None


@pytest.mark.parametrize(("number", "name"), [(15, "Q4_K_M"), (15 | 1024, "Q4_K_M"), (999, "ftype#999")])
def test_names(number: int, name: str) -> None:
    assert ftypes.ftype_name(number) == name


def test_a_file_type_is_no_tensor_type_of_the_same_name() -> None:
    (iq2_m,) = {ftype.tensor_type for ftype in ftypes.find_ftypes(" iq2_m ")}
    assert iq2_m == "IQ2_S"
    assert ftypes.find_ftypes("nonsense") == ()
    assert ftypes.ftype_of_majority("I32", "llama.cpp") is None
    mxfp4 = ftypes.ftype_of_majority("MXFP4", "llama.cpp")  # no engine's guess, but the only one of that type
    assert mxfp4 is not None
    assert mxfp4.id == 38
