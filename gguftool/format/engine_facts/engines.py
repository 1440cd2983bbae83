"""The engines, by name, and their differences that do not depend on a tensor's type.

A new engine is one row of `ENGINES`.  Then name it in the `engines` column of `format/ggml.py` for each type that it
loads, and give its facts under its name in `types`, `fallback` and `embeddings`; a missing fact means "nothing
special".  `MAINLINE`, `IK` and `BOTH` are groups for tables and rules: a fact that was found for these two engines says
nothing about a third.
"""

from __future__ import annotations

from typing import Final

from gguftool.format.kv import ValueType
from gguftool.record import record

LLAMA_CPP: Final = "llama.cpp"
IK_LLAMA_CPP: Final = "ik_llama.cpp"

MAINLINE: Final[tuple[str, ...]] = (LLAMA_CPP,)
IK: Final[tuple[str, ...]] = (IK_LLAMA_CPP,)
BOTH: Final[tuple[str, ...]] = MAINLINE + IK


@record
class Engine:
    """The behaviour of one engine's llama-quantize, whatever the type.

    `second_fallback` is the type it writes if a row does not divide into the blocks of the fallback type either; empty
    if it does not check that.  `custom_q`: it takes rules in one ``--custom-q``, not in ``--tensor-type`` options.
    `imatrix_number`: the value type in which it counts an imatrix in the output's metadata.
    """

    second_fallback: str = ""
    custom_q: bool = False
    imatrix_number: ValueType = ValueType.UINT32


# In the order of reports.
ENGINES: Final[dict[str, Engine]] = {
    LLAMA_CPP: Engine(second_fallback="F16"),
    IK_LLAMA_CPP: Engine(custom_q=True, imatrix_number=ValueType.INT32),
}
