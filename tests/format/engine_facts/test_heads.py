"""What engines ask of heads: the data, and the little language of its conditions."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from gguftool.format.engine_facts.engines import BOTH, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.heads import HeadFacts, evaluate, head_facts


def facts(engine: str) -> HeadFacts:
    found = head_facts(engine)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n * 2 + 1", 7),
        ("7 // n % 2", 0),
        ("1 if n > 2 else unknown", 1),
        ("n == 0 and unknown", 0),  # false, whatever the other is
        ("n == 3 or unknown", 1),
        ("n == 3 and unknown", None),
        ("not unknown", None),
        ("n // (n - 3)", None),
        ("?", None),
        ("__import__('os')", None),
        ("n.real", None),
        ("-n", -3),
    ],
)
def test_an_expression_is_computed_or_not_known(text: str, value: int | None) -> None:
    assert evaluate(text, {"n": 3}.get) == value


@pytest.mark.parametrize("engine", BOTH)
def test_facts_have_a_release_and_a_date(engine: str) -> None:
    assert re.fullmatch(r"b[0-9]{5}|[0-9a-f]{8}", facts(engine).release)
    assert re.match(r"20[0-9]{2}-[0-9]{2}", facts(engine).date)
    assert facts(engine).shown.startswith(f"{engine} {facts(engine).release} (")


def test_nobody_has_read_a_third_engine() -> None:
    assert head_facts("ollama") is None


@pytest.mark.parametrize(("engine", "unread"), [(LLAMA_CPP, 5), (IK_LLAMA_CPP, 7)])
def test_few_architectures_were_not_understood(engine: str, unread: int) -> None:
    assert sum(not each.complete for each in facts(engine).architectures.values()) <= unread


def test_every_architecture_of_gguf_py_is_known_to_llama_cpp() -> None:
    import gguf

    names = set(gguf.MODEL_ARCH_NAMES.values()) - {"mmproj", "gptj"}  # gptj has a name there, and no code
    assert names - set(facts(LLAMA_CPP).architectures) == set()


def test_what_is_required_is_in_the_lists_of_gguf_py() -> None:
    """gguf-py lists the tensors that converters write: what an engine cannot do without must be among them."""
    import gguf

    listed = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if arch in gguf.MODEL_TENSORS}
    compared = 0
    for name, arch in listed.items():
        if name not in facts(LLAMA_CPP).architectures:
            continue
        known = {re.sub(r"\{\w+\}", "%d", gguf.TENSOR_NAMES[tensor]) for tensor in gguf.MODEL_TENSORS[arch]}
        for fact in facts(LLAMA_CPP).architectures[name].tensors:
            always = fact.flags == "0" and all(condition.startswith("i >= ") for condition in fact.conditions)
            if always and not fact.fused:
                assert fact.name.rpartition(".")[0] in known or fact.name in known, (name, fact.name)
                compared += 1
    assert compared > 500


def test_dump_does_not_load_the_facts() -> None:
    script = "import sys, gguftool.cli.commands.dump; print([m for m in sys.modules if 'engine_facts.heads' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
