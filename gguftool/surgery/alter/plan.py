"""Plan an altered model: the operations in their order, the guards, and the file that the tensors make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gguftool.errors import PlanError, listed
from gguftool.format.kv import KV
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, StrPath, as_model
from gguftool.record import record, replace
from gguftool.storage.plan import Plan
from gguftool.storage.sources.source import Source
from gguftool.surgery.alter.alteration import Alteration, check_alteration
from gguftool.surgery.alter.experts import select_experts
from gguftool.surgery.alter.files import parse_experts, parse_mergekit, parse_tokens, read_text
from gguftool.surgery.alter.fuse import fuse, unfuse
from gguftool.surgery.alter.layers import select_layers
from gguftool.surgery.alter.rename import rename
from gguftool.surgery.alter.state import Findings, State, state_of
from gguftool.surgery.alter.take import drop, keep, take
from gguftool.surgery.alter.views import plan_views
from gguftool.surgery.alter.vocabulary import change_vocabulary
from gguftool.surgery.compatibility import refuse_not_computable, require_complete
from gguftool.surgery.edit.plan import Edits, edited
from gguftool.surgery.metadata import SelectedTensor, output_metadata
from gguftool.surgery.planned_head import judge_planned

Operation = Callable[[State], State]


@record
class Lists:
    """The lists of an alteration with the contents of their files, and these files."""

    layers: str | None
    experts: str | Mapping[int, Sequence[int]] | None
    vocab: str | Sequence[int] | None
    sources: tuple[Source, ...]
    remarks: tuple[str, ...]


def plan_alter(
    model: ModelLike,
    alteration: Alteration,
    output: StrPath,
    donors: Mapping[str, ModelLike] | None = None,
) -> Plan:
    """Plan `model` with the operations of `alteration` as the file `output`; with a size limit, as a set.

    `donors`: label -> the model that operations call so; the input may have a label, too. Every change of metadata is a
    remark. Nothing is read but heads, lists, and tensors that must be compared (`:tied`, scales).
    Raises one `PlanError` with all problems: lists out of range, groups that do not divide, donors of other widths or
    vocabularies, operations that exclude each other, what would compute something else; and another one with every
    reason why one of `alteration.engines` would not load the output.
    """
    model = as_model(model)
    require_complete(model)
    opened = {label: as_model(donor) for label, donor in (donors or {}).items()}
    findings = Findings()
    findings.problem(*check_alteration(alteration))
    lists = _read_lists(alteration, tuple(opened), findings)
    _raise(findings, anyway=alteration.output.anyway)
    findings.remark(*lists.remarks)
    altered = _altered(model, alteration, lists, opened, findings)
    kvs, sources = _edited(altered, alteration, findings)
    _raise(findings, anyway=alteration.output.anyway)
    return _laid_out(replace(altered, kvs=kvs), alteration, output, [*opened.values()], (*lists.sources, *sources), findings)
