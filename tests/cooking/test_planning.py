"""Plans as a whole: the real instance, devices for a large mixture of experts, demands that cannot be met."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from gguftool.cooking.damage.evidence import NOTHING, Evidence, Observation
from gguftool.cooking.damage.sensitivities import EvidenceFiles
from gguftool.cooking.devices import Context, parse_devices
from gguftool.cooking.mix import Mix, MixOptions, Slow, Target
from gguftool.cooking.model_digest import model_digest
from gguftool.cooking.planning import choose_mix, plan_mix
from gguftool.cooking.solving.milp import Limit, solve_milp
from gguftool.errors import PlanError
from gguftool.format.ggml import find_type, nbytes
from gguftool.format.recipe import parse_recipe
from gguftool.format.tensors_map import MapEntry, render_map
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.render.units import parse_size
from tests.support import cooking
from tests.support.cooking import EMBEDDING, K_TYPES, PRESETS
from tests.support.paths import FIXTURES

np = pytest.importorskip("numpy")

MOE = str(FIXTURES / "mix" / "tiny-BF16.gguf")
QUANTS = ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K")


def _types(mix: Mix) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in mix.tensors if tensor.chosen}


# --- the real instance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fuse", [(), ("up-gate",)])
def test_with_fisher_values_the_plan_is_within_half_a_percent_of_the_optimum(
    preset: str, fuse: tuple[str, ...]
) -> None:
    _check_optimal(cooking.fisher_evidence(), preset, fuse)


@pytest.mark.parametrize("preset", PRESETS)
def test_with_measured_values_and_weighted_errors_likewise(preset: str) -> None:
    _check_optimal(cooking.measured_evidence(), preset, ())


def _check_optimal(evidence: Evidence, preset: str, fuse: tuple[str, ...]) -> None:
    types = (*K_TYPES, "Q6_K") if "Q4" in preset else K_TYPES
    offered = cooking.smollm2_offers(types)
    budget = cooking.smollm2()["mixes"][preset]["bytes"]
    found = choose_mix(offered, MixOptions(target=Target(tensor_bytes=budget), fuse=fuse), evidence)
    assert sum(tensor.nbytes for tensor in found.tensors) == found.nbytes <= budget
    assert _types(found).get(EMBEDDING) is None
    damage, weight = _instance(evidence, offered, fuse)
    judge = solve_milp(damage, [Limit(weight=weight, budget=budget - _embedding_bytes())])
    assert found.damage <= judge.loss * 1.005
    assert found.damage * (1 - found.gap) <= judge.loss * (1 + 1e-6)
    assert found.gap < 0.005


def _embedding_bytes() -> int:
    return int(cooking.smollm2()["tensors"][EMBEDDING]["types"]["Q6_K"]["bytes"])


def _instance(evidence: Evidence, offered: Any, fuse: tuple[str, ...]) -> tuple[list[list[float]], list[list[float]]]:
    """Damage and bytes for HiGHS, independent of items: from plans that lock every tensor at one type."""
    chosen = [offer for offer in offered.offers if offer.choice]
    columns = []
    for text in chosen[0].types:
        options = MixOptions(target=Target(tensor_bytes=1 << 40), locks=(f".*={text}",), fuse=())
        columns.append([one.damage for one in choose_mix(offered, options, evidence).tensors if one.chosen])
    damage = np.array(columns).T
    weight = np.array([offer.nbytes for offer in chosen], dtype=float)
    if fuse:
        names = [offer.name for offer in chosen]
        for at, name in enumerate(names):
            if "ffn_gate" in name:
                up = names.index(name.replace("ffn_gate", "ffn_up"))
                damage[up] += damage[at]
                weight[up] += weight[at]
        kept = ["ffn_gate" not in name for name in names]
        damage, weight = damage[kept], weight[kept]
    return damage.tolist(), weight.tolist()


@pytest.mark.parametrize("evidence", ["fisher_evidence", "measured_evidence"])
def test_predicted_damage_orders_mixes_as_their_divergence_does(evidence: str) -> None:
    offered = cooking.smollm2_offers((*K_TYPES, "Q6_K"))
    predicted, measured = [], []
    for mix in cooking.smollm2()["mixes"].values():
        locks = tuple(f"{name}={qtype}" for name, qtype in mix["types"].items() if name != EMBEDDING)
        options = MixOptions(target=Target(tensor_bytes=1 << 40), locks=locks, fuse=())
        found = choose_mix(offered, options, getattr(cooking, evidence)())
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.damage < found.high
        predicted.append(found.damage)
        measured.append(mix["kld"])
        if evidence == "fisher_evidence":
            assert found.damage == pytest.approx(mix["fisher_damage"], rel=1e-3)
            assert found.low * 0.9 < mix["kld"] < found.high * 1.1
    ranks = [np.argsort(np.argsort(numbers)) for numbers in (predicted, measured)]
    assert np.corrcoef(*ranks)[0, 1] >= 0.95


def test_the_plan_has_less_damage_than_the_preset_of_its_size() -> None:
    offered = cooking.smollm2_offers(K_TYPES)
    for preset in PRESETS[:2]:
        mix = cooking.smollm2()["mixes"][preset]
        options = MixOptions(target=Target(tensor_bytes=mix["bytes"]), fuse=())
        assert choose_mix(offered, options, cooking.fisher_evidence()).damage < 0.85 * mix["fisher_damage"]


# --- devices ---------------------------------------------------------------------------------------------------------

DEVICES = ("GPU=11GiB:attn|norm|gate_inp|^output", r"GPU=11GiB:blk\.[0-3]\.ffn", "CPU=89GiB")


def _summed(recipe: str) -> dict[str, int]:
    """The bytes on each of `DEVICES` by a recipe, from the shapes alone."""
    rules, used = parse_recipe(recipe), {"GPU": 0, "CPU": 0}
    for name, dims in cooking.moe_shapes():
        rule = rules.match(name)
        type_id = 0 if rule is None else rule.type_id
        assert type_id is not None
        on_gpu = name != EMBEDDING and re.search(r"attn|norm|gate_inp|^output|blk\.[0-3]\.ffn", name)
        size = nbytes(type_id, dims)
        assert size is not None
        used["GPU" if on_gpu else "CPU"] += size
    return used


def test_no_budget_of_two_devices_is_exceeded_summed_independently() -> None:
    offered = cooking.moe_offers(("iq2_xxs", *QUANTS, "q8_0"))
    draw = np.random.default_rng(1)
    observations = tuple(
        Observation(tensors=(offer.name,), type="q3_K", value=float(draw.lognormal(-7, 1)), error=1e-5)
        for offer in offered.offers
        if offer.choice
    )
    evidence = replace(NOTHING, observations=observations)
    devices = parse_devices(DEVICES, parse_size)
    found = choose_mix(offered, MixOptions(target=Target(), devices=devices), evidence)
    used = _summed(found.recipe)
    budgets = {"GPU": 11 << 30, "CPU": 89 << 30}
    for name, size in used.items():
        assert 0.97 * budgets[name] < size <= budgets[name]
    assert {use.name: use.weights for use in found.devices} == used
    assert found.gap < 0.01
    assert found.arguments.startswith("-ngl 999 -ot 'attn|norm|gate_inp|^output=CUDA0' -ot 'blk")
    assert found.arguments.endswith("-ot '.*=CPU'")
    pairs = {name: text for name, text in _types(found).items() if "up_exps" in name}
    assert all(_types(found)[name.replace("up_exps", "gate_exps")] == text for name, text in pairs.items())


def test_devices_without_rules_share_what_is_free() -> None:
    offered = cooking.moe_offers(("q2_K", "q4_K", "q6_K"), layers=6)
    devices = parse_devices(["GPU=3GiB", "CPU=5GiB"], parse_size)
    evidence = replace(
        NOTHING,
        observations=tuple(
            Observation(tensors=(offer.name,), type="q4_K", value=1e-3, error=1e-5)
            for offer in offered.offers
            if offer.choice
        ),
    )
    found = choose_mix(offered, MixOptions(target=Target(), devices=devices), evidence)
    for use in found.devices:
        assert use.weights == sum(tensor.nbytes for tensor in found.tensors if tensor.device == use.name)
        assert use.weights <= use.size
        assert use.free == use.size - use.weights
    rules = re.findall(r"-ot '?([^ ']+)=(\S+?)'?(?: |$)", found.arguments)
    for tensor in found.tensors:
        buffer = next(buffer for pattern, buffer in rules if re.search(pattern, tensor.name))
        assert {"CUDA0": "GPU", "CPU": "CPU"}[buffer] == tensor.device


def test_a_quality_is_reached_with_the_fewest_bytes_read() -> None:
    offered, evidence = cooking.smollm2_offers(K_TYPES), cooking.fisher_evidence()
    found = choose_mix(offered, MixOptions(target=Target(most_damage=0.25), fuse=()), evidence)
    assert found.damage <= 0.25
    smaller = choose_mix(offered, MixOptions(target=Target(tensor_bytes=found.nbytes - 300_000), fuse=()), evidence)
    assert smaller.damage > 0.25
    slow = MixOptions(target=Target(most_damage=0.25), fuse=(), slow=(Slow(type="q4_K", device="*", factor=5.0),))
    avoided = choose_mix(offered, slow, evidence)
    assert avoided.damage <= 0.25
    assert sum(text == "q4_K" for text in _types(avoided).values()) < sum(
        text == "q4_K" for text in _types(found).values()
    )
    with pytest.raises(PlanError, match=r"already do a damage of 0\.025"):
        choose_mix(offered, MixOptions(target=Target(most_damage=0.001)), evidence)


def test_a_quality_within_budgets_of_devices() -> None:
    offered, evidence = cooking.smollm2_offers(K_TYPES), cooking.fisher_evidence()
    free = choose_mix(offered, MixOptions(target=Target(most_damage=0.25), fuse=()), evidence)
    on_gpu = sum(tensor.nbytes for tensor in free.tensors if "attn" in tensor.name)
    devices = parse_devices([f"GPU={on_gpu - 200_000}:attn", "CPU=200M"], parse_size)
    options = MixOptions(
        target=Target(most_damage=0.25), devices=devices, fuse=(), slow=(Slow(type="*", device="CPU", factor=1.0),)
    )
    found = choose_mix(offered, options, evidence)
    assert found.damage <= 0.25
    assert found.devices[0].weights <= on_gpu - 200_000
    assert found.nbytes > free.nbytes  # what the GPU lacks is made up for elsewhere


# --- few types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3])
def test_at_most_so_many_types(most: int) -> None:
    offered, evidence = cooking.smollm2_offers(K_TYPES), cooking.fisher_evidence()
    options = MixOptions(target=Target(tensor_bytes=74_269_440), fuse=(), max_types=most)
    found = choose_mix(offered, options, evidence)
    assert len(set(_types(found).values())) <= most
    assert found.nbytes <= 74_269_440
    best = choose_mix(offered, replace(options, max_types=None), evidence)
    assert found.damage >= best.damage
    assert any("--max-types" in text for text in found.remarks)


# --- a model as it is ------------------------------------------------------------------------------------------------


def test_without_measurements_the_mix_is_the_preset_moved(tmp_path: Path) -> None:
    model = open_model(MOE)
    found = plan_mix(model, MixOptions(target=Target(bits=5.0)))
    assert found.unit is None
    assert found.low is None
    assert "nothing was measured" in found.basis
    assert "# expected KLD: not known, as nothing was measured" in found.recipe
    assert found.bits_per_weight <= 5.0
    with pytest.raises(PlanError, match="needs measurements"):
        plan_mix(model, MixOptions(target=Target(most_damage=0.1)))


def test_at_a_presets_size_and_types_the_plan_is_the_preset() -> None:
    model = open_model(MOE)
    rivals = {one.name: one for one in plan_mix(model, MixOptions(target=Target(bits=5.0))).rivals}
    options = MixOptions(
        target=Target(tensor_bytes=rivals["Q5_0"].nbytes), types=("q4_0", "q5_0", "q8_0"), fuse=(), imatrix=False
    )
    found = plan_mix(model, options)
    assert found.nbytes <= rivals["Q5_0"].nbytes
    assert found.nbytes > 0.97 * rivals["Q5_0"].nbytes


def test_a_size_is_that_of_the_file(tmp_path: Path) -> None:
    from gguftool.storage.execute.executor import execute
    from gguftool.surgery.quantize.plan import plan_quantize

    for size in (22_000, 26_000):
        found = plan_mix(MOE, MixOptions(target=Target(size=size), types=("q4_0", "q5_0", "q8_0"), imatrix=False))
        out = tmp_path / f"{size}.gguf"
        execute(plan_quantize(MOE, parse_recipe(found.recipe), out))
        assert 0.8 * size < out.stat().st_size <= size
        made = open_model(str(out))
        assert {name: made.tensors[name].type_name.lower() for name in _types(found)} == {
            name: text.lower() for name, text in _types(found).items()
        }


def test_ready_made_quants_offer_what_they_hold(tmp_path: Path) -> None:
    quants = [str(FIXTURES / "mix" / f"tiny-{name}.gguf") for name in ("Q4_0", "Q8_0")]
    models = [open_model(path) for path in quants]
    total = sum(tensor.nbytes for tensor in models[1].tensors.values())
    found = plan_mix(quants, MixOptions(target=Target(tensor_bytes=int(total * 0.75))))
    for tensor in found.tensors:
        there = {type_text(model, tensor.name): model.tensors[tensor.name].nbytes for model in models}
        assert there[tensor.type] == tensor.nbytes
    recipe = parse_recipe(found.recipe)
    assert all(recipe.match(name) is not None for name in models[0].tensors)  # a merge wants a rule for each
    assert found.nbytes <= int(total * 0.75)


def _write_maps(folder: Path, layers: int) -> list[Path]:
    """Maps as they are published of a mixture of experts in three types; return their paths."""
    paths = []
    for qtype in ("iq4_ks", "iq3_k", "q8_0"):
        lines = [
            MapEntry(
                file=f"m-{qtype}.gguf",
                sha256=None,
                tensor=name,
                shape=dims,
                dtype="f32" if len(dims) == 1 or "gate_inp" in name else qtype,
                elements=math.prod(dims),
                nbytes=0,
            )
            for name, dims in cooking.moe_shapes(layers)
        ]
        paths.append(folder / f"tensors.{qtype}.map")
        paths[-1].write_text(render_map(lines))
    return paths


def test_two_devices_on_the_maps_of_a_mixture_of_235b_weights(tmp_path: Path) -> None:
    devices = parse_devices((*DEVICES[:2], "CPU=110GiB"), parse_size)
    options = MixOptions(target=Target(), devices=devices, engine="ik_llama.cpp")
    measured = tmp_path / "kld_results.csv"
    names = [name for name, dims in cooking.moe_shapes() if len(dims) > 1 and "gate_inp" not in name]
    values = ",".join(f"{0.002 + at % 97 * 1e-4:.6f}" for at in range(len(names)))
    measured.write_text(f"QTYPE,{','.join(names)}\niq3_k,{values}\n")
    found = plan_mix(_write_maps(tmp_path, 94), options, EvidenceFiles(measure=(str(measured),)))
    used = _summed(found.recipe)
    assert {use.name: use.weights for use in found.devices} == used
    assert 0.9 * (11 << 30) < used["GPU"] <= 11 << 30
    assert 0.97 * (110 << 30) < used["CPU"] <= 110 << 30


def test_maps_alone_are_enough(tmp_path: Path) -> None:
    paths = _write_maps(tmp_path, 4)
    measured = tmp_path / "kld_results.csv"
    names = [name for name, dims in cooking.moe_shapes(4) if len(dims) > 1 and "gate_inp" not in name]
    values = ",".join(f"{0.002 + at * 1e-4:.6f}" for at in range(len(names)))
    measured.write_text(f"QTYPE,{','.join(names)}\niq3_k,{values}\n")
    options = MixOptions(target=Target(bits=4.5), engine="ik_llama.cpp")
    found = plan_mix(paths, options, EvidenceFiles(measure=(str(measured),)))
    assert set(_types(found).values()) <= {"iq4_ks", "iq3_k", "q8_0"}
    assert len(set(_types(found).values())) > 1
    assert 4.3 < found.bits_per_weight <= 4.5
    assert [Path(one.name).suffixes[0] for one in found.rivals] == [".iq3_k", ".iq4_ks", ".q8_0"]
    assert found.rivals[0].planned is not None
    assert found.rivals[0].planned <= found.rivals[0].damage * (1 + 1e-9)
    assert parse_recipe(found.recipe).match("output_norm.weight") is not None
    held = MixOptions(
        target=Target(),
        devices=parse_devices(["CPU=9GiB"], parse_size),
        context=Context(ctx=4096),
        engine=options.engine,
    )
    with pytest.raises(PlanError, match="only maps"):
        plan_mix(paths, held)


def test_measurements_of_another_file_come_with_a_warning(tmp_path: Path) -> None:
    model = open_model(MOE)
    for digest, warned in ((model_digest(model), False), ("0" * 64, True)):
        evidence = replace(cooking.NOTHING_MEASURED, models=(digest,))
        found = plan_mix(model, MixOptions(target=Target(bits=6.0), types=("q4_0", "q8_0")), evidence)
        assert any("not measured on this file" in text for text in found.remarks) == warned


def type_text(model: Any, name: str) -> str:
    traits = find_type(model.tensors[name].type_name)
    assert traits is not None
    return traits.alias


# --- demands that cannot be met --------------------------------------------------------------------------------------


def test_all_that_contradicts_itself_is_one_message() -> None:
    options = MixOptions(
        target=Target(bits=4.0),
        types=("q4_0", "q8_0", "q9_9"),
        locks=("nosuch=q4_0", "ffn_up=q4_0", r"blk\.0\.ffn_up=q8_0", "attn_v=zz"),
        floors=("attn_q=q8_0",),
        ceilings=("attn_q=q4_0",),
    )
    with pytest.raises(PlanError) as caught:
        plan_mix(MOE, options)
    text = str(caught.value)
    for expected in (
        "--types: llama.cpp has no such type: q9_9",
        "attn_v=zz",
        "contradict each other: blk.0.ffn_up.weight",
        "--floor and --ceiling ask for 8.5 to 4.5 bits",
    ):
        assert expected in text


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    with pytest.raises(PlanError, match=r"the smallest types on offer take [\d,]+ bytes.* give [\d,]+ bytes more"):
        plan_mix(MOE, MixOptions(target=Target(bits=1.0)))
    devices = parse_devices(["GPU=1K:attn", "CPU=2K"], parse_size)
    with pytest.raises(PlanError, match=r"GPU: the smallest.*; CPU: the smallest"):
        plan_mix(MOE, MixOptions(target=Target(), devices=devices))
    with pytest.raises(PlanError, match="no --device takes it"):
        plan_mix(MOE, MixOptions(target=Target(), devices=parse_devices(["GPU=1G:attn"], parse_size)))


def test_a_table_of_another_model_is_one_message(tmp_path: Path) -> None:
    table = tmp_path / "kld_results.csv"
    table.write_text("QTYPE,blk.0.attn_q.weight,blk.77.attn_q.weight,blk.78.attn_q.weight\nq4_K,.1,.2,.3\n")
    with pytest.raises(PlanError, match=r"2 tensors that the model lacks, and 1 that it has.*on another model"):
        plan_mix(MOE, MixOptions(target=Target(bits=5.0)), EvidenceFiles(measure=(str(table),)))


def test_reserves_leave_less_for_weights() -> None:
    devices = parse_devices(["CPU=10M"], parse_size)
    free = plan_mix(MOE, MixOptions(target=Target(), devices=devices))
    held = plan_mix(MOE, MixOptions(target=Target(), devices=devices, context=Context(ctx=512, ubatch=64)))
    assert held.devices[0].kv_cache > 0
    assert held.devices[0].compute > 0
    assert held.devices[0].free < free.devices[0].free
    assert held.arguments == "-ngl 0 -c 512 -ub 64"


def test_intervals_grow_with_what_is_not_known() -> None:
    offered = cooking.smollm2_offers(K_TYPES)
    options = MixOptions(target=Target(tensor_bytes=74_269_440), fuse=())
    widths = []
    for evidence in (cooking.fisher_evidence(), cooking.measured_evidence()):
        found = choose_mix(offered, options, evidence)
        assert found.low is not None
        assert found.high is not None
        widths.append(math.log(found.high / found.low))
    assert widths[0] < widths[1]


# --- a recipe to start from ------------------------------------------------------------------------------------------


def test_a_plan_that_starts_from_a_recipe_is_no_larger_and_no_worse() -> None:
    evidence, offered = cooking.fisher_evidence(), cooking.smollm2_offers(K_TYPES)
    start = "start", parse_recipe(r"ffn_down=q2_K" + "\n" + r".*=q4_K")
    found = choose_mix(offered, MixOptions(target=Target(), start=start, fuse=()), evidence)
    (rival,) = (one for one in found.rivals if one.name == "start")
    assert found.nbytes <= rival.nbytes
    assert found.damage < rival.damage
    assert found.target == f"{rival.nbytes:,} bytes of tensors"


def test_where_nothing_was_measured_the_plan_is_the_recipe_that_it_starts_from() -> None:
    """There is no reason to move away from it; types of the recipe are on offer, also those outside the pool."""
    start = "start", parse_recipe("attn_(q|k)=q5_1\nnorm=f32\n.*=q8_0")
    found = plan_mix(MOE, MixOptions(target=Target(), start=start, types=("q8_0", "q4_0"), fuse=()))
    assert _types(found) == {
        name: "q5_1" if "attn_q." in name or "attn_k." in name else "q8_0" for name in _types(found)
    }
    assert "the levels of start" in found.basis
