"""Rules about the set of tensors: those that the architecture asks for, their dims, and those that nothing asks for.

Sources: llama.cpp src/models/*.cpp (load_arch_tensors) and src/llama-model-loader.cpp (check_tensor_dims,
done_getting_tensors: every tensor of the file must have been asked for), as data in format/engine_facts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gguftool.analysis.lint.heads.causes import (
    MAX_KEYS,
    Blame,
    Contradiction,
    Judgement,
    Place,
    Wanted,
    absent_cause,
    blamed,
    set_number,
)
from gguftool.analysis.lint.heads.hyperparameters import (
    ALLOW_RESHAPE,
    DUPLICATED,
    NOT_REQUIRED,
    SKIP_IF_VIRTUAL,
    TOKENS,
    Hyperparameters,
    hyperparameters,
    per_engine,
)
from gguftool.analysis.lint.heads.keys import MAX_BLOCKS
from gguftool.analysis.lint.heads.mending import by_mending, mending
from gguftool.analysis.lint.layers import layers_in_words
from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity
from gguftool.analysis.lint.target import LintTarget
from gguftool.errors import listed
from gguftool.format.engine_facts.engines import MAINLINE
from gguftool.format.engine_facts.heads import TensorFact
from gguftool.record import replace

_ROUNDS = 4  # keys that can be wrong at once
_NAMED = 4  # tensors that speak against a key
_NUMBER = re.compile(r"\.([0-9]{1,6})(?=\.)")
_SCALE = re.compile(r"\.(?:input_)?scale$")
_FETCH_OUT = "convert or fetch the model again, or take the tensor from another file with merge"
_DIFF_OUT = "metadata and tensors are from different models: diff with the original model shows which"
_DROP_OUT = (
    "convert or fetch the model again, correct the key that would make engines read these tensors, "
    "or leave them out with alter --drop"
)
_MTP_OUT = (
    "'gguftool alter FILE --drop :mtp -o NEW' corrects the keys; alter --take adds a head from a file that has one"
)


def _values(target: LintTarget, engine: str) -> Iterator[Hyperparameters]:
    """Yield the values by which the tensors of a complete set can be judged, if the layers can be counted."""
    for values in hyperparameters(target, engine):
        if target.missing:
            raise CannotEvaluate("the set is not complete")
        if values.named("n_layer_all") is not None:  # rules about keys report that it is absent
            yield values


def _layers(values: Hyperparameters) -> range:
    blocks = values.named("n_layer_all") or 0
    return range(min(max(blocks, 0), MAX_BLOCKS))


def _wanted(values: Hyperparameters) -> Iterator[Wanted]:
    """Yield every name that an engine may ask for, with its layer and the place."""
    for fact in values.architecture.tensors:
        if fact.name.count("%d") == 1:
            yield from ((fact.name.replace("%d", str(layer)), layer, fact) for layer in _layers(values))
        elif "%d" not in fact.name:
            yield fact.name, 0, fact


def _asked(values: Hyperparameters, fact: TensorFact, layer: int) -> bool | None:
    """Whether the engine asks for the tensor in `layer`; None if unknown."""
    if fact.fused and fact.fused.replace("%d", str(layer)) in values.target.by_name:
        return False
    return values.holds(fact.conditions, layer)


def _trunk(values: Hyperparameters) -> int:
    """Count the layers that are not for MTP."""
    return len(_layers(values)) - (values.field("n_layer_nextn") or 0)


def _grouped(found: dict[str, list[tuple[str, int]]]) -> Iterator[Hit]:
    """Yield one hit for each message, with its tensors and layers."""
    for message, places in found.items():
        numbered = sorted({layer for name, layer in places if name.startswith("blk.")})
        where = layers_in_words(numbered) if len(places) > 1 and numbered else places[0][0]
        yield Hit(message=message, where=where, tensors=tuple(name for name, _ in places))


@per_engine("A01", Severity.ERROR, way_out=_FETCH_OUT)
def tensor_missing(target: LintTarget, engine: str) -> Iterator[Hit]:
    """A tensor that the architecture requires is missing."""
    found: dict[str, dict[str, list[tuple[str, int]]]] = {}  # by the command that fixes it
    bare: dict[str, list[tuple[str, int]]] = {}  # of layers that have no tensor at all
    for values in _values(target, engine):
        trunk = _trunk(values)
        for name, layer, fact in _wanted(values):
            if name in target.by_name or _asked(values, fact, layer) is not True:
                continue
            flags = values.value(fact.flags, layer)
            if flags is None or flags & (NOT_REQUIRED | DUPLICATED | SKIP_IF_VIRTUAL):
                continue
            command = mending(target, engine, name, trunk)
            if "%d" in fact.name and layer not in target.layers:
                bare.setdefault(command, []).append((name, layer))
            else:
                message = f"{fact.name.replace('blk.%d.', '')} is missing"
                found.setdefault(command, {}).setdefault(message, []).append((name, layer))
    for command, by_message in found.items():
        yield from (replace(hit, way_out=command) for hit in _grouped(by_message))
    for command, places in bare.items():
        layers = layers_in_words(sorted({layer for _, layer in places}))
        message = f"{len(places):,} tensors of layers without any tensor are missing"
        names = tuple(name for name, _ in places)
        yield Hit(message=message, where=layers, tensors=names, way_out=command, cause=_block_count(target))


@per_engine("A02", Severity.ERROR, way_out=_DIFF_OUT)
def wrong_dims(target: LintTarget, engine: str) -> Iterator[Hit]:
    """A tensor has other dims than the metadata says."""
    for values in _values(target, engine):
        wanted = tuple(_wanted(values))
        wrong = dict(_judge(values, wanted).wrong)
        assumed: dict[str, int] = {}
        for _ in range(_ROUNDS):
            blames = blamed(values.assuming(assumed), wanted, wrong, _judge) if wrong else ()
            if not blames:
                break
            yield _blame_hit(target, blames)
            assumed[blames[0].key] = blames[0].fitting
            for place in blames[0].places:
                wrong.pop(place, None)
        cause = absent_cause(values.assuming(assumed), wrong)
        found: dict[str, list[tuple[str, int]]] = {}
        for place, each in wrong.items():
            found.setdefault(each.message, []).append(place)
        yield from (replace(hit, cause=cause) for hit in _grouped(found))


def _blame_hit(target: LintTarget, blames: tuple[Blame, ...]) -> Hit:
    """Make one hit for the key that tensors contradict; name several keys if each would explain it."""
    first, tensors = blames[0], tuple(name for name, _ in blames[0].places)
    more = " ..." if len(tensors) > _NAMED else ""
    shown = f"{len(tensors):,} tensors have dims for {{}}: {listed(tensors[:_NAMED])}{more}"
    if len(blames) == 1:
        where = first.key
        message = f"{first.value:,}{' entries' if where == TOKENS else ''}, but {shown.format(f'{first.fitting:,}')}"
        command = set_number(target, first.key, first.fitting, does="makes the key fit the tensors")
    else:
        where = " or ".join(each.key for each in blames[:MAX_KEYS])
        values, fitting = (
            " or ".join(f"{number:,}" for number in numbers)
            for numbers in zip(*((each.value, each.fitting) for each in blames[:MAX_KEYS]), strict=True)
        )
        message, command = f"{values}, but {shown.format(fitting)}", ""
    way_out = f"if the tensors are right, {command}" if command else ""
    return Hit(message=message, where=where, tensors=tensors, way_out=way_out, cause=first.key)


def _judge(values: Hyperparameters, wanted: Sequence[Wanted]) -> Judgement:
    """Compare the `wanted` tensors that are present with the metadata."""
    readings: dict[Place, list[TensorFact]] = {}
    for name, layer, fact in wanted:
        if name in values.target.by_name and _asked(values, fact, layer) is not False:
            readings.setdefault((name, layer), []).append(fact)
    judged = ((place, _dims_against(values, *place, facts)) for place, facts in readings.items())
    wrong = {place: each for place, each in judged if each is not None}
    return Judgement(places=frozenset(readings), wrong=wrong)


def _dims_against(values: Hyperparameters, name: str, layer: int, facts: list[TensorFact]) -> Contradiction | None:
    """Find the contradiction if no place that asks for the tensor takes its dims; None if one may."""
    dims = values.target.by_name[name].info.dims
    asked: list[tuple[int, ...]] = []
    for fact in facts:
        flags = values.value(fact.flags, layer)
        if (flags or 0) & DUPLICATED:  # the engine asks for it elsewhere, too
            continue
        wanted = [values.value(dim, layer) for dim in fact.dims]
        if values.holds(fact.conditions, layer) is None or None in wanted:
            return None
        if (flags or 0) & ALLOW_RESHAPE or (flags is None and "RESHAPE" in fact.flags):
            return None
        numbers = [number for number in wanted if number is not None]
        if _padded(numbers) == _padded(list(dims)):
            return None
        asked.append(tuple(numbers))
    if not asked:
        return None
    role = facts[0].name.replace("blk.%d.", "")
    right = " or ".join(dict.fromkeys(map(_dims_in_words, asked)))
    message = f"{role} is {_dims_in_words(dims)}; by the metadata it should be {right}"
    return Contradiction(found=tuple(dims), wanted=asked[0], message=message)


def _dims_in_words(dims: Sequence[int]) -> str:
    return " x ".join(f"{dim:,}" for dim in dims)


def _padded(dims: list[int]) -> list[int]:
    return [*dims, *[1] * (4 - len(dims))]


@per_engine("A03", Severity.ERROR, way_out=_DROP_OUT)
def tensor_unknown(target: LintTarget, engine: str) -> Iterator[Hit]:
    """Nothing in the architecture asks for a tensor: the engine stops with "wrong number of tensors"."""
    for values in _values(target, engine):
        if not values.architecture.complete:
            raise CannotEvaluate(f"{target.architecture} asks for some tensors in ways that are not known")
        by_name: dict[str, list[TensorFact]] = {}
        for fact in values.architecture.tensors:
            by_name.setdefault(fact.name, []).append(fact)
        blocks = len(_layers(values))
        surplus = [name for name in target.by_name if not _is_known(values, by_name, name, blocks)]
        behind = tuple(name for name in surplus if (target.by_name[name].layer or 0) >= blocks)
        if behind:
            message = f"block_count is {blocks:,}: nothing asks for tensors of later layers"
            marked = next((name for name in behind if ".nextn." in name), "")
            command = mending(target, engine, marked, blocks) if marked else ""
            yield Hit(message=message, tensors=behind, way_out=command, cause=_block_count(target))
        others = set(surplus).difference(behind)
        for command, names in by_mending(target, engine, filter(others.__contains__, surplus), _trunk(values)).items():
            message = f"nothing in the architecture {target.architecture} asks for this"
            yield Hit(message=message, tensors=names, way_out=command)


def _block_count(target: LintTarget) -> str:
    return f"{target.architecture}.block_count"


def _is_known(values: Hyperparameters, by_name: dict[str, list[TensorFact]], name: str, blocks: int) -> bool:
    number = _NUMBER.search(name)
    layer = int(number[1]) if number else 0
    pattern = _NUMBER.sub(".%d", name)
    if number and layer >= blocks:
        return False
    if pattern in values.facts.scales and pattern not in by_name:
        return f"{_SCALE.sub('', name)}.weight" in values.target.by_name
    return any(_asked(values, fact, layer) is not False for fact in by_name.get(pattern, ()))


@per_engine("A04", Severity.WARNING, engines=MAINLINE, way_out=_MTP_OUT)
def mtp_promised(target: LintTarget, engine: str) -> Iterator[Hit]:
    """The metadata promises layers for multi-token prediction (MTP), but their tensors are missing."""
    for values in _values(target, engine):
        nextn, blocks = values.field("n_layer_nextn"), values.field("n_layer_all")
        if not nextn or blocks is None or nextn > blocks:
            continue
        last = range(blocks - nextn, blocks)
        bare = [layer for layer in last if not any("nextn" in role for role in target.layers.get(layer, ()))]
        if bare:
            message = f"nextn_predict_layers is {nextn:,}, but there is no nextn tensor: real layers may be skipped"
            yield Hit(message=message, where=layers_in_words(bare))
