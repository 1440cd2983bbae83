"""Driving llama-perplexity: what it prints is parsed or refused, and what it saves is checked."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from gguftool.engines.llama_perplexity import (
    Estimate,
    LogitsHead,
    PerplexityRun,
    StoppedError,
    compare_logits,
    engine_build,
    find_perplexity,
    parse_comparison,
    read_logits_head,
    save_logits,
    scored_tokens,
)
from gguftool.errors import ExecuteError, FormatError, PlanError
from tests.support.engine_tools import tool
from tests.support.fake_perplexity import make_fake, table
from tests.support.measure_cases import MODEL

# As llama.cpp b11434 prints it, with a log line between.
OUTPUT = """\
0.00.527.376 I kl_divergence: computing over 2 chunks, n_ctx=512, batch_size=2048, n_seq=4

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1      44.6664 ±    8.6773      -0.00120 ±    0.00002       0.00486 ±    0.00031     0.100 ±  0.010 %     97.255 ±  1.025 %
   2      34.8441 ±    4.7544       0.00100 ±    0.00001       0.00455 ±    0.00077     0.101 ±  0.010 %     96.078 ±  0.860 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  35.375998 ±   4.836145
Mean PPL(base)                :  34.844048 ±   4.754351
Cor(ln(PPL(Q)), ln(PPL(base))): 100.00%
Mean ln(PPL(Q)/PPL(base))     :   0.015151 ±   0.004190
Mean PPL(Q)/PPL(base)         :   1.015267 ±   0.004250
Mean PPL(Q)-PPL(base)         :   0.531950 ±   0.155000

====== KL divergence statistics ======
Mean    KLD:   0.004554 ±   0.000769
Maximum KLD:   0.120042
99.9%   KLD:   0.100037
Median  KLD:   0.001001
Minimum KLD:  -0.000048

