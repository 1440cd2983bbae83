"""Judge a head by itself: a planned one that has no file yet, or that of a file without a look at its data.

The rules are those of `check` that need only heads and are about what an engine loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Importing the rule modules registers their rules.
from gguftool.analysis.lint import file, layers, loaders, scales, types
from gguftool.analysis.lint.heads import keys, tensor_set, vocabulary
from gguftool.analysis.lint.rules import RULES, Finding, Severity, names_in_words, run_rules
from gguftool.analysis.lint.target import LintTarget, target_of
from gguftool.errors import SourceError
from gguftool.format.file_names import ShardName
from gguftool.format.header import Header
from gguftool.model.model import Model, ModelFile
from gguftool.record import record, replace
from gguftool.storage.sources.source import Source

_RULE_MODULES = (layers, loaders, file, types, scales, keys, vocabulary, tensor_set)

# Not T06: writers that take tensors refuse their types (surgery.compatibility), with the same facts and all names.
CODES = (
    *("K", "V", "A", "P", "S", "B", "M", "D"),
    *("T01", "T02", "T03", "H02", "F09", "F15"),
)
Place = tuple[str, str, str]  # code, engine ("" for the file itself), and the tensor or the place in words


@record
class HeadOnly(Source):
    """A file with only its head known; `size` in bytes is that of the whole file."""

    name: str
    size: int

    @property
    def identity(self) -> str:
        """The name: nothing is read."""
        return self.name

    def read_at(self, offset: int, length: int) -> bytes:
        """Raise `SourceError`: there are no bytes."""
        raise SourceError(
            f"{length:,} bytes are not available: only the head is judged", source=self.name, offset=offset
        )


@record
class HeadOf:
    """The head of one file and the file's size in bytes; `shard` is its place if its set has gaps, else None."""

    header: Header
    size: int
    shard: ShardName | None = None


def head_target(name: str, heads: Iterable[HeadOf]) -> LintTarget:
    """Make the target of one model's files, all called `name`, because findings are compared between models."""
    files = [
        ModelFile(source=HeadOnly(name=name, size=head.size), header=head.header, shard=head.shard) for head in heads
    ]
    return target_of(name, files)


def head_of_model(model: Model) -> list[HeadOf]:
    """List the heads of a model's files."""
    return [
        HeadOf(header=file.header, size=file.source.size, shard=None if model.is_complete else file.shard)
        for file in model.files
    ]


def judge_head(target: LintTarget, engines: tuple[str, ...], without: tuple[str, ...] = ()) -> tuple[Finding, ...]:
    """Run the rules about heads for `engines`; the worst findings come first, undecided ones are left out.

    `without`: also leave out codes with these beginnings.
    """
    rules = [each for each in RULES if each.code.startswith(CODES) and not each.code.startswith(without)]
    return tuple(each for each in run_rules(target, engines, rules) if not each.undecided)


def places_of(findings: Iterable[Finding]) -> frozenset[Place]:
    """Collect every place that `findings` are about."""
    return frozenset(place for each in findings for engine in each.engines or ("",) for place in _places(each, engine))


def _places(finding: Finding, engine: str) -> list[Place]:
    return [(finding.code, engine, name) for name in finding.tensors or (finding.where,)]


def only_at(findings: Iterable[Finding], wanted: frozenset[Place]) -> tuple[Finding, ...]:
    """Narrow `findings` to those of their tensors and engines that are among the `wanted` places."""
    kept: list[Finding] = []
    for each in findings:
        groups: dict[tuple[str, ...], list[str]] = {}
        for engine in each.engines or ("",):
            names = tuple(name for code, of, name in _places(each, engine) if (code, of, name) in wanted)
            if names:
                groups.setdefault(names, []).append(engine)
        kept += (_narrowed(each, names, engines) for names, engines in groups.items())
    return tuple(kept)


def _narrowed(finding: Finding, names: tuple[str, ...], engines: Sequence[str]) -> Finding:
    narrowed = replace(finding, engines=tuple(engine for engine in engines if engine))
    if not finding.tensors or names == finding.tensors:
        return narrowed
    by_names = finding.where == names_in_words(finding.tensors)
    return replace(narrowed, tensors=names, where=names_in_words(names) if by_names else finding.where)


def errors_among(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Pick the errors among `findings`."""
    return tuple(each for each in findings if each.severity is Severity.ERROR)


def warnings_among(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Pick the warnings among `findings`."""
    return tuple(each for each in findings if each.severity is Severity.WARNING)


def able_engines(errors: Iterable[Finding], engines: Sequence[str]) -> tuple[str, ...]:
    """Pick the `engines` that no error is about; none if an error is about the file itself."""
    broken: set[str] = set()
    for each in errors:
        broken.update(each.engines or engines)
    return tuple(engine for engine in engines if engine not in broken)


def in_words(finding: Finding) -> str:
    """Write one line: code, engines, place, message and way out."""
    engines = f" [{', '.join(finding.engines)}]" if finding.engines else ""
    place = f" {finding.where}:" if finding.where else ""
    way_out = f" ({finding.way_out})" if finding.way_out else ""
    return f"{finding.code}{engines}{place} {finding.message}{way_out}"
