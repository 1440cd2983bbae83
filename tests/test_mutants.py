"""Of a random sample of mutants, tests notice nine of ten (`-m soak`; docs/testing.md says how to read the rate)."""

from __future__ import annotations

import importlib.util
import os

import pytest

from tests.support.equivalent_mutants import EQUIVALENT, is_equivalent
from tests.support.mutants import TESTS, Mutant, Outcome, mutants_of, run
from tests.support.paths import REPO

needs_cosmic_ray = pytest.mark.skipif(
    importlib.util.find_spec("cosmic_ray") is None, reason="no cosmic-ray: .venv/bin/pip install -e '.[mutation]'"
)


def test_the_modules_and_their_tests_are_there() -> None:
    for module, tests in TESTS.items():
        for path in (module, *tests):
            assert (REPO / path).is_file(), path


def test_the_rate_and_its_bound() -> None:
    mutant = Mutant(module="m", code="", change="")
    outcome = Outcome(tried=100, survivors=(mutant,) * 8)
    assert outcome.rate == 0.92
    assert 0.85 < outcome.lower_bound < 0.86
    assert Outcome(tried=10, survivors=()).lower_bound < Outcome(tried=1000, survivors=()).lower_bound < 1


def test_equivalent_mutants_are_changes_of_todays_code() -> None:
    for module, changes in EQUIVALENT.items():
        lines = [line.strip() for line in (REPO / module).read_text().splitlines()]
        for old, new, _ in changes:
            assert old in lines, (module, old)
            assert is_equivalent(module, old, new)
            assert not is_equivalent(module, new, old)


def test_identity_of_none_and_of_enums_alone_is_equality() -> None:
    assert is_equivalent("m", "if a is None or b is not Kind.ONE:", "if a == None or b is not Kind.ONE:")
    assert is_equivalent("m", "if a is None or b is not Kind.ONE:", "if a is None or b != Kind.ONE:")
    assert not is_equivalent("m", "if a is None:", "if a != None:")
    assert not is_equivalent("m", "if a is b:", "if a == b:")


def test_the_bare_star_of_a_signature_is_no_product() -> None:
    assert is_equivalent("m", "def f(a: int, *, b: int) -> int:", "def f(a: int, /, b: int) -> int:")
    assert not is_equivalent("m", "return a * b, 1", "return a / b, 1")


@needs_cosmic_ray
def test_mutants_differ_from_the_code_and_are_the_same_for_one_seed() -> None:
    module = "gguftool/surgery/metadata.py"
    code = (REPO / module).read_text()
    first = mutants_of(module, 5, 1)
    assert len({mutant.code for mutant in first} - {code}) == 5
    assert all(mutant.change for mutant in first)
    assert first == mutants_of(module, 5, 1) != mutants_of(module, 5, 2)


@pytest.mark.soak
@pytest.mark.slow
@needs_cosmic_ray
def test_nine_of_ten_mutants_are_noticed() -> None:
    """GGUFTOOL_MUTANTS is how many of each module are tried, GGUFTOOL_MUTANTS_SEED which."""
    size, seed = (
        int(os.environ.get(name, default)) for name, default in (("GGUFTOOL_MUTANTS", 6), ("GGUFTOOL_MUTANTS_SEED", 0))
    )
    tried, survivors = 0, []
    for mutant, noticed in run(mutant for module in TESTS for mutant in mutants_of(module, size, seed)):
        tried += 1
        if not noticed:
            survivors.append(mutant)
    outcome = Outcome(tried=tried, survivors=tuple(survivors))
    changes = "\n\n".join(f"{mutant.module}\n{mutant.change}" for mutant in survivors)
    assert outcome.rate >= 0.9, f"{outcome.rate:.1%} of {tried}, not noticed:\n{changes}"
