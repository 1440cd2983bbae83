"""The levels of damage that a plan uses: measured levels, or those of a preset if nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguftool.cooking.damage.evidence import NOTHING, Evidence
from gguftool.cooking.damage.model import DamageModel, Levels, PresetLevels, Subject
from gguftool.cooking.offers import Offer
from gguftool.cooking.rivals import FAMILY, Scale, nearest_preset
from gguftool.record import record
from gguftool.storage.sources.locate import base_name


@record
class LevelSource:
    """The inputs of levels.

    `presets` has the types of each preset by name; `start` the name and types of a recipe to improve on, which is used
    instead of presets.
    """

    offers: Sequence[Offer]
    subjects: Sequence[Subject]
    presets: Mapping[str, Mapping[str, str]]
    engine: str
    evidence: Evidence
    start: tuple[str, Mapping[str, str]] | None = None

    def choose(self, wanted: int) -> tuple[Levels, str]:
        """The levels for a mix of about `wanted` bytes, and a description of their basis, without folders."""
        evidence = self.evidence
        if not evidence.says_nothing:
            what = "measured" if evidence.observations else "given"
            names = ", ".join(base_name(one.name) for one in evidence.inputs)
            return DamageModel(self.subjects, evidence), f"damage {what} ({names})"
        if self.start is not None:
            return self.preset_levels(None), f"nothing was measured: the levels of {base_name(self.start[0])}"
        what = "only errors were measured, no divergence" if evidence.errors else "nothing was measured"
        name = nearest_preset(self.presets, self.preset_sizes(), wanted)
        if name is None:
            basis = f"{what}, and no preset is known for this model: all weights count alike"
        else:
            basis = f"{what}: the levels of the preset {name}, scaled to the budget"
        return self.preset_levels(name), basis

    def preset_levels(self, name: str | None) -> PresetLevels:
        """The levels of one preset; without one, those of the recipe to start from, else all weights count alike."""
        like = (name, self.presets[name]) if name is not None else self.start or ("", {})
        types = self._plain().price(*like).types if like[1] else {}
        return PresetLevels(self.subjects, types, self.evidence)

    def preset_sizes(self) -> dict[str, int]:
        """The bytes of the presets to use, from small to large; empty with a recipe to start from."""
        if self.start is not None:
            return {}
        plain = self._plain()
        return {name: plain.price(name, self.presets[name]).nbytes for name in FAMILY if name in self.presets}

    def _plain(self) -> Scale:
        return Scale(self.offers, DamageModel(self.subjects, NOTHING), self.engine)
