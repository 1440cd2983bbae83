"""Files that lists come from: ids of experts (JSON), tokens, and the slices of a mergekit merge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from gguftool.errors import PlanError, SourceError, did_you_mean, printable
from gguftool.format.file_names import normal_label
from gguftool.record import record
from gguftool.storage.sources.locate import open_source
from gguftool.storage.sources.source import Source
from gguftool.surgery.alter.alteration import Alteration
from gguftool.surgery.alter.state import Findings

T = TypeVar("T")
MAX_FILE = 32 << 20  # bytes; a list of every expert of the largest model has 1 MB
_MAX_YAML = 1 << 20  # bytes of a mergekit file; PyYAML takes 6 s for them, and 4,096 slices have half of them
_MOST_LAYERS = 1 << 20  # largest number in a layer_range; it is compared with the model's layers later


@record
class Lists:
    """The lists of an alteration, with ``@FILE`` replaced by the file's contents, and the files that were read."""

    layers: str | None
    experts: str | Mapping[int, Sequence[int]] | None
    vocab: str | Sequence[int] | None
    sources: tuple[Source, ...]


def read_lists(alteration: Alteration, labels: Sequence[str], findings: Findings) -> Lists:
    """The lists, read from their files; one that cannot be read becomes None, and a problem."""
    sources: list[Source] = []

    def layers_of(text: str, name: str) -> str:
        spans, remarks = parse_mergekit(text, name, labels)
        findings.remark(*remarks)
        return spans

    layers = _contents(alteration.layers, layers_of, sources, findings)
    experts = _contents(alteration.experts, parse_experts, sources, findings)
    vocab = _contents(alteration.vocab, parse_tokens, sources, findings)
    return Lists(layers=layers, experts=experts, vocab=vocab, sources=tuple(sources))


def _contents(value: T, parse: Callable[[str, str], T], sources: list[Source], findings: Findings) -> T | None:
    """A list as it was given, or the file of an ``@FILE`` as `parse` reads it."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    try:
        text, source = read_text(value.removeprefix("@"))
        sources.append(source)
        return parse(text, source.name)
    except (PlanError, SourceError) as error:
        findings.problem(str(error))
        return None


def read_text(name: str, limit: int = MAX_FILE) -> tuple[str, Source]:
    """Read the file `name` as text; raises `SourceError` if it cannot be read, `PlanError` if it is too large."""
    source = open_source(name)
    if source.size > limit:
        raise PlanError(f"has {source.size:,} bytes; a list has at most {limit:,}", source=source.name)
    return source.read_at(0, source.size).decode("utf-8", "replace").removeprefix("\ufeff"), source


def parse_experts(text: str, name: str) -> str | dict[int, tuple[int, ...]]:
    """Read JSON: ``{layer: [ids]}`` or ``[ids]``; any other text is a list as on the command line."""
    if not text.lstrip().startswith(("{", "[")):
        return "".join(text.split())
    data = _json(text, name)
    if data == {}:
        raise PlanError("lists no layers; the form is {layer: [ids of experts]}", source=name)
    if isinstance(data, dict):
        try:
            return {int(layer): _ids(ids) for layer, ids in data.items()}
        except (TypeError, ValueError):
            raise PlanError("is not of the form {layer: [ids of experts]}", source=name) from None
    return ",".join(map(str, _list_of_ids(data, name, "ids of experts")))


def parse_tokens(text: str, name: str) -> str | tuple[int, ...]:
    """Read token ids: a JSON list, ids separated by blanks or line ends, or a list with commas."""
    if text.lstrip().startswith("["):
        return _list_of_ids(_json(text, name), name, "ids of tokens")
    words = text.split()
    if words and all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        return tuple(map(int, words))
    return "".join(words)


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"is not JSON ({printable(str(error))})", source=name) from None


def _list_of_ids(data: Any, name: str, what: str) -> tuple[int, ...]:
    try:
        return _ids(data)
    except (TypeError, ValueError):
        raise PlanError(f"is not a list of {what}", source=name) from None


def _ids(data: object) -> tuple[int, ...]:
    if not isinstance(data, list) or not all(type(each) is int and each >= 0 for each in data):
        raise TypeError
    return tuple(data)


# --- mergekit --------------------------------------------------------------------------------------------------------


def parse_mergekit(text: str, name: str, labels: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Read the slices of a passthrough merge as a list of layers; also return remarks on ignored parts of the file.

    In a merge of one model, the model is the input. In a merge of several, each is the input labelled with the model's
    name, or the last part of that name. Raises one `PlanError` if the file is not such a merge, or if PyYAML is not
    installed.
    """
    data = _yaml(text, name)
    if not isinstance(data, dict) or data.get("merge_method") != "passthrough":
        raise PlanError("merge_method is not passthrough, the only one that copies layers unchanged", source=name)
    problems: list[str] = []
    sources = [_source_of(each, number, problems) for number, each in enumerate(_slices(data), start=1)]
    models = list(dict.fromkeys(model for model, _, _ in sources))
    given = {model: _label_of(model, labels, problems) for model in models} if len(models) > 1 else {}
    if problems or not sources:
        raise PlanError("is not a merge of slices", source=name, problems=problems or ["there are no slices"])
    ignored = sorted(str(key) for key in data if key not in ("slices", "merge_method"))
    remarks = (f"{name}: only slices are read; ignored: {printable(', '.join(ignored))}",) if ignored else ()
    spans = (f"{given[model]}:{first}-{end - 1}" if given else f"{first}-{end - 1}" for model, first, end in sources)
    return ",".join(spans), remarks


