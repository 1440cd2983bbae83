"""Lint rules: how to write, find and run one.

A rule is a code, one sentence and one function that looks at a `LintTarget` and yields a `Hit` for each problem. The
decorator `rule` registers it. Rules with engines are about loading and running there; rules without engines are about
the file itself. A rule that lacks data raises `CannotEvaluate` or yields `undecided`, and the report shows it: silence
means that the rule passed.

Where each code is:

    codes            module          about
    N01-N16          doctor          files that are not a readable GGUF; diagnoses, not rules
    F01-F19 F27      file            one file: sizes, offsets, padding, metadata, samples of data
    F20-F26 H01      shards          split sets: names, split keys, missing shards
    F28-F29          tensors_map     shards against the tensors.map files next to them
    P01-P04 S08-S11  loaders         what loaders accept: grammar, offsets, names, missing tensors
    H02-H03          loaders         general.file_type
    T01-T06          types           types that an engine does not know, cannot compute with, or knows in another layout
    S01-S07          types           shapes that a type or its kernel does not take
    B01-B04 Q01      types           types that an engine takes but that are a bad choice
    M01-M06          layers          tensors of one layer that should match
    M07-M09          scales          scales and the weights that they belong to
    D01-D04          layers          MLA attention
    G01-G03          layers          types on CUDA devices
    K01-K06          keys            metadata that loaders read: types, required keys, counts
    V01-V05          vocabulary      the tokenizer, its tokens, the chat template
    A01-A04          tensor_set      tensors that the architecture asks for, their dims, and surplus ones
    E01-E04          loading         what an engine did when it was asked; not rules

To add a rule: write the function in the module, its code in this table, a section in docs/lint.md with its title in
titles.py, and a case in tests/analysis/lint/test_rules.py. A new module is imported by check.py, which registers its
rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum

from gguftool.analysis.lint.target import LintTarget, TensorView
from gguftool.analysis.lint.titles import effect_of
from gguftool.analysis.lint.way_out import command_in, filled
from gguftool.errors import GGUFToolError, listed, printable
from gguftool.record import record, replace

_NAMES_SHOWN = 4
_HITS_KEPT = 100  # findings of one rule
# What an engine did: it refuses the model, crashes, exceeds its limits; or it is broken itself.
ENGINE_CODES = ("E01", "E02", "E03", "E04")


class Severity(IntEnum):
    """ERROR: the engine fails or computes garbage. WARNING: it is slower or fragile. INFO: good to know."""

    INFO = 0
    WARNING = 1
    ERROR = 2


@record
class Finding:
    """One problem: `where` is the place in words, `tensors` all names that it concerns, `way_out` what to do.

    `engines` are those that it is about, empty for the file itself. If the severity was lowered because another engine
    can run the file, `severity_there` is the severity for `engines`. `cause` is the key behind it, or "" if each tensor
    is a problem by itself. `command` is the one that fixes it, ready to paste, or "". `file` is the name of the file.
    """

    code: str
    severity: Severity
    message: str
    where: str
    tensors: tuple[str, ...] = ()
    way_out: str = ""
    engines: tuple[str, ...] = ()
    severity_there: Severity | None = None
    cause: str = ""
    command: str = ""
    file: str = ""

    @property
    def undecided(self) -> bool:
        """Whether the rule could not be evaluated."""
        return "could not be evaluated" in self.message


@record
class Hit:
    """A problem that a rule function found.

    `where` defaults to the tensors' names, `severity` and `way_out` to those of the rule. `cause` is the key behind it;
    reports join problems with one cause.
    """

    message: str
    tensors: tuple[str, ...] = ()
    where: str = ""
    severity: Severity | None = None
    way_out: str = ""
    cause: str = ""


class CannotEvaluate(Exception):
    """Raised by a rule that lacks data; the argument says which."""


Check = Callable[[LintTarget], Iterable[Hit]]


@record
class LintRule:
    """One rule; several may share a code if engines differ."""

    code: str
    severity: Severity
    sentence: str
    way_out: str
    engines: tuple[str, ...]
    check: Check


RULES: list[LintRule] = []


def rule(
    code: str, severity: Severity, *, way_out: str = "", engines: tuple[str, ...] = ()
) -> Callable[[Check], Check]:
    """Register the decorated function as a rule; the first line of its docstring is the rule's sentence."""

    def register(check: Check) -> Check:
        sentence = (check.__doc__ or "").partition("\n")[0]
        RULES.append(
            LintRule(code=code, severity=severity, sentence=sentence, way_out=way_out, engines=engines, check=check)
        )
        return check

    return register


def undecided(why: str, tensors: Iterable[str] = ()) -> Hit:
    """Make the hit of a rule that could not judge some tensors."""
    return Hit(message=f"could not be evaluated: {why}", tensors=tuple(tensors), severity=Severity.INFO)


def hits_by_message(tensors: Iterable[TensorView], describe: Callable[[TensorView], str]) -> Iterator[Hit]:
    """Yield one hit for each distinct description, with the names of all its tensors."""
    groups: dict[str, list[str]] = {}
    for tensor in tensors:
        groups.setdefault(describe(tensor), []).append(tensor.name)
    for message, names in groups.items():
        yield Hit(message=message, tensors=tuple(names))


