"""The tiny models in other types, with tensors in any order: files that surgery must give back byte for byte.

Their data is filler; nobody computes with them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from hypothesis import strategies as st

from tests.support import builders as b
from tests.support.tiny_models import MODELS, TinyModel

# A row takes the types with blocks that divide it.
_WIDE = ("Q4_K", "Q6_K", "IQ4_XS", "IQ4_KS", "IQ5_KS", "IQ2_KS")
_NARROW = ("Q8_0", "Q4_0", "IQ4_NL", "F16", "BF16")
_IN_ORDER, _SORTED = -1, -2
_QUANTIZED = (b.KV("general.quantization_version", b.U32, 2), b.KV("quantize.imatrix.file", b.STR, "i.gguf"))


@dataclass(frozen=True)
class ShuffledModel:
    """The tiny model `name`, its matrices in two types; `shuffle` seeds the order of its tensors.

    Tensors in whose name the expression `drop` is found are left out, `more` come behind the others; `keys` of the
    architecture get new values.
    """

    name: str
    kinds: tuple[str, str]
    shuffle: int
    byte_order: str
    more: tuple[b.Tensor, ...] = ()
    drop: str = ""
    keys: tuple[tuple[str, int], ...] = ()

    def data(self) -> bytes:
        """The file."""
        model = _tiny(self.name)
        for key, value in self.keys:
            model = model.with_own(key, b.U32, value)
        names = [name for name in model.weights if not self.drop or not re.search(self.drop, name)]
        tensors = [_tensor(name, tuple(reversed(model.weights[name].shape)), self.kinds) for name in names]
        tensors += self.more
        if self.shuffle == _SORTED:
            tensors.sort(key=lambda one: str(one.name))
        elif self.shuffle != _IN_ORDER:
            random.Random(self.shuffle).shuffle(tensors)
        first, *rest = model.kvs.values()
        return b.gguf((first, *_QUANTIZED, *rest), tensors, order=self.byte_order)


@cache
def _tiny(name: str) -> TinyModel:
    return MODELS[name]()


def _tensor(name: str, dims: tuple[int, ...], kinds: Sequence[str]) -> b.Tensor:
    fitting = [kind for kind in kinds if len(dims) > 1 and dims[0] % b.TYPES[kind][1] == 0]
    return b.tensor(name, fitting[0] if fitting else "F32", dims)


def models(names: Sequence[str] = tuple(MODELS)) -> st.SearchStrategy[ShuffledModel]:
    """Files of the tiny models `names`."""
    return st.builds(
        ShuffledModel,
        name=st.sampled_from(names),
        kinds=st.tuples(st.sampled_from(_WIDE), st.sampled_from(_NARROW)),
        shuffle=st.integers(_SORTED, 1000),
        byte_order=st.sampled_from("<>"),
    )
