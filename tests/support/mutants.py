"""Run tests against mutants of a module: which changes of the code does no test notice?

cosmic-ray makes the mutants. Its own runner tries all of them; here a random sample of each module is tried, with a
fixed seed, so that a run takes minutes. Each mutant is written into a copy of the checkout.

    python -m tests.support.mutants [--sample N] [--seed N] [MODULE...]
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from tests.support.equivalent_mutants import is_equivalent
from tests.support.paths import REPO

_EXECUTE = "gguftool/storage/execute"
_IN_EXECUTE = "tests/storage/execute"
# The tests that notice most mutants, those that take least time first.
TESTS: Mapping[str, tuple[str, ...]] = {
    f"{_EXECUTE}/consume.py": (
        f"{_IN_EXECUTE}/test_consume_state.py",
        "tests/surgery/test_removable.py",
        f"{_IN_EXECUTE}/test_consume.py",
    ),
    f"{_EXECUTE}/consume_journal.py": (
        f"{_IN_EXECUTE}/test_consume_journal.py",
        "tests/surgery/test_removable.py",
        f"{_IN_EXECUTE}/test_consume.py",
    ),
    f"{_EXECUTE}/consume_state.py": (
        f"{_IN_EXECUTE}/test_consume_state.py",
        "tests/surgery/test_removable.py",
        f"{_IN_EXECUTE}/test_consume.py",
    ),
    f"{_EXECUTE}/copy_state.py": (f"{_IN_EXECUTE}/test_copy_state.py", f"{_IN_EXECUTE}/test_copying.py"),
    f"{_EXECUTE}/copying.py": (f"{_IN_EXECUTE}/test_copying.py",),
    f"{_EXECUTE}/executor.py": (
        f"{_IN_EXECUTE}/test_executor.py",
        f"{_IN_EXECUTE}/test_in_place.py",
        f"{_IN_EXECUTE}/test_resume.py",
        f"{_IN_EXECUTE}/test_strangers.py",
        f"{_IN_EXECUTE}/test_output_digests.py",
    ),
    f"{_EXECUTE}/fill.py": (f"{_IN_EXECUTE}/test_fill.py",),
    f"{_EXECUTE}/in_place.py": (f"{_IN_EXECUTE}/test_in_place.py", "tests/surgery/edit/test_edit.py"),
    f"{_EXECUTE}/options.py": (f"{_IN_EXECUTE}/test_copy_state.py", f"{_IN_EXECUTE}/test_executor.py"),
    f"{_EXECUTE}/output_digests.py": (f"{_IN_EXECUTE}/test_output_digests.py",),
    f"{_EXECUTE}/part.py": (
        f"{_IN_EXECUTE}/test_part.py",
        f"{_IN_EXECUTE}/test_resume.py",
        f"{_IN_EXECUTE}/test_replaced_parts.py",
        f"{_IN_EXECUTE}/test_executor.py",
    ),
    f"{_EXECUTE}/preflight.py": (f"{_IN_EXECUTE}/test_preflight.py", f"{_IN_EXECUTE}/test_executor.py"),
    f"{_EXECUTE}/publishing/one_file.py": (
        f"{_IN_EXECUTE}/test_publish.py",
        f"{_IN_EXECUTE}/test_in_place.py",
        f"{_IN_EXECUTE}/test_replaced_parts.py",
        f"{_IN_EXECUTE}/test_modes.py",
        f"{_IN_EXECUTE}/test_executor.py",
        f"{_IN_EXECUTE}/test_part.py",
    ),
    f"{_EXECUTE}/publishing/set_journal.py": (
        f"{_IN_EXECUTE}/test_publish.py",
        f"{_IN_EXECUTE}/test_in_place.py",
        f"{_IN_EXECUTE}/test_replaced_parts.py",
        f"{_IN_EXECUTE}/test_modes.py",
        f"{_IN_EXECUTE}/test_executor.py",
        f"{_IN_EXECUTE}/test_part.py",
    ),
    f"{_EXECUTE}/publishing/sets.py": (
        f"{_IN_EXECUTE}/test_publish.py",
        f"{_IN_EXECUTE}/test_in_place.py",
        f"{_IN_EXECUTE}/test_replaced_parts.py",
        f"{_IN_EXECUTE}/test_modes.py",
        f"{_IN_EXECUTE}/test_executor.py",
        f"{_IN_EXECUTE}/test_part.py",
    ),
    f"{_EXECUTE}/resume.py": (f"{_IN_EXECUTE}/test_resume.py", f"{_IN_EXECUTE}/test_streaming.py"),
    f"{_EXECUTE}/run.py": (
        f"{_IN_EXECUTE}/test_run.py",
        f"{_IN_EXECUTE}/test_resume.py",
        f"{_IN_EXECUTE}/test_streaming.py",
        f"{_IN_EXECUTE}/test_executor.py",
    ),
    f"{_EXECUTE}/streaming.py": (f"{_IN_EXECUTE}/test_streaming.py", f"{_IN_EXECUTE}/test_copying.py"),
    "gguftool/format/header.py": ("tests/format/test_header.py",),
    "gguftool/format/cursor.py": ("tests/format/test_cursor.py", "tests/format/test_header.py"),
    "gguftool/format/recipe.py": ("tests/format/test_recipe.py",),
    "gguftool/surgery/metadata.py": ("tests/surgery/test_metadata.py",),
}
SAMPLE = 6  # mutants of a module
LEAST_LIMIT = 20  # seconds of one mutant, and four times what the tests take without a change

# Without the tests that kill a run at each of its calls: they take most of the time.
_SELECTION = ("-m", "not slow", "-k", "not wherever_the_run_is_killed")

# Operators that change no behaviour that a test could see (`x: int | None` is never evaluated, decorators are mypy's),
# and two that need arguments.
_SKIPPED = ("BinaryOperator_BitOr_", "RemoveDecorator", "VariableInserter", "VariableReplacer")


@dataclass(frozen=True)
class Mutant:
    """One change of a module: its new code, and the lines that differ."""

    module: str
    code: str
    change: str

    @property
    def is_equivalent(self) -> bool:
        """Whether the change is one of those that no test can notice."""
        lines = self.change.splitlines()
        old, new = ([line[1:] for line in lines if line.startswith(sign)] for sign in "-+")
        return len(old) == len(new) == 1 and is_equivalent(self.module, old[0], new[0])


@dataclass(frozen=True)
class Outcome:
    """How many mutants of a sample were noticed, and those that were not."""

    tried: int
    survivors: tuple[Mutant, ...]

    @property
    def rate(self) -> float:
        """The share of mutants that a test noticed."""
        return 1 - len(self.survivors) / self.tried

    @property
    def lower_bound(self) -> float:
        """The lower end of Wilson's 95 % interval of the rate."""
        z, n, rate = 1.96, self.tried, self.rate
        middle = rate + z * z / (2 * n)
        return (middle - z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def mutants_of(module: str, size: int, seed: int) -> list[Mutant]:
    """`size` random mutants of a module that compile and behave differently: the same for the same seed and code."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    code = (REPO / module).read_text()
    nodes = list(ast_nodes(get_ast(code)))
    places = []
    for name in sorted(operator_names()):
        if not any(part in name for part in _SKIPPED):
            operator = get_operator(name)()
            count = sum(1 for node in nodes for _ in operator.mutation_positions(node))
            places += [(operator, occurrence) for occurrence in range(count)]
    random.Random(f"{seed} {module}").shuffle(places)
    found: dict[str, Mutant] = {}
    for operator, occurrence in places:
        if len(found) == size:
            break
        changed = mutate_code(code, operator, occurrence)
        if changed is not None and changed != code and _compiles(changed):
            mutant = Mutant(module=module, code=changed, change=_change(code, changed))
            if not mutant.is_equivalent:
                found[changed] = mutant
    return list(found.values())


def _compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except (SyntaxError, SyntaxWarning):
        return False
    return True


def _change(old: str, new: str) -> str:
    lines = unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def run(mutants: Iterable[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    """Run the tests of each mutant's module against it; yield whether one of them noticed it.

    Raises `AssertionError` if the tests of a module fail without a change: then every mutant would seem noticed.
    """
    with tempfile.TemporaryDirectory(prefix="gguftool-mutants-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(REPO, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__"))
        limits: dict[str, float] = {}
        for number, mutant in enumerate(mutants, start=1):
            tests = TESTS[mutant.module]
            if mutant.module not in limits:
                start = time.monotonic()
                assert _passes(copy, tests, None), f"the tests of {mutant.module} fail without a change"
                limits[mutant.module] = LEAST_LIMIT + 4 * (time.monotonic() - start)
            original = (REPO / mutant.module).read_text()
            (copy / mutant.module).write_text(mutant.code)
            os.utime(copy / mutant.module, (number, number))  # bytecode is told apart by the second and the size
            try:
                yield mutant, not _passes(copy, tests, limits[mutant.module])
            finally:
                (copy / mutant.module).write_text(original)


def _passes(checkout: Path, tests: Iterable[str], limit: float | None) -> bool:
    """Whether `tests` pass within `limit` seconds: a mutant that hangs is noticed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *_SELECTION, "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(checkout.parent / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling everything again for each mutant takes half the time
    try:
        done = subprocess.run(  # pytest's exit code is the answer
            command, check=False, cwd=checkout, env=environment, capture_output=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> Outcome:
    """Try a sample, print each mutant that no test noticed, and the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", default=list(TESTS))
    parser.add_argument("--sample", type=int, default=SAMPLE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    survivors, tried = [], 0
    modules = options.modules or list(TESTS)
    chosen = (mutant for module in modules for mutant in mutants_of(module, options.sample, options.seed))
    for mutant, noticed in run(chosen):
        tried += 1
        print("noticed" if noticed else "NOT NOTICED", mutant.module, flush=True)
        if not noticed:
            survivors.append(mutant)
            print(f"{mutant.change}\n", flush=True)
    outcome = Outcome(tried=tried, survivors=tuple(survivors))
    print(f"noticed {tried - len(survivors)} of {tried}: {outcome.rate:.1%} (at least {outcome.lower_bound:.1%})")
    return outcome


if __name__ == "__main__":
    main()
