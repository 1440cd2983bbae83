"""Tensor types: the table against the reference data, the oracle and real files."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from gguftool.format.engine_facts.engines import ENGINES as ENGINES_BY_NAME
from gguftool.format.engine_facts.other_meanings import other_meanings
from gguftool.format.ggml import (
    TYPES,
    Formula,
    find_type,
    layout_nbytes,
    nbytes,
    nearest_types,
    type_alias,
    type_name,
)
from gguftool.format.quants.repacks import REPACKS
from gguftool.format.quants.types import LOOKUPS
from gguftool.model.opening import open_model
from tests.support.paths import FIXTURES

ENGINES = {"mainline": "llama.cpp", "ik": "ik_llama.cpp"}
FORMULAS = {"std": Formula.STD, "i2_s": Formula.I2_S, "tl2": Formula.TL2}


@cache
def reference() -> list[dict[str, Any]]:
    return json.loads((FIXTURES / "engines" / "ggml-types.json").read_text())  # type: ignore[no-any-return]


def test_every_primary_type_of_the_reference_is_in_the_table_and_right() -> None:
    wrong = {}
    for row in reference():
        if not row["primary"] or row["status"] not in ("live", "activation", "runtime-only"):
            continue
        traits = TYPES.get(row["id"])
        if traits is None:
            if row["in_files"]:
                wrong[row["id"]] = "is not in the table"
            continue
        ours = (
            traits.name,
            traits.block_size,
            traits.type_size,
            traits.row_meta_size,
            traits.interleaved_rows,
            traits.formula,
            traits.in_files,
            traits.needs_imatrix,
            traits.repack_of,
        )
        theirs = (
            row["name"],
            row["block_size"],
            row["type_size"],
            row["row_meta_size"],
            row["interleaved_rows"],
            FORMULAS[row["size_formula"]],
            row["in_files"],
            row["needs_imatrix"] is True,
            tuple(row["repack_sources"]),
        )
        if ours != theirs:
            wrong[row["id"]] = (ours, theirs)
    assert not wrong


def test_the_table_holds_no_type_that_the_reference_lacks() -> None:
    known = {row["id"] for row in reference() if row["primary"]}
    assert set(TYPES) <= known


def test_engines_are_those_that_load_the_type() -> None:
    for row in reference():
        traits = TYPES.get(row["id"])
        if traits is None or not row["primary"] or not row["in_files"]:
            continue
        loads = {ENGINES[engine] for engine in ENGINES if row[f"{engine}_loads"]}
        assert set(traits.engines) == loads, traits.name


def test_every_spelling_of_the_reference_finds_its_type() -> None:
    for row in reference():
        if row["primary"] and row["in_files"]:
            for spelling in (row["name"], row["alias"], *row["aliases"], *row["cli_name"].values()):
                found = find_type(spelling)
                assert found is not None, spelling
                assert found.id == row["id"], spelling


def test_every_other_holder_of_an_id_is_listed() -> None:
    others = [(row["id"], row["name"]) for row in reference() if not row["primary"] and row["in_files"]]
    missing = [(number, name) for number, name in others if name not in {m.name for m in other_meanings(number)}]
    assert len(others) > 50
    assert not missing


def test_the_types_said_to_be_decoded_here_have_a_decoder() -> None:
    """A base type of itself is a type that is taken apart and then looked up."""
    decoded = {way: {t.name for t in TYPES.values() if t.decoded_by == way} for way in ("lookup", "repack")}
    assert decoded["repack"] == set(REPACKS)
    assert decoded["lookup"] == set(LOOKUPS) - {name for name, repack in REPACKS.items() if repack.base == name}


def test_only_plain_numbers_have_a_dtype() -> None:
    import numpy as np

    for traits in TYPES.values():
        assert bool(traits.dtype) is (traits.decoded_by == "numpy"), traits.name
        assert not traits.dtype or np.dtype(traits.dtype).itemsize == traits.type_size, traits.name


def test_repacked_types_are_of_the_kind_and_size_of_what_they_are_made_of() -> None:
    for traits in TYPES.values():
        for base in filter(None, map(find_type, traits.repack_of)):
            assert (traits.kind, traits.block_size) == (base.kind, base.block_size), traits.name


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("integer", {"I8", "I16", "I32", "I64"}),
        ("float", {"F16", "F32", "F64", "BF16", "BF16_R16"}),
        ("fp4", {"MXFP4", "MXFP4_R8", "NVFP4"}),
        ("ternary", {"TQ1_0", "TQ2_0", "I2_S", "IQ1_BN", "IQ2_BN", "IQ2_BN_R4"}),
        ("trellis", {"IQ1_KT", "IQ2_KT", "IQ3_KT", "IQ4_KT"}),
    ],
)
def test_kinds(kind: str, names: set[str]) -> None:
    assert {traits.name for traits in TYPES.values() if traits.kind == kind} == names


def test_no_type_is_of_an_engine_that_is_not_in_the_table_of_engines() -> None:
    assert {engine for traits in TYPES.values() for engine in traits.engines} == set(ENGINES_BY_NAME)


def test_sizes_agree_with_gguf_py_where_it_is_right() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    ours = {
        t.value: (TYPES[t.value].block_size, TYPES[t.value].type_size) for t in GGML_QUANT_SIZES if t.value in TYPES
    }
    theirs = {t.value: size for t, size in GGML_QUANT_SIZES.items() if t.value in TYPES}
    assert len(theirs) > 25
    # PyPI gguf gives Q8_1 40 bytes; block_q8_1 in ggml-common.h is two halves and 32 bytes: 36.
    theirs.pop(GGMLQuantizationType.Q8_1.value)
    assert ours.pop(GGMLQuantizationType.Q8_1.value) == (32, 36)
    assert ours == theirs


@pytest.mark.parametrize("name", ["zoo-ik", "zoo-ml", "zoo-f32-ik", "zoo-f32-ml"])
def test_every_tensor_of_the_zoo_takes_the_room_its_type_says(name: str) -> None:
    model = open_model(FIXTURES / "engines" / "zoo" / f"{name}.gguf")
    header = model.files[0].header
    infos = sorted(header.tensors, key=lambda info: info.offset)
    ends = [info.offset for info in infos[1:]] + [model.files[0].source.size - header.data_offset]
    wrong = [
        (info.name, type_name(info.type))
        for info, end in zip(infos, ends, strict=True)
        if (size := nbytes(info.type, info.dims)) is None or -(-size // 32) * 32 != end - info.offset
    ]
    assert not wrong
    assert len(infos) > 20


@pytest.mark.parametrize(
    ("kind", "dims", "expected"),
    [
        (0, (), 4),
        (0, (3, 5), 60),
        (8, (64, 3), 204),
        (8, (33, 3), None),
        (8, (0, 3), 0),
        (144, (512, 3, 2), 6 * (4 + 2 * 136)),
        (151, (32, 7), 7 * (8 + 32)),
        (398, (32, 8), 8 * (4 + 32)),
        (36, (128, 4), 128 + 32),
        (999, (32,), None),
    ],
)
def test_nbytes(kind: int, dims: tuple[int, ...], expected: int | None) -> None:
    assert nbytes(kind, dims) == expected


def test_bitnet_lookup_table_types_have_their_own_formulas() -> None:
    layouts = {other.name: other for type_id in (38, 39) for other in other_meanings(type_id)}
    assert layout_nbytes(layouts["TL1"], (512, 4)) == 512 * 4 // 4 + 32
    # (ne0-256)*ne1/3*5/8 = 240, 256*ne1/2*4/8 = 192; 432 rounded up to 32 is 448
    assert layout_nbytes(layouts["TL2"], (640, 3)) == 240 + 192 + 16 + 32


def test_no_size_is_made_up_for_a_claim_whose_layout_nobody_published() -> None:
    unknown = [other for other in other_meanings(201) if other.type_size == 0]
    assert unknown
    assert layout_nbytes(unknown[0], (32, 1)) is None


def test_an_unknown_id_has_a_name_but_no_size() -> None:
    assert (type_name(156_000), type_alias(156_000), nbytes(156_000, (1,))) == ("type#156000", "type#156000", None)


@pytest.mark.parametrize(
    ("name", "alias"), [("Q4_K", "q4_K"), ("IQ4_KS", "iq4_ks"), ("Q8_KV", "q8_KV"), ("F32", "f32")]
)
def test_aliases_are_what_recipes_write(name: str, alias: str) -> None:
    found = find_type(name)
    assert found is not None
    assert found.alias == alias


def test_names_are_found_in_any_case_and_near_ones_are_offered() -> None:
    assert find_type(" Iq4-kS ") is TYPES[144]
    assert find_type("iq3_xs") is None
    assert {"IQ3_S", "IQ3_KS"} & {traits.name for traits in nearest_types("iq3_xs")}
    assert nearest_types("zzzzzz") == ()
