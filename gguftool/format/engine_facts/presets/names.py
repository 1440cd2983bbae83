"""Presets by name: the file types that a llama-quantize offers on its command line.

Source: llama.cpp tools/quantize/quantize.cpp, ik_llama.cpp examples/quantize/quantize.cpp (QUANT_OPTIONS,
try_parse_ftype).
"""

from __future__ import annotations

import difflib
from typing import Final

from gguftool.errors import printable
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.format.ftypes import FType, all_ftypes

_ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


# File types that an engine knows but cannot make: it does not offer the first, and aborts on the others.
_NOT_MADE: Final = {IK_LLAMA_CPP: frozenset({"Q1_0_G128", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8"})}


def presets_of(engine: str) -> dict[str, FType]:
    """The presets that the llama-quantize of `engine` makes, by name."""
    left_out = _NOT_MADE.get(engine, frozenset())
    return {each.name: each for each in all_ftypes(engine) if each.tensor_type and each.name not in left_out}


def find_preset(name: str, engine: str) -> FType:
    """Find the preset `name`, or the number of one, of `engine`; case does not matter.

    Raises `ValueError` for another name, with the nearest ones.
    """
    offered = presets_of(engine)
    wanted = name.strip().upper()
    wanted = _ALIASES.get(wanted, wanted)
    by_number = {str(each.id): each for each in offered.values()}
    found = offered.get(wanted) or by_number.get(wanted)
    if found is not None:
        return found
    near = difflib.get_close_matches(wanted, offered, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it offers {', '.join(offered)}"
    verb = "makes" if wanted in _NOT_MADE.get(engine, ()) else "has"
    raise ValueError(f"the llama-quantize of {engine} {verb} no preset '{printable(name, 80)}'; {hint}")
