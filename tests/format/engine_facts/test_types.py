"""The engine rules against the reference facts they were made from."""

from __future__ import annotations

import json

import pytest

from gguftool.format.engine_facts.engines import BOTH, IK_LLAMA_CPP
from gguftool.format.engine_facts.types import THROWS, UNCHECKED, ImatrixPolicy, type_facts, type_facts_of, written_type
from gguftool.format.ggml import TYPES
from tests.support.paths import FIXTURES

_FALLBACKS = {"THROWS": THROWS, "NOT CHECKED": UNCHECKED}
_POLICIES = {
    True: ImatrixPolicy.YES,
    False: ImatrixPolicy.NO,
    None: ImatrixPolicy.NO,
    "ftype Q2_K_S only": ImatrixPolicy.SMALL,
}


def _records() -> list[dict]:
    records = json.loads((FIXTURES / "engines" / "ggml-types.json").read_text())
    return [record for record in records if record["primary"] and record["status"] != "activation"]


def test_every_type_of_a_file_has_rules_that_agree_with_the_reference() -> None:
    for record in _records():
        rules, traits = type_facts(record["id"]), TYPES[record["id"]]
        assert rules is not None, record["name"]
        rows = record["ik_kernel_ne1_multiple"] or {}
        assert rules.kernel_ne0 == (record["ik_kernel_ne0_multiple"] or traits.block_size), record["name"]
        assert rules.kernel_ne1 == rows.get("other", traits.interleaved_rows), record["name"]
        assert rules.avx512_ne1 == rows.get("avx512", traits.interleaved_rows), record["name"]
        assert rules.row_fallback == record["row_fallback"], record["name"]
        wanted = {
            engine: _FALLBACKS.get(name, name)
            for engine, name in zip(BOTH, record["ne0_fallback"].values(), strict=True)
            if name is not None
        }
        assert rules.ne0_fallback == wanted, record["name"]
        cpu = record["ik_cpu_kernel"] or {}
        assert rules.cpu == tuple(name for name in ("x86", "arm") if cpu.get(name)), record["name"]
        cuda = record["ik_cuda"] or {"mul_mat": False, "mmq": False}
        assert (rules.cuda, rules.mmq) == (cuda["mul_mat"], cuda["mmq"]), record["name"]
        usable = record["token_embd_ok"].values()
        assert rules.no_token_embd == tuple(e for e, ok in zip(BOTH, usable, strict=True) if ok is False)
        if "ik" in record["cli_name"]:
            assert traits.spelling(IK_LLAMA_CPP) == record["cli_name"]["ik"]


def test_imatrix_policies_agree_with_the_reference() -> None:
    for record in _records():
        rules, facts = type_facts(record["id"]), record["imatrix"]
        for engine, key in zip(BOTH, ("mainline_llama_quantize", "ik_llama_quantize"), strict=True):
            wanted = ImatrixPolicy.ASSERTED if facts["hard_assert"] else _POLICIES[facts[key]]
            assert rules.imatrix_policy(engine) is wanted, (record["name"], engine)


def test_a_type_without_rules_has_none() -> None:
    assert type_facts(99_999) is None
    assert type_facts(9) is None  # Q8_1 is an activation type
    assert type_facts_of("no such type") is None
    with pytest.raises(LookupError):
        written_type("no such type", 256, "llama.cpp")


@pytest.mark.parametrize(
    ("name", "ne0", "engine", "written"),
    [
        ("Q4_K", 512, "llama.cpp", "Q4_K"),
        ("Q2_K", 576, "llama.cpp", "Q4_0"),
        ("Q2_K", 576, "ik_llama.cpp", "IQ4_NL"),
        ("Q5_K", 576, "llama.cpp", "Q5_1"),
        ("q5_K", 576, "ik_llama.cpp", "Q6_0"),
        ("Q6_K", 100, "llama.cpp", "F16"),
        ("Q6_K", 100, "ik_llama.cpp", UNCHECKED),
        ("Q8_0", 100, "llama.cpp", "F16"),
        ("Q8_0", 100, "ik_llama.cpp", UNCHECKED),
        ("NVFP4", 100, "llama.cpp", THROWS),
        ("IQ2_BN", 100, "ik_llama.cpp", THROWS),
    ],
)
def test_written_type(name: str, ne0: int, engine: str, written: str | None) -> None:
    assert written_type(name, ne0, engine) == written
