"""Mixes that `plan` chooses against llama-quantize's presets of equal size, judged on held-out text.

    python -m benchmarks.cooking FOLDER [--chunks 8]

Needs SmolLM2 as the end-to-end tests do, and llama.cpp's tools (docs/testing.md). The model is its own reference: the
Q4_1 file dequantized, with noise of one step, or else 4-bit types would find the old steps again. Half of the
project's documentation measures, the other half judges. FOLDER keeps every part, and a run that was stopped goes on:
measuring 211 tensors takes half an hour on two quiet cores. Errors are of paired chunks of the held-out text.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.measure import PYTHON, Verdict, run
from gguftool.cooking.damage.sensitivities import EvidenceFiles, read_evidence
from gguftool.cooking.measuring.bench import make_maker, open_reference
from gguftool.cooking.measuring.scratch import Scratch
from gguftool.cooking.mix import MixOptions, Target
from gguftool.cooking.planning import choose_mix, plan_mix
from gguftool.engines.llama_perplexity import PerplexityRun, compare_logits, find_perplexity, save_logits
from gguftool.format.ggml import find_type
from tests.support.cooking import K_TYPES, smollm2, smollm2_offers
from tests.support.engine_tools import tool
from tests.support.smollm2 import make_reference, write_texts

_GGUFTOOL = (PYTHON, "-m", "gguftool")
FITTING = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")
TYPES = (*FITTING, "q2_K", "q3_K", "q4_K", "q5_K", "q6_K")
CONTEXT = 512
PRESETS = {"Q3_K_M": 0.10, "Q4_K_M": 0.05}  # and by how much less the plan's divergence must be, of K types
WITHIN = (0.7, 1.4)  # actual over predicted


class Materials:
    """The files in `folder`: reference, texts, imatrix, measurements; missing ones are made."""

    def __init__(self, folder: Path, chunks: int) -> None:
        self.folder = folder
        self.reference, self.imatrix = folder / "reference.gguf", folder / "imatrix.gguf"
        self.text, self.held_out = folder / "text.txt", folder / "held-out.txt"
        self.measured, self.errors = folder / "measure.jsonl", folder / "errors.jsonl"
        self.logits = folder / "held-out.logits"
        engine = find_perplexity(str(tool("llama-perplexity")), folder)
        self._run = PerplexityRun(engine=engine, context=CONTEXT, chunks=chunks)

    def prepare(self) -> None:
        """Make what is missing."""
        if not self.held_out.exists():
            write_texts((self.text, self.held_out))
        if not self.reference.exists():
            make_reference(self.reference)
        if not self.imatrix.exists():
            words = ("-m", self.reference, "-f", self.text, "-o", self.imatrix, "--chunks", 12, "-c", CONTEXT)
            run((tool("llama-imatrix"), *map(str, words)))
        with_imatrix = (*_GGUFTOOL, "measure", self.reference, "--imatrix", self.imatrix)
        engine = ("--engine", tool("llama-perplexity"), "--text", self.text, "--chunks", "2", "--types", "q4_0")
        run((*with_imatrix, *engine, "-o", self.measured))
        run((*with_imatrix, "--errors", "--any-width", "--types", ",".join(TYPES), "-o", self.errors))
        if not self.logits.exists():
            save_logits(self._run, self.reference, self.held_out, self.logits)

    def divergence(self, model: Path) -> list[float]:
        """The divergence of `model` from the reference in each chunk of the held-out text, in nats."""
        means = compare_logits(self._run, model, self.logits).running
        return [count * mean - (count - 1) * before for count, (before, mean) in _numbered(means)]


def _numbered(means: tuple[float, ...]) -> Iterator[tuple[int, tuple[float, float]]]:
    return enumerate(zip((0.0, *means), means, strict=False), start=1)


def _compared(what: str, ours: list[float], theirs: list[float], bar: float, predicted: float) -> Iterator[Verdict]:
    """Two lists of divergences by chunk: how much less ours is, with the error of paired chunks; and the prediction."""
    mine, other = statistics.mean(ours), statistics.mean(theirs)
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) / other
    detail = f"{mine:.4f} against {other:.4f} nats, standard error of the difference {100 * error:.1f} %"
    yield Verdict(what=what, value=mine / other, bar=1 - bar, unit="x", detail=detail)
    ratio, detail = mine / predicted, f"predicted {predicted:.4f}"
    yield Verdict(what=f"{what}: actual by predicted", value=ratio, bar=WITHIN[1], unit="x", detail=detail)
    yield Verdict(what=f"{what}: the same", value=ratio, bar=WITHIN[0], unit="x", detail=detail, at_least=True)


def as_it_runs(materials: Materials, preset: str) -> Iterator[Verdict]:
    """Types that fit the rows, built and run as they are, against llama-quantize's own file of the same size."""
    theirs, ours = materials.folder / f"preset-{preset}.gguf", materials.folder / f"plan-{preset}.gguf"
    run((tool("llama-quantize"), "--imatrix", materials.imatrix, materials.reference, theirs, preset))
    recipe, size = ours.with_suffix(".recipe"), theirs.stat().st_size
    options = MixOptions(target=Target(size=size), types=FITTING)
    evidence = read_evidence(EvidenceFiles(measure=(str(materials.measured), str(materials.errors))))
    mix = plan_mix(str(materials.reference), options, evidence)
    recipe.write_text(mix.recipe, encoding="utf-8")
    source = ("--from", materials.reference, "--imatrix", materials.imatrix)
    run((*_GGUFTOOL, "cook", recipe, *source, "--force", "-o", ours))
    assert ours.stat().st_size <= size
    what = f"{preset}'s size ({size / 1e6:.1f} MB), types that fit"
    yield from _compared(what, materials.divergence(ours), materials.divergence(theirs), 0, mix.damage)