def _yaml(text: str, name: str) -> Any:
    if len(text) > _MAX_YAML:
        raise PlanError(f"has {len(text):,} characters; a mergekit file has at most {_MAX_YAML:,}", source=name)
    try:
        import yaml
    except ImportError:
        raise PlanError("is YAML, which needs PyYAML: pip install PyYAML", source=name) from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanError(f"is not YAML ({printable(' '.join(str(error).split()))})", source=name) from None


def _slices(data: Mapping[str, Any]) -> list[Any]:
    slices = data.get("slices")
    return slices if isinstance(slices, list) else []


def _source_of(entry: Any, number: int, problems: list[str]) -> tuple[str, int, int]:
    """The model and the range of a slice, its end excluded."""
    sources = entry.get("sources") if isinstance(entry, dict) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        problems.append(f"slice {number} does not have exactly one source")
        return "", 0, 1
    if "parameters" in sources[0] or "parameters" in entry:
        problems.append(f"slice {number} has parameters, which change weights; alter copies weights unchanged")
    bounds = sources[0].get("layer_range")
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(type(bound) is int for bound in bounds):
        problems.append(f"slice {number} has no layer_range of two numbers")
        return "", 0, 1
    if max(map(abs, bounds)) > _MOST_LAYERS:  # Python does not write out integers of any length
        problems.append(f"slice {number} has a layer_range beyond {_MOST_LAYERS:,}")
        return "", 0, 1
    if not 0 <= bounds[0] < bounds[1]:
        problems.append(f"slice {number} has the layer_range {bounds}, which is empty")
    model = sources[0].get("model")
    if isinstance(model, list | dict):  # YAML aliases can make a few bytes into text of any size
        problems.append(f"slice {number} has a model that is not a name")
        return "", 0, 1
    return str(model), bounds[0], bounds[1]


def _label_of(model: str, labels: Sequence[str], problems: list[str]) -> str:
    for name in (model, model.rpartition("/")[2]):
        if normal_label(name) in labels:
            return normal_label(name)
    short = model.rpartition("/")[2]
    near = did_you_mean(short, labels)
    problems.append(f"no input is labelled '{printable(model, 80)}': give {printable(short, 80)}=MODEL{near}")
    return ""
