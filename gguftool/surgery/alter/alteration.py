"""The operations of alter. They run in a fixed order, in whatever order they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from gguftool.errors import PlanError, did_you_mean, listed, printable
from gguftool.format.engine_facts.engines import BOTH, ENGINES
from gguftool.model.layout import OutputOptions
from gguftool.record import record
from gguftool.surgery.edit.settings import split_assignment

_MAX_PROBLEMS = 40  # listed in one error
KINDS = ("qkv", "gate_up", "experts")  # of --fuse and --unfuse


@record
class Alteration:
    """Operations on a model. They run in the order of these fields; numbers refer to the input.

    `take`: pairs of a donor's label and a WHAT; `drop`, `keep`: WHATs, a name, a regular expression or one of the
    groups ``:mtp``, ``:vision``, ``:tied``, ``:unused``; `rename`: pairs of a regular expression and the new name;
    `unfuse`, `fuse`: ``qkv``, ``gate_up``, ``experts``; `layers`: a list of trunk layers, or ``@FILE`` of mergekit;
    `experts`: a list for all layers, ids by layer, or ``@FILE``; `vocab`: a list of tokens, ``+N``, ids, or ``@FILE``;
    `set`: pairs of a key and ``[TYPE:]VALUE``; `remove`: keys. The output must load in `engines`.
    """

    take: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    unfuse: tuple[str, ...] = ()
    fuse: tuple[str, ...] = ()
    layers: str | None = None
    experts: str | Mapping[int, Sequence[int]] | None = None
    vocab: str | Sequence[int] | None = None
    set: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    engines: tuple[str, ...] = BOTH
    output: OutputOptions = OutputOptions()


def check_alteration(alteration: Alteration) -> list[str]:
    """List contradictions that show before any model is opened."""
    problems = [
        f"--{word} {kind}: the kinds are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        for word, kind in _unknown_kinds(alteration)
    ]
    both = [kind for kind in alteration.fuse if kind in alteration.unfuse]
    problems += [f"--fuse {kind} and --unfuse {kind} exclude each other" for kind in both]
    if alteration.drop and alteration.keep:
        problems.append("--drop and --keep exclude each other: --keep leaves out all else")
    taken, dropped = {what for _, what in alteration.take}, {*alteration.drop}
    problems += [f"--take LABEL:{what} and --drop {what} exclude each other" for what in sorted(taken & dropped)]
    unknown = [engine for engine in alteration.engines if engine not in ENGINES]
    if unknown:
        problems.append(
            f"no engine is called {listed(unknown)}; there are {', '.join(ENGINES)}{did_you_mean(unknown[0], ENGINES)}"
        )
    return problems


def _unknown_kinds(alteration: Alteration) -> list[tuple[str, str]]:
    given = (("unfuse", alteration.unfuse), ("fuse", alteration.fuse))
    return [(word, kind) for word, kinds in given for kind in kinds if kind not in KINDS]


def alteration_of(words: Sequence[tuple[str, str]], output: OutputOptions) -> Alteration:
    """Make an alteration from pairs of an operation's word and its value, as command lines and scripts give them.

    Raises one `PlanError` for values of the wrong form, and for lists that are given twice.
    """
    given: dict[str, list[str]] = {}
    for word, value in words:
        given.setdefault(word, []).append(value)
    problems = [
        f"--{word} is given {len(given[word])} times, but takes one list" for word in _ONCE if _twice(given, word)
    ]
    taken = _pairs(given.get("take", []), "--take LABEL:WHAT", _split_take, problems)
    renamed = _pairs(given.get("rename", []), "--rename REGEX=NEW", _split_rename, problems)
    settings = [split_assignment(text, (), "--set KEY=[TYPE:]VALUE") for text in given.get("set", ())]
    refuse(problems)
    one = {word: given[word][0] for word in _ONCE if word in given}
    return Alteration(
        take=taken,
        drop=tuple(given.get("drop", ())),
        keep=tuple(given.get("keep", ())),
        rename=renamed,
        unfuse=tuple(given.get("unfuse", ())),
        fuse=tuple(given.get("fuse", ())),
        layers=one.get("layers"),
        experts=one.get("experts"),
        vocab=one.get("vocab"),
        set=tuple(settings),
        remove=tuple(given.get("remove", ())),
        engines=tuple(dict.fromkeys(given.get("engine", BOTH))),
        output=output,
    )


_ONCE = ("layers", "experts", "vocab")


def _pairs(
    texts: Sequence[str], form: str, split: Callable[[str], tuple[str, str]], problems: list[str]
) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        pair = split(text)
        if all(pair):
            pairs.append(pair)
        else:
            problems.append(f"'{printable(text, 80)}' is not of the form {form}")
    return tuple(pairs)


def _split_take(text: str) -> tuple[str, str]:
    label, _, what = text.partition(":")
    return label, what


def _split_rename(text: str) -> tuple[str, str]:
    """Split at the last ``=``: expressions may contain one, names do not."""
    pattern, _, new = text.rpartition("=")
    return pattern, new


def _twice(given: Mapping[str, Sequence[str]], word: str) -> bool:
    return len(given.get(word, ())) > 1


def refuse(found: Iterable[str]) -> None:
    """Raise one `PlanError` for all problems `found`, if there are any."""
    problems = [*found]
    if len(problems) == 1:
        raise PlanError(problems[0])
    if problems:
        more = [f"and {len(problems) - _MAX_PROBLEMS:,} more"] if len(problems) > _MAX_PROBLEMS else []
        raise PlanError(f"cannot alter, {len(problems):,} problems", problems=[*problems[:_MAX_PROBLEMS], *more])
