"""Measure: plan which tensors are measured at which types, and measure them, one line after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gguftool.cooking.error_table import error_lines, types_found
from gguftool.cooking.measure_lines import Basis, FloorLine
from gguftool.cooking.measuring.bench import (
    Setup,
    Task,
    logits_bytes,
    make_maker,
    needed_bytes,
    open_inputs,
    open_reference,
)
from gguftool.cooking.measuring.executors import ClusterExecutor, Executor, LocalExecutor, shares_of_cores
from gguftool.cooking.measuring.groups import Grouping, grouped, measurable
from gguftool.cooking.measuring.logits import kept_logits
from gguftool.cooking.measuring.output import MeasureOutput
from gguftool.cooking.measuring.work_folder import locked_folder, remove_folder, work_folder_of
from gguftool.cooking.model_digest import model_digest
from gguftool.cooking.type_values import TypeMaker
from gguftool.errors import ExecuteError, GGUFToolError, PlanError, did_you_mean, printable
from gguftool.errors import grouped as grouped_reasons
from gguftool.format.ggml import TYPES, find_type
from gguftool.model.model import Model
from gguftool.model.opening import StrPath
from gguftool.record import record
from gguftool.storage.system.space import free_bytes

_FLOPS = 3e10  # of F16 matrices, by one core of a server of 2020; docs/measuring.md
_GIVE_UP = 3  # failures in a row: then the engine is broken, not a tensor


@record
class Selection:
    """The measurements to make: tensors that match `patterns` (default: all), at `types`, in groups."""

    patterns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    grouping: Grouping = Grouping()


@record
class Hooks:
    """Callbacks: the number of finished tasks, notes for the user, and a signal for each written line."""

    progress: Callable[[int, int], None] = lambda done, total: None
    note: Callable[[str], None] = lambda text: None


@record
class MeasurePlan:
    """A preview of a run: tasks to measure, tasks that are already done, temporary bytes, seconds.

    `seconds` is an estimate for all remaining tasks.
    """

    model: str
    output: str
    tasks: tuple[Task, ...]
    done: int
    floor_is_there: bool
    logits_bytes: int
    scratch_bytes: int
    folder: str
    seconds: float
    remarks: tuple[str, ...]


@record
class MeasureReport:
    """The result of a run: lines written, lines that already existed, and failed tasks with their reasons."""

    output: str
    written: int
    skipped: int
    failed: tuple[str, ...]
    remarks: tuple[str, ...] = ()


class Measuring:
    """One run of `measure`: `plan` previews it, `run` does it."""

    def __init__(self, setup: Setup, selection: Selection, output: Path, *, jobs: int = 1, scheduler: str = "") -> None:
        if jobs > 1 and scheduler:
            raise PlanError("--jobs and --scheduler exclude each other: the cluster has its own workers")
        self._setup = setup
        self._jobs = len(shares_of_cores(jobs))
        self._scheduler = scheduler
        self._folder = work_folder_of(output)
        self._output = MeasureOutput(output)
        self._inputs = open_inputs(setup, output.absolute().parent)
        self._output.check(self._inputs.basis)
        self._all, self._remarks = plan_tasks(self._inputs.model, self._inputs.maker, selection)
        there = {line.key for line in self._output.lines if hasattr(line, "key")}
        self._tasks = tuple(task for task in self._all if _key(task) not in there)

    @property
    def _floor(self) -> FloorLine | None:
        return next((line for line in self._output.lines if isinstance(line, FloorLine)), None)

    def plan(self) -> MeasurePlan:
        """Preview the run."""
        kept = kept_logits(self._folder, self._inputs.basis) if self._folder.is_dir() else None
        runs = len(self._tasks) + (self._floor is None) + (kept is None)
        seconds = _estimate(self._inputs.model, self._setup) if kept is None else kept.seconds
        return MeasurePlan(
            model=self._inputs.model.name,
            output=str(self._output.path),
            tasks=self._tasks,
            done=len(self._all) - len(self._tasks),
            floor_is_there=self._floor is not None,
            logits_bytes=logits_bytes(self._inputs, self._setup),
            scratch_bytes=self._jobs * sum(file.source.size for file in self._inputs.model.files),
            folder=str(self._output.path.with_name(self._folder.name)),
            seconds=seconds * runs if self._tasks or self._floor is None else 0.0,
            remarks=self._remarks,
        )

    def run(self, hooks: Hooks | None = None) -> MeasureReport:
        """Run the remaining measurements; each line is written as soon as its measurement is done.

        Raises `ExecuteError` if there is not enough space, or the engine does not work at all. Failures of single tasks
        are in the report. After the last measurement, logits and scratch copies are removed; until then the logits
        stay.
        """
        hooks = hooks or Hooks()
        before = len(self._output.lines)
        failed: list[str] = []
        if self._tasks or self._floor is None:
            with self._output, locked_folder(self._folder), self._executor() as executor:
                self._measure(executor, hooks, failed)
        if not failed:
            remove_folder(self._folder)
        return MeasureReport(
            output=str(self._output.path),
            written=len(self._output.lines) - before,
            skipped=len(self._all) - len(self._tasks),
            failed=tuple(failed),
            remarks=self._remarks,
        )

    def _measure(self, executor: Executor, hooks: Hooks, failed: list[str]) -> None:
        executor.prepare()
        floor = self._floor
        if floor is None:
            floor = executor.floor()
            self._output.append(floor)
        total, in_a_row = len(self._tasks), 0
        hooks.progress(0, total)
        for done, (task, found) in enumerate(executor.run(self._tasks, floor), 1):
            if isinstance(found, GGUFToolError):
                in_a_row += 1
                failed.append(f"{printable(task.group)} at {task.type}: {found}")
                hooks.note(failed[-1])
                if in_a_row == _GIVE_UP:
                    raise ExecuteError(
                        f"{in_a_row} measurements in a row failed, the rest was not tried; the last error: {failed[-1]}"
                    )
            else:
                in_a_row = 0
                self._output.append(found)
            hooks.progress(done, total)
        executor.finish()
        self._output.arrange(_key(task) for task in self._all)

    @contextmanager
    def _executor(self) -> Iterator[Executor]:
        if not self._scheduler:
            self._check_room()
        executor: Executor = (
            ClusterExecutor(self._inputs, self._setup, self._scheduler)
            if self._scheduler
            else LocalExecutor(self._inputs, self._setup, self._folder, self._jobs)
        )
        try:
            yield executor
        finally:
            executor.close()

    def _check_room(self) -> None:
        """Raise `ExecuteError` if logits and scratch copies do not fit."""
        logits = kept_logits(self._folder, self._inputs.basis) is None
        free = free_bytes(self._folder)
        needed = needed_bytes(self._inputs, self._setup, self._folder, copies=self._jobs, logits=logits)
        if free is not None and needed > free:
            raise ExecuteError(
                f"needs {needed:,} bytes for logits and scratch copies, and {free:,} are free here; use fewer --chunks "
                "or --jobs, or an output on another disk",
                source=str(self._folder),
            )


def measure(
    setup: Setup,
    selection: Selection,
    output: StrPath,
    hooks: Hooks | None = None,
    *,
    jobs: int = 1,
    scheduler: str = "",
) -> MeasureReport:
    """Run the remaining measurements of `selection`, and append a line for each to `output` as soon as it is done.

    `jobs`: engines at a time on this machine; `scheduler`: the address of a dask.distributed scheduler instead.  Raises
    `PlanError` for inputs that cannot be measured this way, `ExecuteError` if space is short or the engine fails.
    """
    return Measuring(setup, selection, Path(output), jobs=jobs, scheduler=scheduler).run(hooks)


def plan_measure(
    setup: Setup, selection: Selection, output: StrPath, *, jobs: int = 1, scheduler: str = ""
) -> MeasurePlan:
    """Preview a run of `measure`; raises the same `PlanError`."""
    return Measuring(setup, selection, Path(output), jobs=jobs, scheduler=scheduler).plan()


def _key(task: Task) -> tuple[object, ...]:
    return ("kld", task.group, task.tensors, task.type)


def plan_tasks(model: Model, maker: TypeMaker, selection: Selection) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """Choose the tasks, and remarks on tensors that cannot have a type.

    Raises `PlanError` for unknown types, patterns that match nothing, and if nothing can be measured.
    """
    names = measurable(model, maker.engine, selection.patterns)
    types = [_known_type(text) for text in selection.types]
    tasks: list[Task] = []
    refused: dict[str, list[str]] = {}
    for type_id in types:
        fits = []
        for name in names:
            reason = _refusal(model, maker, name, type_id)
            if reason is None:
                fits.append(name)
            elif reason:
                refused.setdefault(f"left out at {TYPES[type_id].alias}: {reason}", []).append(name)
        for group, members in grouped(fits, selection.grouping).items():
            tasks.append(Task(group=group, tensors=members, type=TYPES[type_id].alias))
    remarks = grouped_reasons(refused)
    if not tasks:
        raise PlanError("nothing can be measured", source=model.name, problems=remarks)
    return tuple(tasks), remarks


def _refusal(model: Model, maker: TypeMaker, name: str, type_id: int) -> str | None:
    """Why a tensor is not measured at a type: empty if it already has that type, None if it can be measured."""
    if model.tensors[name].info.type == type_id and not any(name in quant.tensors for quant in maker.quants):
        return ""
    try:
        maker.make(name, type_id)
    except PlanError as error:
        return error.message
    return None


def _known_type(text: str) -> int:
    traits = find_type(text)
    if traits is None or not traits.in_files or traits.kind == "integer":
        near = did_you_mean(text, [one.alias for one in TYPES.values() if one.in_files and one.kind != "integer"])
        raise PlanError(f"'{printable(text)}' is not a type of weights{near}; 'gguftool types' lists them")
    return traits.id


def _estimate(model: Model, setup: Setup) -> float:
    """Seconds of one run of the engine, by the operations of its matrices on this machine's cores."""
    weights = sum(tensor.info.elements for tensor in model.tensors.values() if len(tensor.info.shape) > 1)
    return 2 * weights * setup.context * setup.chunks / (_FLOPS * (os.cpu_count() or 1))