def as_values(materials: Materials, preset: str) -> Iterator[Verdict]:
    """K types on rows that no file could hold them for: their values in F16, against the preset's types likewise.

    No tensors are tied, as presets tie none.
    """
    types = next(mix["types"] for name, mix in smollm2()["mixes"].items() if name.endswith(f"preset_{preset}"))
    offers = smollm2_offers(K_TYPES if preset == "Q3_K_M" else (*K_TYPES, "Q6_K"))
    sizes = {offer.name: dict(zip(offer.types, offer.nbytes, strict=True)) for offer in offers.offers}
    preset_types = {name: _alias(kind) for name, kind in types.items()}
    budget = sum(sizes[name][kind] for name, kind in preset_types.items())
    evidence = read_evidence(EvidenceFiles(measure=(str(materials.measured), str(materials.errors))))
    mix = choose_mix(offers, MixOptions(target=Target(tensor_bytes=budget), fuse=()), evidence)
    plan_types = {tensor.name: tensor.type for tensor in mix.tensors}
    ours, theirs = (_divergence_of(materials, chosen) for chosen in (plan_types, preset_types))
    yield from _compared(f"{preset}'s size, K types as values", ours, theirs, PRESETS[preset], mix.damage)


def _alias(name: str) -> str:
    traits = find_type(name)
    assert traits is not None
    return traits.alias


def _divergence_of(materials: Materials, types: Mapping[str, str]) -> list[float]:
    """The divergence of the reference with the values of `types`; a scratch copy holds them in F16."""
    model = open_reference(str(materials.reference))
    maker = make_maker(model, str(materials.imatrix), (), engine="llama.cpp", any_width=True)
    folder = materials.folder / "scratch"
    folder.mkdir(exist_ok=True)
    try:
        scratch = Scratch(model, folder)
        scratch.make()
        for name, kind in types.items():
            traits = find_type(kind)
            assert traits is not None
            scratch.write(maker, maker.make(name, traits.id))
        return materials.divergence(scratch.path)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure, plan, build and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=8, help="chunks of 512 tokens that judge")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    materials = Materials(args.folder.absolute(), args.chunks)
    materials.prepare()
    for preset in PRESETS:
        for verdicts in (as_values(materials, preset), as_it_runs(materials, preset)):
            for verdict in verdicts:
                print(verdict, flush=True)


if __name__ == "__main__":
    main()
