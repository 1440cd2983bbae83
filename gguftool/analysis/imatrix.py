"""The content of an importance matrix, and how far it covers a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from gguftool.errors import PlanError, listed
from gguftool.format.engine_facts.embeddings import EMBEDDINGS
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.ggml import type_name
from gguftool.format.header import TensorInfo
from gguftool.format.imatrix import Imatrix, ImatrixEntry
from gguftool.format.pattern import compile_pattern
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, as_model
from gguftool.record import record

_SHOWN = 10  # problems that one error lists


@record
class ImatrixTensor:
    """One entry: `values` in `matrices`; the lowest and the highest count of a matrix, and the matrices without data.

    In a legacy file, every entry is one matrix and counts are in chunks; a GGUF file counts tokens.
    """

    name: str
    matrices: int
    values: int
    least: int
    most: int
    without_data: tuple[int, ...]


@record
class StandIn:
    """For `tensor`, which has no entry of its own, `engine` uses `entry`, that of another tensor."""

    engine: str
    tensor: str
    entry: str


@record
class ModelCoverage:
    """A model's tensors that llama-quantize would quantize, sorted by their entries in an imatrix.

    `covered` counts those with an entry of the right size, `missing` names those without one, `misfits` describes those
    with one of another size; `embeddings` have none because they are looked up, not multiplied. `unmatched` are entries
    without a tensor in the model. `stand_ins` are entries of other tensors that an engine uses for `missing` ones.
    """

    model: str
    tensors: int
    covered: int
    missing: tuple[str, ...]
    misfits: tuple[str, ...]
    embeddings: tuple[str, ...]
    unmatched: tuple[str, ...]
    stand_ins: tuple[StandIn, ...]


@record
class ImatrixReport:
    """A whole imatrix file: `matrices` and `matrices_without_data` over all `entries`, and the wanted `tensors`.

    `chunk_count` and `chunk_size` (tokens) are None if the file does not give them.
    """

    imatrix: str
    kind: str
    sha256: str
    entries: int
    values: int
    datasets: tuple[str, ...]
    chunk_count: int | None
    chunk_size: int | None
    matrices: int
    matrices_without_data: int
    tensors: tuple[ImatrixTensor, ...]
    coverage: ModelCoverage | None


def describe_imatrix(
    name: str, imatrix: Imatrix, *, model: ModelLike | None = None, name_filter: str = ""
) -> ImatrixReport:
    """Describe `imatrix`, and its coverage of `model` if given; `name_filter` is searched in tensor names."""
    wanted = compile_pattern(name_filter)
    rows = [_row(entry) for entry in imatrix.entries.values()]
    return ImatrixReport(
        imatrix=name,
        kind=imatrix.kind.value,
        sha256=imatrix.digest,
        entries=len(rows),
        values=sum(row.values for row in rows),
        datasets=imatrix.datasets,
        chunk_count=imatrix.chunk_count,
        chunk_size=imatrix.chunk_size,
        matrices=sum(row.matrices for row in rows),
        matrices_without_data=sum(len(row.without_data) for row in rows),
        tensors=tuple(row for row in rows if wanted.search(row.name)),
        coverage=coverage_of(model, imatrix) if model else None,
    )


def _row(entry: ImatrixEntry) -> ImatrixTensor:
    return ImatrixTensor(
        name=entry.name,
        matrices=int(entry.counts.size),
        values=entry.values,
        least=int(entry.counts.min()),
        most=int(entry.counts.max()),
        without_data=tuple(int(index) for index in (entry.counts <= 0).nonzero()[0]),
    )


def coverage_of(model: ModelLike, imatrix: Imatrix) -> ModelCoverage:
    """List which tensors of `model` have weights in `imatrix`; for a path, raise the errors of `open_model`."""
    model = as_model(model)
    infos = [tensor.info for tensor in model.tensors.values() if _quantizable(tensor.info)]
    found = {info.name: imatrix.entries[info.name] for info in infos if info.name in imatrix.entries}
    without = [info.name for info in infos if info.name not in found]
    missing = tuple(name for name in without if name not in EMBEDDINGS)
    misfits = tuple(_misfits(model, imatrix, lambda name: True))
    return ModelCoverage(
        model=model.name,
        tensors=len(infos),
        covered=sum(found[info.name].fits(info.dims) for info in infos if info.name in found),
        missing=missing,
        misfits=misfits,
        embeddings=tuple(name for name in without if name in EMBEDDINGS),
        unmatched=tuple(name for name in imatrix.entries if name not in model.tensors),
        stand_ins=tuple(_stand_ins(missing, imatrix)),
    )


def _stand_ins(missing: Sequence[str], imatrix: Imatrix) -> Iterator[StandIn]:
    from gguftool.format.engine_facts.stand_ins import stand_in  # every dump imports this module

    for engine in ENGINES:
        for name in missing:
            entry = stand_in(name, imatrix.entries, engine)
            if entry is not None:
                yield StandIn(engine=engine, tensor=name, entry=entry)


def _quantizable(info: TensorInfo) -> bool:
    from gguftool.format.engine_facts.fallback import keeps_type  # every dump imports this module

    return not keeps_type(info.name, info.dims, type_name(info.type))


def _misfits(model: Model, imatrix: Imatrix, wanted: Callable[[str], bool]) -> Iterator[str]:
    for name, entry in imatrix.entries.items():
        tensor = model.tensors.get(name)
        # llama-quantize ignores the size of embeddings: an old imatrix may hold other data under their name.
        if tensor is not None and wanted(name) and name not in EMBEDDINGS and not entry.fits(tensor.info.dims):
            yield entry.misfit(tensor.info.dims)


def check_imatrix(
    imatrix: Imatrix, model: ModelLike, name: str, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Raise `PlanError` if the imatrix called `name` belongs to another model; the error lists what differs.

    It belongs to another model if no entry is a tensor of the model, or if a `wanted` tensor has an entry of another
    size. An entry without a tensor, or a tensor without an entry, is fine.
    """
    model = as_model(model)
    names = [entry for entry in imatrix.entries if entry in model.tensors]
    if not names:
        raise PlanError(
            f"none of its {len(imatrix.entries):,} entries is a tensor of {model.name}: it is the imatrix of another "
            "model",
            source=name,
            problems=_first_names(imatrix.entries, model.tensors),
        )
    problems = tuple(_misfits(model, imatrix, wanted))
    if problems:
        more = (f"and {len(problems) - _SHOWN:,} more",) if len(problems) > _SHOWN else ()
        raise PlanError(
            f"does not fit {model.name}: it is the imatrix of another model, or its experts are stored differently",
            source=name,
            problems=(*problems[:_SHOWN], *more),
        )


def _first_names(entries: Mapping[str, object], tensors: Mapping[str, object]) -> Sequence[str]:
    return (f"entries are {listed(list(entries), 3)}", f"tensors are {listed(list(tensors), 3)}")
