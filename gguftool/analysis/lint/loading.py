"""Ask an engine itself: load a model's skeleton there, and turn the outcome into a finding.

The finding is joined to the rule that explains it: one that found something about a tensor or a key that the engine
names, or about the meaning of the engine's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gguftool.analysis.lint.rules import ENGINE_CODES, Finding, Severity
from gguftool.engines.load import Outcome, Verdict, load
from gguftool.engines.probe import LoadEngine, find_engine, require_linux
from gguftool.engines.skeleton import SkeletonFile, scratch_folder
from gguftool.model.model import ModelFile
from gguftool.record import record

E01, E02, E03, E04 = ENGINE_CODES
_CODES = {Verdict.REFUSED: E01, Verdict.CRASHED: E02, Verdict.EXCEEDED: E03, Verdict.UNUSABLE: E04}
_WORDS = {Verdict.REFUSED: "refuses it", Verdict.CRASHED: "crashes", Verdict.EXCEEDED: "exceeds its limits"}
_WAYS_OUT = {
    E01: "no rule explains it; gguftool dump shows what the engine's message names",
    E02: "no rule explains it; a newer release of the engine may refuse it with a message",
    E03: "load it there yourself with more memory or time, or try a newer release",
    E04: "nothing was learned about the model; run the program yourself: its libraries, device or options are wrong",
}
_NAMED = re.compile(r"'([^'\s]{3,})'|\"([^\"\s]{3,})\"")
_DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.[\w-]+)+")  # a key or a tensor without quotes
# Words of loaders that name neither a tensor nor a key, and the rules about their meaning.
_MEANINGS = (
    (re.compile(r"\boffset\b", re.I), ("S08", "S09")),
    (re.compile(r"too long", re.I), ("S10",)),
    (re.compile(r"(?:ggml|tensor|quantization) type", re.I), ("T01", "T02", "T03")),
    (re.compile(r"\bsplits?\b|\bshards?\b", re.I), ("H01", "F20", "F21", "F22", "F23", "F24", "F25", "F26")),
    (re.compile(r"version", re.I), ("P01",)),
    (re.compile(r"alignment|GGML_PAD", re.I), ("S09",)),
    (re.compile(r"wrong number of tensors|tensor count", re.I), ("S11", "A03")),
    (re.compile(r"unknown model architecture"), ("K01",)),
    (re.compile(r"unknown (?:pre-)?tokenizer"), ("V01",)),
    (re.compile(r"id_to_token\.size\(\) == token_to_id"), ("V03",)),
    (re.compile(r"n_expert|n_group"), ("K05",)),
)


@record
class LoadReport:
    """What an engine did with a model's skeleton; docs/lint.md lists the words of `verdict`."""

    engine: str
    verdict: str
    tokens: int
    seconds: float
    anonymous_bytes: int


def load_in(
    name: str, files: Sequence[ModelFile], tokens: int, findings: Iterable[Finding]
) -> tuple[LoadReport, tuple[Finding, ...], str]:
    """Load the skeleton of `files` in the engine `name`, and have it generate `tokens`.

    Returns the report, its finding if the engine did not accept the model, and the engine if it judged the model.
    Raises `PlanError` if `name` is not an engine, `ExecuteError` if it cannot run or the skeleton cannot be made.
    """
    require_linux(name)
    with scratch_folder() as folder:
        engine = find_engine(name, folder, tokens=tokens)
        outcome = load(engine, [_skeleton(file) for file in files], folder, tokens=tokens)
    report = LoadReport(
        engine=engine.title,
        verdict=outcome.verdict.value,
        tokens=tokens,
        seconds=round(outcome.seconds, 3),
        anonymous_bytes=outcome.anonymous,
    )
    found = () if outcome.is_good else (finding_of(engine, outcome, findings, files[0].source.name),)
    return report, found, "" if outcome.verdict is Verdict.UNUSABLE else engine.engine


def _skeleton(file: ModelFile) -> SkeletonFile:
    source = file.source
    head = source.read_at(0, min(file.header.data_offset, source.size))
    return SkeletonFile(head=head, size=source.size, shard=file.shard)


def finding_of(engine: LoadEngine, outcome: Outcome, findings: Iterable[Finding], file: str = "") -> Finding:
    """Make the finding about a bad outcome, joined to the one of `findings` that explains it.

    `file` is the name of the file that the engine got.
    """
    code = _CODES[outcome.verdict]
    said = " | ".join(outcome.lines)
    what = f"{_WORDS[outcome.verdict]} ({outcome.how})" if outcome.verdict in _WORDS else outcome.how
    cause = None if code == E04 else explanation(outcome.lines, findings)
    explained = f"{cause.code} explains it{f': {cause.way_out}' if cause.way_out else ''}" if cause else ""
    return Finding(
        code=code,
        severity=Severity.ERROR,
        message=f"{what}: {said}" if said else what,
        where=engine.title,
        tensors=cause.tensors if cause else (),
        way_out=explained or _WAYS_OUT[code],
        engines=() if code == E04 else (engine.engine,),
        command=cause.command if cause else "",
        file=file,
    )


def explanation(lines: Sequence[str], findings: Iterable[Finding]) -> Finding | None:
    """Find what explains an engine's words: a finding about the same name, else one about their meaning."""
    errors = [each for each in findings if Severity.ERROR in (each.severity, each.severity_there)]
    text = " ".join(lines)
    names = {left or right for left, right in _NAMED.findall(text)} | set(_DOTTED.findall(text))
    for each in errors:
        if any(_is_about(each, name) for name in names):
            return each
    for meaning, codes in _MEANINGS:
        if meaning.search(text):
            return next((each for each in errors if each.code in codes), None)
    return None


def _is_about(finding: Finding, name: str) -> bool:
    if name in finding.tensors or (finding.where and name.startswith(f"{finding.where}.")):
        return True
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", finding.message) is not None
