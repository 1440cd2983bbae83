"""Plan a file from metadata and tensors; tensors may be views, made of parts of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguftool.errors import PlanError, listed
from gguftool.format.kv import KV, find_kv
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.model.padding import PADDING_KEY
from gguftool.model.views import name_problems, without_split_keys
from gguftool.record import replace
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.source import Source
from gguftool.surgery.merge import lay_out


def plan_views(
    kvs: Sequence[KV],
    tensors: Sequence[Tensor],
    output: StrPath,
    options: OutputOptions | None = None,
    *,
    like: ModelLike,
    remarks: Sequence[str] = (),
) -> Plan:
    """Plan the file `output` with the metadata `kvs` and `tensors` in this order; with `options.max_size` a set.

    `like` gives version, byte order, alignment and padding of the head; its files and those of the tensors are the
    inputs. Keys that say how a model is split are left out. The metadata and all tensors of a single-file model give
    that file byte for byte. Raises one `PlanError` for duplicate names and different byte orders, another one for sizes
    in doubt.
    """
    options, output, like = options or OutputOptions(), Path(output), as_model(like)
    _refuse_problems(tensors, like)
    dialect = options.dialect_for(like)
    if find_kv(kvs, PADDING_KEY) is not None:
        dialect = replace(dialect, filler=replace(dialect.filler, at_least=like.files[0].header.data_offset))
    plan = lay_out(output, without_split_keys(kvs), tuple(tensors), dialect, options.max_size, (like,), remarks)
    return replace(plan, inputs=_inputs(like, plan.outputs))


def _inputs(like: Model, outputs: Sequence[OutputFile]) -> tuple[Source, ...]:
    """The files of `like`, and all other files that give bytes."""
    used = (copy.extent.source for output in outputs for copy in output.copies)
    return tuple(dict.fromkeys((*like.sources, *used)))


def _refuse_problems(tensors: Sequence[Tensor], like: Model) -> None:
    problems = name_problems(tensors)
    other = [tensor.name for tensor in tensors if tensor.byte_order is not like.byte_order]
    if other:
        order = like.byte_order.name.lower()
        problems.append(f"the output is {order}-endian, like {like.name}, but these tensors are not: {listed(other)}")
    if len(problems) == 1:
        raise PlanError(problems[0])
    if problems:
        raise PlanError(f"cannot lay out {len(tensors):,} tensors", problems=problems)
