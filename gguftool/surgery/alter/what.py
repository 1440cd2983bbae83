"""The WHAT of an operation: a pattern of names as elsewhere, or a group.

``:mtp``     layers for multi-token prediction, and tensors for it outside of layers
``:vision``  encoders of images and sound and their projectors, which Ollama keeps in the model's file
``:tied``    output.weight, if it has the bytes of token_embd.weight: without it engines use token_embd.weight
``:unused``  tensors that none of the requested engines reads
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguftool.errors import PlanError, did_you_mean
from gguftool.model.guards import OUTPUT, TOKEN_EMBD, is_tied
from gguftool.surgery.alter.state import State, integer, mtp_names, shown
from gguftool.surgery.selection import select_tensors

GROUPS = (":mtp", ":vision", ":tied", ":unused")
_VISION = re.compile(r"(?:v|a|mm|resampler)\.", re.ASCII)


def find_tensors(state: State, what: str, engines: Sequence[str]) -> list[str]:
    """The names of the tensors that `what` means, in the order of `state`.

    Raises `PlanError` if there are none, for a group with the reason. `:mtp` may be empty if the metadata counts layers
    for it.
    """
    if not what.startswith(":"):
        return list(select_tensors([what], [item.name for item in state.items]))
    if what not in GROUPS:
        raise PlanError(f"{shown(what)} is not a group{did_you_mean(what, GROUPS)}; groups are {', '.join(GROUPS)}")
    if what == ":mtp":
        return _mtp(state)
    if what == ":vision":
        found = [item.name for item in state.items if _VISION.match(item.name)]
        if not found:
            raise PlanError(":vision: the model has no encoder tensors (v.*, a.*, mm.*, resampler.*)")
        return found
    return _tied(state) if what == ":tied" else _unused(state, engines)


def _mtp(state: State) -> list[str]:
    found = mtp_names(state)
    if not found and not state.nextn and not integer(state.kvs, "nextn_predict_layers"):
        raise PlanError(":mtp: the model has no tensors for multi-token prediction, and its metadata counts none")
    return found


def _tied(state: State) -> list[str]:
    model = state.as_model()
    if not {OUTPUT, TOKEN_EMBD} <= model.tensors.keys():
        raise PlanError(f":tied: there is no {OUTPUT} next to {TOKEN_EMBD}, so nothing is stored twice")
    if not is_tied(model):
        raise PlanError(f":tied: {OUTPUT} differs from {TOKEN_EMBD}: without it the model computes something else")
    return [OUTPUT]


def _unused(state: State, engines: Sequence[str]) -> list[str]:
    """The surplus tensors of all `engines`, by the rule of `check` (A03)."""
    from gguftool.analysis.lint.check import CheckOptions, check

    surplus: set[str] | None = None
    for engine in engines:
        report = check(state.model, CheckOptions(engines=(engine,), select=("A03",)))
        if any(finding.undecided for finding in report.findings) or not report.readable:
            raise PlanError(f":unused: it is not known which tensors of {state.architecture} {engine} reads")
        names = {name for finding in report.findings for name in finding.tensors}
        surplus = names if surplus is None else surplus & names
    found = [item.name for item in state.items if item.name in (surplus or ())]
    if not found:
        raise PlanError(f":unused: {' or '.join(engines)} reads every tensor")
    return found
