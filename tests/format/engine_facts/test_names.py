"""The names that engines know are those of the whole facts about them."""

from __future__ import annotations

import pytest

from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.engine_facts.names import known_names


@pytest.mark.parametrize("engine", ENGINES)
def test_the_names_are_those_of_the_facts_about_heads(engine: str) -> None:
    names, facts = known_names(engine), head_facts(engine)
    assert names is not None
    assert facts is not None
    assert set(names.architectures) == set(facts.architectures)
    assert (names.tokenizers, names.pre_tokenizers) == (facts.tokenizers, facts.pre_tokenizers)
    assert (names.shown, names.release) == (facts.shown, facts.release)


def test_an_engine_that_nobody_read_has_no_names() -> None:
    assert known_names("nonsense") is None
