from __future__ import annotations

import pytest

from gguftool.analysis.placement import device_of, parse_rules
from gguftool.errors import PlanError


def placed(name: str, *options: str) -> str | None:
    rule = device_of(name, parse_rules(options))
    return rule.device if rule else None


def test_first_match_wins_and_the_search_is_unanchored() -> None:
    rules = ("exps=CPU", ".*=CUDA0")
    assert placed("blk.3.ffn_up_exps.weight", *rules) == "CPU"
    assert placed("blk.3.attn_q.weight", *rules) == "CUDA0"
    assert placed("blk.3.ffn_up_exps.weight", *reversed(rules)) == "CUDA0"
    assert placed("blk.3.attn_q.weight", "exps=CPU") is None


def test_one_option_may_hold_several_rules() -> None:
    assert placed("output.weight", "exps=CPU,^output=CUDA1") == "CUDA1"


def test_the_device_follows_the_first_equals_sign() -> None:
    (rule,) = parse_rules(["attn=CUDA0=x"])
    assert (rule.pattern, rule.device) == ("attn", "CUDA0=x")


def test_posix_classes_mean_what_std_regex_takes_them_for() -> None:
    rule = r"blk\.[[:digit:]]\.attn=CUDA0"
    assert placed("blk.3.attn_q.weight", rule) == "CUDA0"
    assert placed("blk.33.attn_q.weight", rule) is None
    assert placed("blk.d.attn_q.weight", rule) is None


def test_all_faulty_rules_are_named_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        parse_rules(["exps", "=CPU", "attn=", "(=CPU", "fine=CPU", "a\x1b[31m"])
    message = str(caught.value)
    assert all(part in message for part in ("'exps'", "'=CPU'", "'attn='", "'(' is not a regular expression"))
    assert "fine" not in message
    assert "\x1b" not in message
