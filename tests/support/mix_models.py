"""One small model quantized in several ways, for the tests of mixing.

All files have different data, so a tensor from the wrong input shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguftool
from gguftool.format.recipe import parse_recipe
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Plan
from gguftool.surgery.inputs import open_inputs
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.selection import SelectionOptions
from tests.support import builders as b

SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (256, 4),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 6),
    "blk.0.attn_output.weight": (256, 6),
    "blk.0.ffn_down.weight": (256, 7),
    "output_norm.weight": (256,),
    "output.weight": (256, 4),
}
NORMS = tuple(name for name in SHAPES if "norm" in name)
FILE_TYPE, QUANT_VERSION = "general.file_type", "general.quantization_version"


def data_of(label: str, name: str, kind: str, dims: Sequence[int]) -> bytes:
    return b.filler(f"{label}:{name}", b.size_of(kind, dims or (1,)))


def quant_tensors(
    kind: str, label: str = "", types: Mapping[str, str] | None = None, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> tuple[b.Tensor, ...]:
    """Matrices as `kind`, vectors as F32, except for `types`."""
    made = []
    for name, dims in shapes.items():
        own = (types or {}).get(name, "F32" if len(dims) == 1 else kind)
        made.append(b.Tensor(name, dims, b.TYPES[own][0], data_of(label or kind, name, own, dims)))
    return tuple(made)


def quant(
    path: Path,
    kind: str,
    *kvs: b.KV,
    types: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    llama: bool = True,
    **options: object,
) -> str:
    """Write the model as `kind` to `path` and return its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = b.llama_kvs() if llama else ()
    path.write_bytes(b.gguf((*base, *kvs), quant_tensors(kind, path.name, types, shapes), **options))  # type: ignore[arg-type]
    return str(path)


def per_tensor(folder: Path, prefix: str, kind: str, *, only: Sequence[int] = (), **options: object) -> Path:
    """Write a set with one tensor per shard into `folder` (only the shards `only`, from 1) and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = quant_tensors(kind, prefix)
    shards = b.shard_set(prefix, [(), *((tensor,) for tensor in tensors)], **options)
    for number, (name, data) in enumerate(shards.items(), start=1):
        if not only or number in only:
            (folder / name).write_bytes(data)
    return folder


def output_options(options: dict[str, Any]) -> OutputOptions:
    """Take the fields of `OutputOptions` out of `options`."""
    fields = ("alignment", "force_sizes", "filler", "max_size", "keep_file_type", "engines", "anyway", "true_file_type")
    return OutputOptions(**{key: options.pop(key) for key in fields if key in options})


def merge_plan(arguments: Sequence[object], output: Path, recipe: str | None = None, **options: object) -> Plan:
    """Plan as the command does; what belongs to the mix or the output's layout goes there."""
    mix = SelectionOptions(**{key: options.pop(key) for key in ("strict", "allow_fallback") if key in options})  # type: ignore[arg-type]
    if isinstance(options.get("kv_from"), (str, Path)):
        options["kv_from"] = gguftool.open_model(options["kv_from"])  # type: ignore[arg-type]
    parsed = None if recipe is None else parse_recipe(recipe)
    inputs = open_inputs([str(argument) for argument in arguments])
    layout = output_options(options)
    return plan_merge(inputs, output, MergeOptions(recipe=parsed, selection=mix, output=layout, **options))  # type: ignore[arg-type]


def write(plan: Plan) -> None:
    execute(plan, Options(sync=False))


def merged(arguments: Sequence[object], output: Path, recipe: str | None = None, **options: object) -> Model:
    """Plan, execute, open."""
    plan = merge_plan(arguments, output, recipe, **options)
    write(plan)
    return gguftool.open_model(plan.outputs[0].path)


def origin(model: Model, name: str, inputs: Sequence[object]) -> str:
    """The name of the only input with the bytes of tensor `name`."""
    wanted = model.tensors[name].extent.read()
    found = [str(path) for path in inputs if gguftool.open_model(str(path)).tensors[name].extent.read() == wanted]
    assert len(found) == 1, (name, found)
    return Path(found[0]).name


def value(model: Model, key: str) -> object:
    kv = model.get(key)
    return None if kv is None else kv.value()
