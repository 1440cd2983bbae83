"""Rules about the vocabulary and the chat template, as loaders read them.

Sources: llama.cpp src/llama-vocab.cpp (llama_vocab::impl::load), common/jinja; the chat template is parsed, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from gguftool.analysis.lint.heads.hyperparameters import TOKENS, judged_by, per_engine
from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity
from gguftool.analysis.lint.target import LintTarget
from gguftool.errors import printable
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.engine_facts.heads import HeadFacts
from gguftool.format.kv import KV, ValueType, find_kv

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
SCORES, TYPES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
TEMPLATE = "tokenizer.chat_template"
_PAIRED: Final = ("gpt2", "hybriddna", "whitespace", "gemma4")  # tokenizers of byte pairs, which need merges
_NONE: Final = ("no_vocab", "none")
_ELEMENTS: Final = {
    TOKENS: ("STRING",),
    SCORES: ("FLOAT32", "INT32"),
    TYPES: ("INT32",),
    "tokenizer.ggml.suppress_tokens": ("INT32",),
}
# Hugging Face's own tags around an assistant's text: they change nothing.
_GENERATION: Final = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
MAX_TEMPLATE: Final = 1 << 20  # characters; the longest seen have some 20,000
_TAKE_OUT = "take the tokenizer of the original model: merge with --kv-from takes its metadata"


def _facts(target: LintTarget, engine: str) -> HeadFacts | None:
    """Find the facts if the model has its own vocabulary."""
    facts = judged_by(target, engine)
    return None if target.string(MODEL) in _NONE else facts


def _array(target: LintTarget, key: str) -> KV | None:
    kv = find_kv(target.kvs, key)
    return kv if kv is not None and kv.type is ValueType.ARRAY else None


@per_engine("V01", Severity.ERROR, way_out=_TAKE_OUT)
def unknown_tokenizer(target: LintTarget, engine: str) -> Iterator[Hit]:
    """The engine does not know the tokenizer or the pre-tokenizer that the metadata names."""
    facts = _facts(target, engine)
    if facts is None or (model := target.string(MODEL)) == "":
        return
    by = f"which {engine} {facts.release} does not know"
    if model not in facts.tokenizers:
        yield Hit(message=f"{MODEL} is '{printable(model, 80)}', {by}", where=MODEL, cause=MODEL)
    pre = target.string(PRE)
    if model in _PAIRED and model != "gemma4" and pre not in ("", *facts.pre_tokenizers):
        yield Hit(message=f"{PRE} is '{printable(pre, 80)}', {by}", where=PRE, cause=PRE)


@per_engine("V02", Severity.ERROR, way_out=_TAKE_OUT)
def vocabulary_not_whole(target: LintTarget, engine: str) -> Iterator[Hit]:
    """Tokens, scores, token types or merges are absent, of another type, or fewer than the tokens."""
    facts = _facts(target, engine)
    if facts is None:
        return
    model = target.string(MODEL)
    if model and find_kv(target.kvs, TOKENS) is None:
        yield Hit(message=f"{TOKENS} is absent", where=TOKENS)
    needs_merges = model in _PAIRED and (model == "gemma4" or target.string(PRE) != "kimi-k2")
    if needs_merges and find_kv(target.kvs, MERGES) is None:
        yield Hit(message=f"{MERGES} is absent; a {model} tokenizer needs it", where=MERGES)
    elements = _ELEMENTS | ({MERGES: ("STRING",)} if model in _PAIRED else {})
    for key, kinds in elements.items():
        kv = find_kv(target.kvs, key)
        if kv is not None and (kv.type is not ValueType.ARRAY or kv.element_type.name not in kinds):
            yield Hit(message=f"{key} is not an array of {' or '.join(kinds)}", where=key)
    yield from _lengths(target)


def _lengths(target: LintTarget) -> Iterator[Hit]:
    tokens = _array(target, TOKENS)
    for key in (SCORES, TYPES):
        kv = _array(target, key)
        if tokens is not None and kv is not None and kv.count < tokens.count:
            yield Hit(message=f"{key} has {kv.count:,} entries for {tokens.count:,} tokens", where=key)


@per_engine("V03", Severity.ERROR, way_out=_TAKE_OUT)
def token_twice(target: LintTarget, engine: str) -> Iterator[Hit]:
    """Two tokens have the same text: the engine aborts."""
    tokens = _array(target, TOKENS) if _facts(target, engine) is not None else None
    if tokens is None or tokens.element_type is not ValueType.STRING:
        return
    texts = [text or f"[EMPTY_{number}]" for number, text in enumerate(tokens.value())]
    if len(set(texts)) == len(texts):
        return
    first: dict[Any, int] = {}
    number, text = next((n, t) for n, t in enumerate(texts) if first.setdefault(t, n) != n)
    more = len(texts) - len(set(texts))
    message = f"tokens {first[text]:,} and {number:,} are both '{printable(text, 40)}'"
    yield Hit(message=f"{message} ({more:,} duplicates in all)", where=TOKENS)


@per_engine("V04", Severity.WARNING, way_out="edit --set-token sets a token of the vocabulary by its text")
def special_token_out_of_range(target: LintTarget, engine: str) -> Iterator[Hit]:
    """The id of a special token is beyond the vocabulary: the engine takes a default instead."""
    facts, tokens = _facts(target, engine), _array(target, TOKENS)
    if facts is None or tokens is None:
        return
    for key in facts.special_tokens:
        number = target.integer(key)
        if number is not None and not 0 <= number < tokens.count:
            yield Hit(message=f"{key} is {number:,}, but the vocabulary has {tokens.count:,} tokens", where=key)


@per_engine(
    "V05", Severity.ERROR, way_out="edit --set-file writes a template that parses, such as the original model's"
)
def template_not_parsed(target: LintTarget, engine: str) -> Iterator[Hit]:
    """The chat template has a syntax error: llama-server and programs built on it refuse the model."""
    if judged_by(target, engine) is None or not (text := target.string(TEMPLATE)):
        return
    if len(text) > MAX_TEMPLATE:
        raise CannotEvaluate(f"the template has {len(text):,} characters")
    if message := _syntax_error(text):
        severity = Severity.ERROR if engine == LLAMA_CPP else Severity.WARNING
        yield Hit(message=message, where=TEMPLATE, severity=severity)


@lru_cache(maxsize=1)  # both engines ask about one template, and a long one takes seconds
def _syntax_error(text: str) -> str:
    """Find the first syntax error of a chat template, with its line, or "".

    Raises `CannotEvaluate` if the template cannot be parsed. The template is never run.
    """
    try:
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise CannotEvaluate("jinja2 is not installed: pip install jinja2") from error
    environment = ImmutableSandboxedEnvironment(
        extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"], trim_blocks=True, lstrip_blocks=True
    )
    try:
        environment.parse(_GENERATION.sub("", text))
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {printable(str(error.message), 200)}"
    except RecursionError:
        raise CannotEvaluate("the template is nested too deeply to be parsed") from None
    except ValueError:  # Python converts no text of more than 4,300 digits
        raise CannotEvaluate("the template has a number of too many digits to be parsed") from None
    return ""
