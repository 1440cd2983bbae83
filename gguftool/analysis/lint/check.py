"""Check a model: whether it is a GGUF, is sound, and will run in an engine.

The doctor answers the first question, lint rules answer the others. A file that is not a readable GGUF ends the check:
without it, the rest of a set would be judged wrongly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

# Importing the rule modules registers their rules.
from gguftool.analysis.lint import file, layers, loaders, scales, shards, tensors_map, types
from gguftool.analysis.lint.doctor import DIAGNOSES, diagnose_absent, diagnose_truncation, diagnose_unreadable
from gguftool.analysis.lint.groups import FindingGroup, grouped
from gguftool.analysis.lint.heads import keys, tensor_set, vocabulary
from gguftool.analysis.lint.heads.hyperparameters import has_head
from gguftool.analysis.lint.rules import (
    ENGINE_CODES,
    RULES,
    Finding,
    LintRule,
    Severity,
    judged,
    run_rules,
    worst_first,
)
from gguftool.analysis.lint.target import LintTarget, target_of
from gguftool.analysis.placement import PlacementRule
from gguftool.errors import FormatError, PlanError, SourceError, listed, without_secrets
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.heads import head_facts
from gguftool.model.grouping import Group, Member, left_out, models_of
from gguftool.model.model import Model, ModelFile
from gguftool.model.opening import ModelLike, find_files, read_header
from gguftool.record import record, replace
from gguftool.storage.sources.locate import for_each
from gguftool.storage.sources.source import Source

if TYPE_CHECKING:
    from gguftool.analysis.lint.loading import LoadReport

_RULE_MODULES = (layers, loaders, tensors_map, shards, file, types, scales, keys, vocabulary, tensor_set)

_PARTS = {"K": "metadata", "V": "vocabulary", "A": "tensor names and dims"}  # by the letter of their rules
MAX_TOKENS = 50  # with the prompt they fit into the context of 64 tokens that engines are started with
_NOT_LOOKED = "remote, so only heads were read: F07 and F19 look into data; --data allows it"


@record
class CheckOptions:
    """What to look for; empty `engines` means both, and weighs findings (docs/lint.md).

    `select` and `ignore` hold codes or their beginnings (``S`` means all of S01 to S11). `load` names an engine to ask:
    xllamacpp or a program's path; it generates `run` tokens, at most `MAX_TOKENS`.
    """

    engines: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    places: tuple[PlacementRule, ...] = ()
    this_file_only: bool = False
    read_data: bool = False
    load: str = ""
    run: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.run <= MAX_TOKENS:
            raise PlanError(f"--run of {self.run:,} tokens: it must be 1 to {MAX_TOKENS}, or 0 to run nothing")
        if self.run and not self.load:
            raise PlanError("--run needs an engine to run it in: --load ENGINE")


@record
class CheckReport:
    """The result; `diagnoses` are about files that are not a readable GGUF: if there are any, no rule ran.

    `engines` are those that rules ran for, `able` those without an error. `judged_by` names their releases.
    `not_judged` names what was skipped: groups of rules that did not run, codes that could not be evaluated. `load`
    reports on an engine that was asked. `groups` are the diagnoses, or else the findings, by cause. `paths` are the
    names of the files that could be read, as they were opened.
    """

    model: str
    files: int
    tensors: int
    readable: bool
    engines: tuple[str, ...]
    able: tuple[str, ...]
    rules: int
    judged_by: tuple[str, ...] = ()
    not_judged: tuple[str, ...] = ()
    diagnoses: tuple[Finding, ...]
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...] = ()
    load: LoadReport | None = None
    groups: tuple[FindingGroup, ...] = ()
    paths: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Count the problems of `severity`: findings with one cause count once."""
        return sum(group.severity is severity for group in self.groups)

    def reaches(self, threshold: Severity) -> bool:
        """Whether a finding is at or above `threshold`."""
        return any(finding.severity >= threshold for finding in self.findings)


@record
class CheckReports:
    """The results for several models, in order."""

    reports: tuple[CheckReport, ...]


def codes() -> tuple[str, ...]:
    """List every code: those of rules and those of diagnoses."""
    return tuple(sorted({rule.code for rule in RULES} | set(DIAGNOSES) | set(ENGINE_CODES)))


def check(spec: ModelLike, options: CheckOptions | None = None) -> CheckReport:
    """Check the model that `spec` names, or an open one.

    Raises `SourceError` only if there are several models: a file that cannot be read is a diagnosis.
    """
    options = options or CheckOptions()
    if isinstance(spec, Model):
        return _check_files(spec.name, spec.files, (), spec.remarks, len(spec.files), options)
    given = os.fspath(spec)
    spec = without_secrets(given)
    try:
        groups = find_files(given, this_file_only=options.this_file_only)
    except SourceError as error:
        return _unreadable(spec, (diagnose_absent(given, error),), 0, options)
    members, remarks = _choose(spec, groups)
    return _check_files(spec, *_read(members), remarks, len(members), options)


def check_each(specs: Sequence[str], options: CheckOptions | None = None) -> CheckReports:
    """Check several models; skip one if its file was already checked as a shard of another's set."""
    reports: list[CheckReport] = []
    seen: set[str] = set()
    for spec in specs:
        if spec in seen or (os.path.isfile(spec) and os.path.realpath(spec) in seen):
            continue
        reports.append(check(spec, options))
        seen.update(os.path.realpath(path) if os.path.isfile(path) else path for path in (spec, *reports[-1].paths))
    return CheckReports(reports=tuple(reports))


