"""Presets by name: the file types that a llama-quantize offers on its command line.

Source: llama.cpp tools/quantize/quantize.cpp (QUANT_OPTIONS, try_parse_ftype).
"""

from __future__ import annotations

import difflib
from typing import Final

from gguftool.errors import printable
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.ftypes import FType, all_ftypes

_ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def find_preset(name: str, engine: str) -> FType:
    """Find the preset `name`, or the number of one, of `engine`; case does not matter.

    Raises `ValueError` for an engine without known mixes, and for another name, with the nearest ones.
    """
    if engine != LLAMA_CPP:
        raise ValueError(
            f"the mixes of {engine} are not known here, and those of {LLAMA_CPP} differ; give --recipe FILE or "
            f"--tensor PATTERN=TYPE, or run the llama-quantize of {engine} itself"
        )
    offered = {each.name: each for each in all_ftypes(engine) if each.tensor_type}
    wanted = name.strip().upper()
    wanted = _ALIASES.get(wanted, wanted)
    by_number = {str(each.id): each for each in offered.values()}
    found = offered.get(wanted) or by_number.get(wanted)
    if found is not None:
        return found
    near = difflib.get_close_matches(wanted, offered, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it offers {', '.join(offered)}"
    raise ValueError(f"the llama-quantize of {engine} has no preset '{printable(name, 80)}'; {hint}")