====== Token probability statistics ======
Mean    Δp:  0.000 ± 0.000 %
RMS Δp    :  0.101 ± 0.010 %
Same top p: 96.078 ± 0.860 %
"""  # noqa: E501


def test_all_that_is_printed_is_parsed() -> None:
    found = parse_comparison(OUTPUT, "p")
    assert found.kld == Estimate(value=0.004554, error=0.000769)
    assert found.same_top.value == pytest.approx(0.96078)
    assert found.same_top.error == pytest.approx(0.0086)
    assert found.ppl == Estimate(value=35.375998, error=4.836145)
    assert found.base_ppl == Estimate(value=34.844048, error=4.754351)
    assert found.ppl_ratio == Estimate(value=1.015267, error=0.00425)
    assert found.running == (0.00486, 0.00455)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Mean    KLD:   0.004554", "Mean    KLD:        nan", "NaN or infinities"),
        ("Mean    KLD:   0.004554", "Mean    KLD:       -nan", "NaN or infinities"),
        ("±   0.000769", "±        inf", "NaN or infinities"),
        ("Mean    KLD:   0.004554", "Mean    KLD:  -0.004554", "never negative"),
        ("Same top p: 96.078", "Same top p: 196.078", "196.078 %"),
        ("PPL(base)                :  34.844048", "PPL(base)                :   0.000000", "not positive"),
        ("Mean    KLD:   0.004554", "Mean KLDD", "no 'kld' statistics"),
    ],
)
def test_numbers_that_cannot_be_are_refused(old: str, new: str, message: str) -> None:
    assert OUTPUT.count(old) == 1
    with pytest.raises(ExecuteError, match=message):
        parse_comparison(OUTPUT.replace(old, new), "p")


@pytest.mark.parametrize("output", ["", "\x1b[2J\x07 hello", OUTPUT[: len(OUTPUT) // 2]])
def test_garbage_is_named_without_what_a_terminal_acts_on(output: str) -> None:
    with pytest.raises(ExecuteError, match="its last line") as caught:
        parse_comparison(output, "p")
    assert str(caught.value).isprintable()


def test_the_error_of_a_ratio_that_is_none_is_zero() -> None:
    # llama.cpp prints this for a model against itself: the root of a tiny negative difference
    found = parse_comparison(OUTPUT.replace("1.015267 ±   0.004250", "1.000000 ±      -nan"), "p")
    assert found.ppl_ratio == Estimate(value=1, error=0)


def test_rows_that_a_log_cuts_are_left_out() -> None:
    assert parse_comparison(OUTPUT.replace("   2      34.8441", "   2 hello 34.8441"), "p").running == (0.00486,)
    assert parse_comparison(OUTPUT.replace("   1      44.6664", "   3      44.6664"), "p").running == ()


def test_the_size_of_saved_logits() -> None:
    # measured: SmolLM2, 2 chunks of 512 tokens, llama.cpp b11434
    assert LogitsHead(context=512, vocabulary=49152, chunks=2).nbytes == 50_143_236
    assert scored_tokens(512) == 255


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"_logits_",
        b"GGUF" + bytes(40),
        struct.pack("<8sIii", b"_logits_", 128, 272, 1) + bytes(10),
        struct.pack("<8sIii", b"_logits_", 128, -272, 1),
        struct.pack("<8sIii", b"_logits_", 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF),
    ],
)
def test_damaged_logits_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "logits"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        read_logits_head(path)


def run_of(folder: Path, mode: str = "ok", **options: object) -> PerplexityRun:
    engine = find_perplexity(str(make_fake(folder, mode)), folder)
    return PerplexityRun(engine=engine, context=128, chunks=2, **options)  # type: ignore[arg-type]


def saved(folder: Path) -> Path:
    text, logits = folder / "text.txt", folder / "logits"
    text.write_bytes(b"word " * 100)
    assert save_logits(run_of(folder), MODEL, text, logits).value == 20
    return logits


def changed(folder: Path) -> Path:
    model = folder / "changed.gguf"
    model.write_bytes(MODEL.read_bytes()[:-256] + b"\1" * 256)
    return model


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("crash", "ended with 134; it said: ggml.c:1: GGML_ASSERT"),
        ("garbage", "perplexity on Mars"),
        ("silent", "nothing"),
        ("nan", "NaN"),
    ],
)
def test_an_engine_that_fails_is_named_with_what_it_said(tmp_path: Path, mode: str, message: str) -> None:
    logits = saved(tmp_path)
    with pytest.raises(ExecuteError, match=message) as caught:
        compare_logits(run_of(tmp_path, mode), changed(tmp_path), logits)
    assert str(tmp_path / "llama-perplexity") in str(caught.value)


def test_ik_llama_cpp_tells_of_how_many_chunks_the_perplexity_is(tmp_path: Path) -> None:
    text, logits = tmp_path / "text.txt", tmp_path / "logits"
    text.write_bytes(b"word " * 100)
    run = run_of(tmp_path, "ik")
    assert run.engine.engine == "ik_llama.cpp"
    assert save_logits(run, MODEL, text, logits) == Estimate(value=20.0, error=0.5)
    assert compare_logits(run, changed(tmp_path), logits).kld.value > 0


def test_a_run_that_lost_its_last_lines_is_repeated(tmp_path: Path) -> None:
    logits = saved(tmp_path)
    assert compare_logits(run_of(tmp_path, "forgetful"), MODEL, logits).kld.value == 0
    assert (tmp_path / "runs").read_text() == "3"
    with pytest.raises(ExecuteError, match="printed no 'ppl' statistics"):
        compare_logits(run_of(tmp_path, "lost"), MODEL, logits)


def test_a_complaint_counts_although_the_engine_ends_well(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"too short")
    with pytest.raises(ExecuteError, match="complains: you need at least 256 tokens"):
        save_logits(run_of(tmp_path), MODEL, tmp_path / "text.txt", tmp_path / "logits")


def test_an_engine_that_hangs_is_stopped(tmp_path: Path) -> None:
    logits, model = saved(tmp_path), changed(tmp_path)
    with pytest.raises(ExecuteError, match="stopped after 1 s; --timeout"):
        compare_logits(run_of(tmp_path, "hang", seconds=1.0), model, logits)
    with pytest.raises(StoppedError):
        compare_logits(run_of(tmp_path, "hang", stopped=lambda: True), model, logits)


def test_only_llama_perplexity_is_driven(tmp_path: Path) -> None:
    other = make_fake(tmp_path).rename(tmp_path / "llama-cli")
    with pytest.raises(PlanError, match="llama-perplexity of the same build"):
        find_perplexity(str(other), tmp_path)


def test_the_build_changes_with_the_program(tmp_path: Path) -> None:
    first = engine_build(run_of(tmp_path, "ok").engine)
    assert first.startswith("llama.cpp 7 (fake) sha256:")
    assert engine_build(run_of(tmp_path, "ok").engine) == first
    assert engine_build(run_of(tmp_path, "nan").engine) != first


def test_the_table_of_the_fake_is_one_of_the_real_program() -> None:
    assert parse_comparison(table("0.001000", 3), "p").running == (0.001, 0.001, 0.001)


@pytest.mark.e2e
def test_the_real_program_saves_and_compares(tmp_path: Path) -> None:
    engine = find_perplexity(str(tool("llama-perplexity")), tmp_path)
    run = PerplexityRun(engine=engine, context=128, chunks=2)
    text, logits = tmp_path / "text.txt", tmp_path / "logits"
    text.write_bytes(b"It was a bright cold day in April. " * 20)
    ppl = save_logits(run, MODEL, text, logits)
    assert read_logits_head(logits) == LogitsHead(context=128, vocabulary=272, chunks=2)
    same, other = compare_logits(run, MODEL, logits), compare_logits(run, changed(tmp_path), logits)
    assert abs(same.kld.value) <= 2e-6
    assert same.base_ppl.value == pytest.approx(ppl.value, rel=1e-3)
    assert other.base_ppl == same.base_ppl
    assert other.kld.value > 1e-5
    assert len(other.running) == 2
    # The complaint itself may be among the lines that the program loses at its end.
    text.write_bytes(b"short")
    with pytest.raises(ExecuteError, match=r"complains: you need at least 256 tokens|printed no perplexity"):
        save_logits(run, MODEL, text, tmp_path / "other")
    logits.write_bytes(logits.read_bytes()[:-1000])
    with pytest.raises(ExecuteError, match=r"complains: failed reading log-probs|printed no"):
        compare_logits(run, MODEL, logits)
