"""The log of an engine: which lines tell what went wrong, and what does not reach a report."""

from __future__ import annotations

import pytest

from gguftool.engines.log import Log


def errors(text: str) -> tuple[str, ...]:
    log = Log()
    log.add(text.encode())
    return log.errors()


def test_the_cause_is_shown_once_without_timestamps() -> None:
    text = (
        "0.00.003.249 I llama_completion: load the model\n"
        "0.00.003.901 E llama_model_load: error loading model: tensor 'a' not found\n"
        "0.00.003.921 E llama_model_load_from_file_impl: failed to load model\n"
        "0.00.004.287 E llama_model_load: error loading model: tensor 'a' not found\n"
        "0.00.004.294 E llama_completion: error: unable to create context\n"
    )
    assert errors(text) == ("llama_model_load: error loading model: tensor 'a' not found",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llama_model_load: error loading model: bad\nmain: error: unable to load model", "bad"),
        ("/src/ggml.c:12: GGML_ASSERT(a == b) failed\nAborted (core dumped)", "GGML_ASSERT(a == b) failed"),
        ("terminate called after throwing an instance of 'x'\n  what():  out of range", "what():  out of range"),
        ("error: unknown argument: --no-such", "unknown argument: --no-such"),
        ("x: error while loading shared libraries: liba.so", "liba.so"),
        (
            "0.00.000.001 E gguf_init: tensor 'a' has invalid ggml type 144\n"
            "0.00.000.002 E llama_model_load: error loading model: llama_model_loader: failed to load model from x",
            "tensor 'a' has invalid ggml type 144",
        ),
        ("0.01.000.000 E cmn  failed to load model 'x'", "failed to load model 'x'"),
    ],
)
def test_the_best_line_comes_first(text: str, expected: str) -> None:
    assert errors(text)[0].endswith(expected)


def test_what_is_no_error_is_left_out() -> None:
    text = "0.00.001.000 W load: control token is not marked as EOG, error?\n0.00.001.000 I failed: 0\nloading\n"
    assert errors(text) == ()


def test_nothing_in_a_line_acts_on_a_terminal() -> None:
    (line,) = errors("\x1b[31merror: \x1b]0;title\x07 name\u202e\n")
    assert line.isprintable()
    assert line.startswith("error: \\x1b]0;title\\x07")


def test_of_a_flood_the_start_and_the_end_are_kept() -> None:
    log = Log()
    log.add(b"error: first\n")
    for _ in range(40):
        log.add(b"noise\n" * 50_000)
    log.add(b"error: last\n")
    assert log.errors() == ("error: first", "error: last")
    assert log.nbytes > 12_000_000
    assert len(log.text()) < 2_000_000