def run_rules(target: LintTarget, engines: tuple[str, ...], rules: Iterable[LintRule]) -> tuple[Finding, ...]:
    """Run the rules without engines and those for one of `engines`; the worst findings come first.

    A rule that cannot read its data reports that it could not be evaluated. A rule that fails for any other reason is
    broken: this is reported as an error of its code, and the other rules still run.
    """
    findings: list[Finding] = []
    for each in rules:
        concerned = tuple(engine for engine in each.engines if engine in engines)
        if each.engines and not concerned:
            continue
        findings += (_finding(each, concerned, hit, target) for hit in _hits(each, target))
    return worst_first(_of_all_engines(findings))


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings: errors, warnings, info; in each, first crashes of an engine, then refusals, then the rest."""
    return tuple(sorted(findings, key=lambda finding: (-finding.severity, effect_of(finding.code))))


def _of_all_engines(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Join findings that differ only in the engine."""
    groups: dict[Finding, list[str]] = {}
    for finding in findings:
        groups.setdefault(replace(finding, engines=()), []).extend(finding.engines)
    yield from (replace(finding, engines=tuple(dict.fromkeys(engines))) for finding, engines in groups.items())


def _hits(each: LintRule, target: LintTarget) -> list[Hit]:
    try:
        return _merged(each.check(target))
    except CannotEvaluate as reason:
        return [undecided(str(reason))]
    except GGUFToolError as error:
        return [undecided(str(error))]
    except Exception as error:  # a bug in one rule must neither stay hidden nor stop the others
        text = f"{type(error).__name__}: {printable(str(error))}"
        message = f"could not be evaluated: this rule itself is broken ({text}); please report it"
        return [Hit(message=message, severity=Severity.ERROR)]


def _merged(hits: Iterable[Hit]) -> list[Hit]:
    """Join hits that differ only in their tensors; join all beyond a limit into one hit, so that reports stay short."""
    groups: dict[Hit, list[str]] = {}
    for hit in hits:
        groups.setdefault(replace(hit, tensors=()), []).extend(hit.tensors)
    merged = [replace(hit, tensors=tuple(names)) for hit, names in groups.items()]
    kept, rest = merged[:_HITS_KEPT], merged[_HITS_KEPT:]
    if rest:
        worst = max((hit.severity for hit in rest if hit.severity is not None), default=None)
        severity = None if any(hit.severity is None for hit in rest) else worst
        names = tuple(name for hit in rest for name in hit.tensors)
        kept.append(Hit(message=f"{len(rest):,} more findings of this kind", tensors=names, severity=severity))
    return kept


def _finding(each: LintRule, engines: tuple[str, ...], hit: Hit, target: LintTarget) -> Finding:
    severity = each.severity if hit.severity is None else hit.severity
    way_out = "" if "could not be evaluated" in hit.message else hit.way_out or filled(each.way_out, target)
    return Finding(
        code=each.code,
        severity=severity,
        message=hit.message,
        where=hit.where or names_in_words(hit.tensors),
        tensors=hit.tensors,
        way_out=way_out,
        engines=engines,
        cause=hit.cause,
        command=command_in(way_out),
        file=_file_of(hit, target),
    )


def _file_of(hit: Hit, target: LintTarget) -> str:
    """Name the file that a hit is in: the one that it names, else that of its first tensor or of the keys."""
    named = next((file.source.name for file in target.files if hit.where == printable(file.source.name, 4096)), None)
    first = target.by_name.get(hit.tensors[0]) if hit.tensors else None
    return named or target.files[first.file if first else 0].source.name


def names_in_words(names: tuple[str, ...]) -> str:
    """List the first few names, with their number if there are more."""
    if not names:
        return ""
    shown = listed([printable(name, 80) for name in names[:_NAMES_SHOWN]])
    return shown if len(names) <= _NAMES_SHOWN else f"{len(names):,} tensors: {shown} ..."


def judged(findings: Iterable[Finding], engines: tuple[str, ...]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Weigh findings if the user named no engine; return them and the engines that can run the file.

    An engine can run the file if no error is about it. A finding that is not about all such engines is lowered to INFO:
    the file still runs in one of them as it should. If no engine can run it, all findings stay as they are.
    """
    found = tuple(findings)
    broken = {engine for finding in found if finding.severity is Severity.ERROR for engine in finding.engines}
    able = tuple(engine for engine in engines if engine not in broken)
    if not able:
        return found, able
    weighed = (_lowered(finding) if not _decides(finding, able) else finding for finding in found)
    return worst_first(weighed), able


def _decides(finding: Finding, able: tuple[str, ...]) -> bool:
    return not finding.engines or set(able) <= set(finding.engines)


def _lowered(finding: Finding) -> Finding:
    if finding.severity is Severity.INFO:
        return finding
    return replace(finding, severity=Severity.INFO, severity_there=finding.severity)
