"""Back ends that quantize: numbers to the bytes of a tensor type, behind one small interface.

All types here are row-wise: rows of F32 in, whole rows of blocks out, and no row depends on another, so any range of
rows can be quantized by itself, in any thread.  Plain floats need no back end.  Types that neither library here knows
(those of ik_llama.cpp) are the business of an installed llama-quantize, see `surgery/quantize/external.py`.

What a back end offers stands in tables, so that it can be listed without loading numpy; the tests compare them with the
libraries.  Sources: libgguf 0.2 (native; compared bit for bit with llama-quantize), gguf/quants.py of gguf 0.17 on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from gguftool.errors import PlanError
from gguftool.format.dequantize import encode_floats
from gguftool.format.ggml import TYPES, TypeTraits

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIBGGUF: Final = "libgguf"
GGUF: Final = "gguf"
EXTERNAL: Final = "llama-quantize"
PLAIN: Final = "gguftool"  # float to float

PLAIN_TYPES: Final = ("F32", "F16", "BF16")
_SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
_LIBGGUF_TYPES = (
    *_SIMPLE,
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("NVFP4", "Q1_0"),
)
# Types of leftovers that engines load but quantize to no more (ggml_quantize_chunk aborts).
_NOT_MADE = frozenset({"Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "I2_S"})

# Rows of F32 (rows, width) and weights of the columns (width,) or None, to bytes.
Encode = Callable[["NDArray[Any]", "NDArray[Any] | None"], "bytes | bytearray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """One back end: `types` are the names of the types that it makes, `version` says which release.

    `weighs` says whether it heeds an imatrix.
    """

    name: str
    version: str
    types: tuple[str, ...]
    weighs: bool
    encoder: Callable[[TypeTraits], Encode] = field(repr=False)


def quantizers_of(type_id: int) -> tuple[str, ...]:
    """Return the names of the back ends that make a type, installed or not."""
    name = TYPES[type_id].name
    offers = ((PLAIN, PLAIN_TYPES), (LIBGGUF, _LIBGGUF_TYPES), (GGUF, _SIMPLE))
    listed = tuple(backend for backend, names in offers if name in names)
    return (*listed, EXTERNAL) if any(engine_makes(type_id, engine) for engine in TYPES[type_id].engines) else listed


def engine_makes(type_id: int, engine: str) -> bool:
    """Whether the llama-quantize of `engine` makes a type."""
    traits = TYPES[type_id]
    made = (traits.is_quantized or traits.name == "BF16_R16") and traits.name not in _NOT_MADE
    return made and traits.in_files and engine in traits.engines


@cache
def best_quantizer() -> Quantizer:
    """Return libgguf where the extra is installed, else what `gguf.quants` can do."""
    if importlib.util.find_spec("libgguf") is not None:
        return Quantizer(
            name=LIBGGUF, version=_version(LIBGGUF), types=_LIBGGUF_TYPES, weighs=True, encoder=_libgguf_encoder
        )
    return gguf_quantizer()


def gguf_quantizer() -> Quantizer:
    """Return the back end of `gguf.quants`, which is always there."""
    return Quantizer(name=GGUF, version=_version(GGUF), types=_SIMPLE, weighs=False, encoder=_gguf_encoder)


def plain_quantizer() -> Quantizer:
    """Return the one that rounds floats, as ggml does."""
    return Quantizer(name=PLAIN, version="1", types=PLAIN_TYPES, weighs=False, encoder=_plain_encoder)


def _version(package: str) -> str:
    return importlib.metadata.version(package)


# --- back ends -------------------------------------------------------------------------------------------------------


def _plain_encoder(traits: TypeTraits) -> Encode:
    return lambda rows, weights: encode_floats(rows, traits.name.lower())


_warming = threading.Lock()


def _libgguf_encoder(traits: TypeTraits) -> Encode:
    """Return the native quantizer; its tables are made here, as making them in two threads at once is not safe."""
    import numpy as np

    try:
        import libgguf
    except (ImportError, OSError) as error:
        raise PlanError(f"libgguf is installed but cannot be loaded: {error}") from error
    if libgguf.row_size(traits.id, traits.block_size) != traits.type_size:
        raise PlanError(f"this libgguf ({_version(LIBGGUF)}) does not make {traits.name}: another release may")
    with _warming:
        # A block of ones: zeros end some quantizers early.
        ones = np.ones((1, traits.block_size), dtype=np.float32)
        libgguf.quantize_rows(ones, traits.id, ones[0])

    def encode(rows: NDArray[Any], weights: NDArray[Any] | None) -> bytearray:
        count, width = rows.shape
        out = bytearray(count * (width // traits.block_size) * traits.type_size)
        made = libgguf.quantize_rows_into_raw(traits.id, rows, out, count, width, weights)
        if made != len(out):
            raise PlanError(f"libgguf made {made:,} bytes of {traits.name} where {len(out):,} were due")
        return out

    return encode


def _gguf_encoder(traits: TypeTraits) -> Encode:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[traits.name]

    def encode(rows: NDArray[Any], weights: NDArray[Any] | None) -> bytes:  # noqa: ARG001 - it weighs nothing
        with np.errstate(all="ignore"):
            return bytes(quantize(rows, kind).tobytes())

    return encode