# --- the error table -------------------------------------------------------------------------------------------------


@record
class ErrorSetup:
    """The inputs of the error table; `quants` are ready-made models, and their types are added to those requested."""

    model: str
    imatrix: str | None = None
    quants: tuple[str, ...] = ()
    engine: str = "llama.cpp"
    any_width: bool = False
    version: str = ""


def measure_errors(
    setup: ErrorSetup, selection: Selection, output: StrPath, hooks: Hooks | None = None
) -> MeasureReport:
    """Add the error of each tensor at each type to `output`; a remote model is read in ranges.

    Raises `PlanError` as `plan_tasks` does.
    """
    hooks = hooks or Hooks()
    model = open_reference(setup.model)
    maker = make_maker(model, setup.imatrix, setup.quants, engine=setup.engine, any_width=setup.any_width)
    basis = Basis(
        model=model_digest(model),
        text=None,
        imatrix=None if maker.weights is None else maker.weights.imatrix.digest,
        engine=None,
        options=None,
        gguftool=setup.version,
    )
    lines = MeasureOutput(Path(output))
    lines.check(basis)
    names = measurable(model, setup.engine, selection.patterns)
    wanted = list(dict.fromkeys((*_asked(model, names, selection.types), *types_found(maker, names))))
    if not wanted:
        raise PlanError("give --types, or --quants MODEL with types of its own", source=model.name)
    there = {line.key for line in lines.lines if hasattr(line, "key")}
    left = [pair for pair in wanted if _error_key(maker, pair) not in there]
    refused: dict[str, list[str]] = {}

    def refuse(name: str, alias: str, error: GGUFToolError) -> None:
        refused.setdefault(f"left out at {alias}: {error.message}", []).append(name)

    before = len(lines.lines)
    with lines:
        for done, line in enumerate(error_lines(maker, left, basis, refused=refuse), 1):
            lines.append(line)
            hooks.progress(done, len(left))
    remarks = grouped_reasons(refused)
    if left and len(lines.lines) == before:
        raise PlanError("no error can be measured", source=model.name, problems=remarks)
    return MeasureReport(
        output=str(output),
        written=len(lines.lines) - before,
        skipped=len(wanted) - len(left),
        failed=(),
        remarks=remarks,
    )


def _asked(model: Model, names: Sequence[str], types: Iterable[str]) -> Iterator[tuple[str, int]]:
    ids = [_known_type(text) for text in types]
    return ((name, type_id) for name in names for type_id in ids if model.tensors[name].info.type != type_id)


def _error_key(maker: TypeMaker, pair: tuple[str, int]) -> tuple[object, ...]:
    name, type_id = pair
    quant = maker.quant_of(name, type_id)
    return ("error", name, TYPES[type_id].alias, None if quant is None else quant.name)
