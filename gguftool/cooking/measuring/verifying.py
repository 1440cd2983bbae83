"""`plan --verify`: build a mix, measure it in the same way as single tensors, and correct the predictions of plans.

The mix is measured with the text, engine and options of the measure file, so that prediction and measurement are
comparable. The options come from the file's own lines; another text or engine is refused.  The factor between both is
appended to the file as a line, and the next plan multiplies its damages by it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from gguftool.cooking.damage.sensitivities import EvidenceFiles, read_evidence
from gguftool.cooking.measure_lines import FloorLine, ScaleLine, Scores
from gguftool.cooking.measuring.bench import Bench, Inputs, Setup, censor, needed_bytes, open_inputs
from gguftool.cooking.measuring.output import MeasureOutput, read_output
from gguftool.cooking.measuring.work_folder import locked_folder, remove_folder, work_folder_of
from gguftool.cooking.mix import Mix
from gguftool.errors import ExecuteError, PlanError
from gguftool.format.ggml import type_alias
from gguftool.model.opening import StrPath
from gguftool.record import record, replace
from gguftool.storage.system.space import free_bytes

_ANY_WIDTH = "any-width"
_RUNS = 2  # of the engine: the model, for its logits, and the mix


@record
class Expectation:
    """The prediction of a plan for a mix: `types` by tensor, `damage` in nats, which already includes `factor`.

    `recipe` is the sha256 of the recipe.
    """

    types: Mapping[str, str]
    damage: float
    recipe: str
    factor: float = 1.0


@record
class Verification:
    """Predicted and actual divergence in nats, above the floor; `factor` corrects plans from now on.

    `factor` is None if the divergence cannot be told from the floor, so that nothing can be corrected.
    """

    predicted: float
    actual: float
    error: float
    scores: Scores
    factor: float | None


def setup_of(measured: StrPath, model: str, text: str, engine: str, imatrix: str | None, version: str) -> Setup:
    """The setup with which the lines of `measured` were made; raises `PlanError` if there are none of divergence."""
    floor = read_output(Path(measured)).floor
    if floor is None or floor.basis.options is None:
        raise PlanError("has no measured divergence, so a mix cannot be compared with it", source=str(measured))
    words = shlex.split(floor.basis.options)
    try:
        given = dict(zip(words[0:4:2], words[1:4:2], strict=True))
        context, chunks = int(given["-c"]), int(given["--chunks"])
    except (KeyError, ValueError):
        raise PlanError(
            f"was measured with options that cannot be repeated here: '{floor.basis.options}'", source=str(measured)
        ) from None
    rest = words[4:]
    return Setup(
        model=model,
        text=text,
        engine=engine,
        imatrix=imatrix,
        context=context,
        chunks=chunks,
        arguments=tuple(rest[:-1] if rest[-1:] == [_ANY_WIDTH] else rest),
        any_width=rest[-1:] == [_ANY_WIDTH],
        version=version,
    )


def _silent(done: int, total: int) -> None:
    """Take progress that nobody watches."""


def verify_plan(
    mix: Mix, setup: Setup, measured: StrPath, progress: Callable[[int, int], None] = _silent
) -> Verification:
    """Measure the mix that a plan chose by the lines of `measured`, and append the factor to that file.

    `setup` is what `setup_of` makes of the file.  `progress` and errors are those of `verify_mix`.
    """
    expected = Expectation(
        types={tensor.name: tensor.type for tensor in mix.tensors if tensor.chosen},
        damage=mix.damage,
        recipe=hashlib.sha256(mix.recipe.encode("utf-8", "surrogateescape")).hexdigest(),
        factor=read_evidence(EvidenceFiles(measure=(os.fspath(measured),))).factor,
    )
    return verify_mix(setup, expected, Path(measured), progress)


def verify_mix(
    setup: Setup, expected: Expectation, measured: Path, progress: Callable[[int, int], None] = _silent
) -> Verification:
    """Measure the mix of `expected`, and append the factor to the file `measured`.

    `progress` is called with the runs of the engine that are done, and how many there are.

    Raises `PlanError` if `setup` is not that of the file, `ExecuteError` if space is short or the engine fails.
    """
    folder = work_folder_of(measured)
    output = MeasureOutput(measured)
    inputs = open_inputs(setup, measured.absolute().parent)
    output.check(inputs.basis)
    own = {name: type_alias(tensor.info.type) for name, tensor in inputs.model.tensors.items()}
    types = {name: alias for name, alias in expected.types.items() if own.get(name) != alias}
    if not types:
        raise PlanError("the mix is the model itself: there is nothing to measure", source=setup.model)
    floor = next((line for line in output.lines if isinstance(line, FloorLine)), None)
    assert floor is not None  # `setup_of` found it
    with output, locked_folder(folder):
        _check_room(inputs, setup, folder)
        bench = Bench(inputs, setup, folder)
        progress(0, _RUNS)
        logits = bench.save_logits(folder)
        progress(1, _RUNS)
        _, scores = bench.measure_types(types, logits, floor)
        progress(_RUNS, _RUNS)
        bench.verify()
        found = _compared(scores, floor, expected)
        if found.factor is not None:
            output.append(
                ScaleLine(
                    factor=found.factor,
                    predicted=expected.damage,
                    actual=found.actual,
                    recipe=expected.recipe,
                    basis=inputs.basis,
                )
            )
        remove_folder(folder)
    return found


def _compared(scores: Scores, floor: FloorLine, expected: Expectation) -> Verification:
    ground = max(floor.scores.kld, 0.0)
    _, censored = censor(scores, floor)
    actual = scores.kld - ground
    factor = None if censored or expected.damage <= 0 else round(expected.factor * actual / expected.damage, 6)
    return Verification(
        predicted=expected.damage,
        actual=actual,
        error=scores.kld_se,
        scores=replace(scores, by_chunk=None),
        factor=factor,
    )


def _check_room(inputs: Inputs, setup: Setup, folder: Path) -> None:
    free = free_bytes(folder)
    needed = needed_bytes(inputs, setup, folder, copies=1, logits=True)
    if free is not None and needed > free:
        raise ExecuteError(
            f"needs {needed:,} bytes for logits and a scratch copy, and {free:,} are free here", source=str(folder)
        )
