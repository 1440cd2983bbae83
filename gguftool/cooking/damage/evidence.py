"""Evidence about the damage that types do: measurements, given sensitivities, error tables, curves of types.

All sources are turned into this form (`sensitivities.py` reads files, `suite_csv.py` those of GGUF-Tool-Suite), and
`model.py` starts from it.  Tensors and types are given by name; types in the recipe's spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gguftool.record import record

Key = tuple[str, str]  # tensor, type
MOST: Final = 1e30  # no damage, error or factor is near it, and sums and products of such numbers stay finite


@record
class Observation:
    """The divergence of the whole model with `tensors` at one type: `value` in nats, `error` its standard error.

    `censored`: the true value is below `value`.  `interpolated`: the value was filled in, not measured.
    """

    tensors: tuple[str, ...]
    type: str
    value: float
    error: float
    censored: bool = False
    interpolated: bool = False


@record
class Given:
    """Damage computed elsewhere: of one tensor at one type, or (`type` None) for each unit of relative squared error.

    `spread` is one standard deviation of the logarithm of truth over value.
    """

    tensor: str
    type: str | None
    value: float
    spread: float


@record
class InputFile:
    """A file that numbers came from, for the header of a recipe."""

    name: str
    sha256: str


@record
class Evidence:
    """All evidence.  `errors` are relative squared errors; `curve` is the relative damage of types, on any scale.

    `models` are the digests of the measured models (`model_digest`); a file without one adds none.
    `unit` is that of the values: KLD (nats) or ln PPL.  `factor` is the correction that `plan --verify` found.
    """

    errors: Mapping[Key, float]
    curve: Mapping[str, float]
    observations: tuple[Observation, ...] = ()
    given: tuple[Given, ...] = ()
    unit: str = "KLD"
    factor: float = 1.0
    models: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def says_nothing(self) -> bool:
        """Whether no tensor's effect was measured: errors and curves alone do not show it."""
        return not self.observations and not self.given

    @property
    def tensors(self) -> frozenset[str]:
        """All tensors with any evidence."""
        observed = (name for one in self.observations for name in one.tensors)
        return frozenset([*observed, *(one.tensor for one in self.given), *(name for name, _ in self.errors)])


NOTHING = Evidence(errors={}, curve={})