def _check_files(
    spec: str,
    files: Sequence[ModelFile],
    diagnoses: tuple[Finding, ...],
    remarks: tuple[str, ...],
    count: int,
    options: CheckOptions,
) -> CheckReport:
    """Check the readable `files` of a model of `count` files; `diagnoses` are about the others."""
    target = _target(spec, files, options) if files else None
    diagnoses += _truncations(target) if target else ()
    if diagnoses or target is None:
        return _unreadable(spec, diagnoses, count, options)
    engines = options.engines or tuple(ENGINES)
    rules = [rule for rule in RULES if _is_wanted(rule.code, options)]
    findings = run_rules(target, engines, rules)
    weighed, able = judged(findings, engines)
    sound = not any(finding.severity is Severity.ERROR and not finding.engines for finding in findings)
    report = CheckReport(
        model=spec,
        files=len(files),
        tensors=len(target.tensors),
        readable=True,
        engines=engines,
        able=able if sound else (),
        rules=len({rule.code for rule in rules}),
        judged_by=tuple(facts.shown for facts in map(head_facts, engines) if facts is not None),
        not_judged=_not_judged(target, findings, rules),
        diagnoses=(),
        findings=findings if options.engines else weighed,
        remarks=remarks if target.looks_into_data else (*remarks, _NOT_LOOKED),
    )
    asked = _asked(report, files, findings, options) if options.load else report
    return replace(asked, groups=grouped(asked.findings), paths=tuple(file.source.name for file in files))


def _asked(
    report: CheckReport, files: Sequence[ModelFile], findings: tuple[Finding, ...], options: CheckOptions
) -> CheckReport:
    """Also ask the engine that the options name; an engine that did not accept the model is not able to run it."""
    from gguftool.analysis.lint.loading import load_in  # child processes and HTTP, only for --load

    load, found, engine = load_in(options.load, files, options.run, findings)
    wanted = tuple(finding for finding in found if _is_wanted(finding.code, options))
    able = tuple(each for each in report.able if not (found and each == engine))
    return replace(report, load=load, findings=worst_first((*wanted, *report.findings)), able=able)


def _not_judged(target: LintTarget, findings: Sequence[Finding], rules: Sequence[LintRule]) -> tuple[str, ...]:
    """List what no rule looked at: groups of rules that were not requested, and codes that could not be evaluated."""
    run = {rule.code for rule in rules}
    left_out = {rule.code for rule in RULES} - run
    letters = {code[0] for code in left_out}
    if not has_head(target):
        letters |= set(_PARTS)
    if any(finding.code == "K01" for finding in findings):  # then the architecture's requirements are unknown, too
        letters |= {"K", "A"}
    undecided = sorted({finding.code for finding in findings if finding.undecided and finding.code in run})
    return (*(words for letter, words in _PARTS.items() if letter in letters), *undecided)


def _target(spec: str, files: Sequence[ModelFile], options: CheckOptions) -> LintTarget:
    return target_of(
        spec,
        files,
        this_file_only=options.this_file_only,
        places=options.places,
        read_data=options.read_data,
    )


def _unreadable(spec: str, diagnoses: tuple[Finding, ...], files: int, options: CheckOptions) -> CheckReport:
    return CheckReport(
        model=spec,
        files=files,
        tensors=0,
        readable=False,
        engines=options.engines or tuple(ENGINES),
        able=(),
        rules=0,
        diagnoses=diagnoses,
        findings=(),
        groups=grouped(diagnoses),
    )


def _choose(spec: str, groups: Sequence[Group]) -> tuple[list[Member], tuple[str, ...]]:
    """Choose the members of the only complete group, else those of all groups, as `open_model` does."""
    complete = models_of(groups)
    if len(complete) > 1:
        names = listed([group.name for group in complete])
        raise SourceError(f"there are {len(complete)} models here; name one of them: {names}", source=spec)
    if not complete:
        return [member for group in groups for member in group.members], ()
    return complete[0].members, (*complete[0].remarks, *left_out(groups, complete[0]))


def _read(members: Sequence[Member]) -> tuple[list[ModelFile], tuple[Finding, ...]]:
    """Read all heads; return the files, and diagnoses of those that are not a readable GGUF."""

    def read(member: Member) -> ModelFile | Finding:
        try:
            header = member.header or read_header(member.source)
            return ModelFile(source=member.source, header=header, shard=member.shard)
        except (FormatError, SourceError) as error:
            return _diagnose(member.source, error)

    found = for_each(members, read, remote=any(member.source.is_remote for member in members))
    files = [part for part in found if isinstance(part, ModelFile)]
    return files, tuple(part for part in found if isinstance(part, Finding))


def _truncations(target: LintTarget) -> tuple[Finding, ...]:
    cut = {tensor.file for tensor in target.tensors if tensor.overrun}
    if not cut:
        return ()
    by_file = groupby(target.tensors, key=lambda tensor: tensor.file)
    found = (diagnose_truncation(target.files[index], tuple(group)) for index, group in by_file if index in cut)
    return tuple(finding for finding in found if finding is not None)


def _diagnose(source: Source, error: FormatError | SourceError) -> Finding:
    try:
        return diagnose_unreadable(source, error)
    except SourceError as second:  # it could not be read for a closer look either
        return diagnose_unreadable(source, second)


def _is_wanted(code: str, options: CheckOptions) -> bool:
    if options.select and not code.startswith(options.select):
        return False
    return not (options.ignore and code.startswith(options.ignore))
