"""Back ends that quantize numbers to the bytes of a tensor type, behind one small interface.

All types here are row-wise: rows of F32 in, whole rows of blocks out, and no row depends on another, so any range of
rows can be quantized by itself, in any thread.  Plain floats are only rounded.  Types that neither library knows (those
of ik_llama.cpp) are left to an installed llama-quantize, see `surgery/quantize/external.py`.

The column `quantized_by` of `format/ggml.py` lists the types of a back end, so that listing them needs no numpy; the
tests compare it with the libraries.  Sources: libgguf 0.2 (native; compared bit for bit with llama-quantize),
gguf/quants.py since gguf 0.17.  xllamacpp is llama.cpp itself, compiled, and exports ggml's C interface: if it is
installed, it makes libgguf's types, with the same bytes in about half the time for the k-quants.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguftool.errors import PlanError
from gguftool.format.dequantize import encode_floats
from gguftool.format.ggml import EXTERNAL, GGUF, LIBGGUF, PLAIN, TYPES, XLLAMACPP, TypeTraits

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows of F32 (rows, width) and weights of the columns (width,) or None, to bytes.
Encode = Callable[["NDArray[Any]", "NDArray[Any] | None"], "bytes | bytearray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """One back end: `types` are the names of the types that it makes, `version` is its release.

    `weighs`: it uses an imatrix.
    """

    name: str
    version: str
    types: tuple[str, ...]
    weighs: bool
    encoder: Callable[[TypeTraits], Encode] = field(repr=False)


def engine_makes(type_id: int, engine: str) -> bool:
    """Whether the llama-quantize of `engine` makes a type."""
    traits = TYPES[type_id]
    return EXTERNAL in traits.quantized_by and engine in traits.engines


def _made_by(backend: str) -> tuple[str, ...]:
    return tuple(traits.name for traits in TYPES.values() if backend in traits.quantized_by)


@cache
def best_quantizer() -> Quantizer:
    """Return the fastest installed back end: xllamacpp, libgguf, or `gguf.quants`, which is always installed."""
    if (library := _ggml_library()) is not None:
        return Quantizer(
            name=XLLAMACPP,
            version=_version(XLLAMACPP),
            types=_made_by(LIBGGUF),
            weighs=True,
            encoder=lambda traits: _ggml_encoder(library, traits),
        )
    return libgguf_quantizer() or gguf_quantizer()


def libgguf_quantizer() -> Quantizer | None:
    """Return the back end of libgguf, or None if the extra is not installed."""
    if importlib.util.find_spec("libgguf") is not None:
        return Quantizer(
            name=LIBGGUF, version=_version(LIBGGUF), types=_made_by(LIBGGUF), weighs=True, encoder=_libgguf_encoder
        )
    return None


def gguf_quantizer() -> Quantizer:
    """Return the back end of `gguf.quants`, which is always installed."""
    return Quantizer(name=GGUF, version=_version(GGUF), types=_made_by(GGUF), weighs=False, encoder=_gguf_encoder)


def plain_quantizer() -> Quantizer:
    """Return the back end that rounds floats, as ggml does."""
    return Quantizer(name=PLAIN, version="1", types=_made_by(PLAIN), weighs=False, encoder=_plain_encoder)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # it is on the path, but was not installed
        return "of unknown release"


# --- back ends -------------------------------------------------------------------------------------------------------


def _plain_encoder(traits: TypeTraits) -> Encode:
    return lambda rows, weights: encode_floats(rows, traits.name.lower())


# Parameters of ggml_quantize_chunk (ggml/include/ggml.h): type, rows of F32, bytes out, first element, rows, width,
# weights or null. It returns the number of bytes that it made.
_CHUNK = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
)


def _ggml_library() -> ctypes.CDLL | None:
    """Load the library in xllamacpp's package, without the package; None if it is absent or exports no quantizer."""
    spec = importlib.util.find_spec(XLLAMACPP)
    if spec is None or spec.origin is None:
        return None
    for path in Path(spec.origin).parent.glob(f"{XLLAMACPP}*.so"):
        try:
            library = ctypes.CDLL(str(path))
            library.ggml_quantize_chunk.argtypes = _CHUNK
            library.ggml_quantize_chunk.restype = ctypes.c_size_t
            for name in ("ggml_type_size", "ggml_blck_size"):
                getattr(library, name).argtypes = (ctypes.c_int,)
            library.ggml_type_size.restype = ctypes.c_size_t
            library.ggml_blck_size.restype = ctypes.c_int64
        except (OSError, AttributeError):
            continue
        return library
    return None


def _ggml_encoder(library: ctypes.CDLL, traits: TypeTraits) -> Encode:
    if (library.ggml_blck_size(traits.id), library.ggml_type_size(traits.id)) != (traits.block_size, traits.type_size):
        raise PlanError(f"this xllamacpp ({_version(XLLAMACPP)}) does not make {traits.name}: another release may")
    import numpy as np

    def encode(rows: NDArray[Any], weights: NDArray[Any] | None) -> bytearray:
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        weights = None if weights is None else np.ascontiguousarray(weights, dtype=np.float32)
        count, width = rows.shape
        out = np.empty(count * (width // traits.block_size) * traits.type_size, dtype=np.uint8)
        weights_at = None if weights is None else weights.ctypes.data
        made = library.ggml_quantize_chunk(traits.id, rows.ctypes.data, out.ctypes.data, 0, count, width, weights_at)
        if made != len(out):
            raise PlanError(f"xllamacpp made {made:,} bytes of {traits.name}, but {len(out):,} were expected")
        return bytearray(out.data)

    return encode


_warming = threading.Lock()


def _libgguf_encoder(traits: TypeTraits) -> Encode:
    """Return the native quantizer, with its tables initialized: doing that in two threads at once is not safe."""
    import numpy as np

    try:
        import libgguf
    except (ImportError, OSError) as error:
        raise PlanError(f"libgguf is installed but cannot be loaded: {error}") from error
    if libgguf.row_size(traits.id, traits.block_size) != traits.type_size:
        raise PlanError(f"this libgguf ({_version(LIBGGUF)}) does not make {traits.name}: another release may")
    with _warming:
        # A block of ones: some quantizers return early for zeros.
        ones = np.ones((1, traits.block_size), dtype=np.float32)
        libgguf.quantize_rows(ones, traits.id, ones[0])

    def encode(rows: NDArray[Any], weights: NDArray[Any] | None) -> bytearray:
        count, width = rows.shape
        out = bytearray(count * (width // traits.block_size) * traits.type_size)
        made = libgguf.quantize_rows_into_raw(traits.id, rows, out, count, width, weights)
        if made != len(out):
            raise PlanError(f"libgguf made {made:,} bytes of {traits.name}, but {len(out):,} were expected")
        return out

    return encode


def _gguf_encoder(traits: TypeTraits) -> Encode:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[traits.name]

    def encode(rows: NDArray[Any], weights: NDArray[Any] | None) -> bytes:  # noqa: ARG001 - it uses no weights
        with np.errstate(all="ignore"):
            return bytes(quantize(rows, kind).tobytes())

    return encode
