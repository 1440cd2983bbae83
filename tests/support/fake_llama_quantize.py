#!/usr/bin/env python3
"""A stand-in for llama-quantize: the same command line, the quantizers of libgguf, ik types from the zoo.

It is as strict as the real ones: it exits with 1 on unknown options and types. A tensor that no rule matches is an
error here too, since the caller has no reason to send one.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from gguftool.format.ggml import TYPES, type_name
from gguftool.format.recipe import Recipe, make_rule, spelling
from gguftool.model.companions import open_imatrix
from gguftool.model.layout import Dialect, gguf_file
from gguftool.model.model import Model, Tensor
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Plan
from gguftool.surgery.quantize.options import QuantizeOptions, Weights
from gguftool.surgery.quantize.plan import plan_quantize


def main(arguments: list[str]) -> int:
    rules: list[tuple[str, str]] = []
    weights, requantize, engine = None, False, os.environ.get("FAKE_ENGINE", "llama.cpp")
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option == "--allow-requantize":
            requantize = True
        elif option == "--imatrix":
            weights = open_imatrix(arguments.pop(0))
        elif option == "--tensor-type" and engine == "llama.cpp":
            rules.append(tuple(arguments.pop(0).lower().split("=")))  # type: ignore[arg-type]
        elif option == "--custom-q" and engine == "ik_llama.cpp":
            rules += [tuple(rule.split("=")) for rule in arguments.pop(0).split(",")]  # type: ignore[misc]
        else:
            print(f"unknown option {option}")
            return 1
    source, output, default, threads = arguments
    if default != "Q8_0" or int(threads) < 1:
        return 1
    model = open_model(source)
    if model.get("general.architecture") is None:
        print("error: architecture not found in the file")
        return 1
    made = []
    for name, tensor in model.tensors.items():
        target = next(target for pattern, target in rules if re.search(pattern, name))
        made.append(_make(model, tensor, target, engine, weights, requantize))
    dialect = Dialect(version=3, byte_order=model.byte_order, alignment=32)
    plan = Plan(outputs=(gguf_file(Path(output), model.kvs, made, dialect),), inputs=())
    execute(plan, Options(sync=False))
    return 0


def _make(model: Model, tensor: Tensor, target: str, engine: str, weights: object, requantize: bool) -> Tensor:
    if engine == "ik_llama.cpp":
        return _from_zoo(tensor, target)
    wanted = next(traits for traits in TYPES.values() if spelling(traits.id, engine).lower() == target)
    rule = make_rule(f"^{re.escape(tensor.info.name)}$", wanted.name)
    given = Weights(imatrix=weights, name="w") if weights is not None else None  # type: ignore[arg-type]
    options = QuantizeOptions(weights=given, requantize=requantize)
    one = Path(os.environ["FAKE_FOLDER"]) / f"{tensor.info.name}.gguf"
    execute(plan_quantize(model, Recipe(rules=(rule,)), one, options), Options(sync=False, force=True))
    return open_model(one).tensors[tensor.info.name]


def _from_zoo(tensor: Tensor, target: str) -> Tensor:
    """The bytes that the real ik_llama.cpp made of the same tensor."""
    from dataclasses import replace

    zoo = Path(os.environ["FAKE_ZOO"])
    floats, made = open_model(zoo / "zoo-f32-ik.gguf"), open_model(zoo / "zoo-ik.gguf")
    data = tensor.extent.read()
    name = next(name for name, each in floats.tensors.items() if each.extent.read() == data)
    found = made.tensors[name]
    if spelling(found.info.type, "ik_llama.cpp") != target:
        raise SystemExit(f"{name} is {type_name(found.info.type)} in the zoo, asked for was {target}")
    return replace(found, info=replace(found.info, name=tensor.info.name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
