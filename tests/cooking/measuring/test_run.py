"""Runs of `measure` with a fake engine: what is written, resumed, refused and left behind."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from gguftool.cooking.measuring import bench as bench_module
from gguftool.cooking.measuring import run as run_module
from gguftool.cooking.measuring.bench import censor
from gguftool.cooking.measuring.executors import shares_of_cores
from gguftool.cooking.measuring.run import ErrorSetup, Measuring, Selection, measure_errors
from gguftool.cooking.measuring.scratch import NoCarrierError, Scratch
from gguftool.cooking.measuring.work_folder import work_folder_of
from gguftool.cooking.type_values import TypeMaker
from gguftool.errors import ExecuteError, FormatError, PlanError
from gguftool.format.ggml import find_type
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.storage.execute.executor import execute
from gguftool.surgery.split import SplitOptions, plan_split
from tests.support import builders as b
from tests.support.fake_perplexity import make_fake
from tests.support.faults import tree
from tests.support.measure_cases import LINES, MODEL, SCORES, lines_of, make_setup, measuring, selection
from tests.support.paths import FIXTURES

ATTENTION = [f"blk.0.attn_{name}.weight" for name in ("k", "output", "q", "v")]


def measured(folder: Path, name: str = "out.jsonl") -> bytes:
    output = folder / name
    measuring(make_setup(folder), output).run()
    return output.read_bytes()


def test_the_floor_comes_first_and_each_tensor_has_its_line(tmp_path: Path) -> None:
    measured(tmp_path)
    floor, *lines = lines_of(tmp_path / "out.jsonl")
    assert (floor["kind"], floor["kld"], floor["base_ppl"]) == ("floor", 0.0, 20.0)
    assert [line["group"] for line in lines] == ATTENTION
    for line in lines:
        assert (line["kind"], line["type"], line["tokens"], line["chunks"]) == ("kld", "q4_0", 126, 2)
        assert line["tensors"] == [line["group"]]
        assert line["carrier"]["type"] == "bf16"
        assert 1e-7 < line["carrier"]["error"] < 1e-5
        assert line["options"] == "-c 128 --chunks 2"
        assert line["engine"].startswith("llama.cpp 7 (fake) sha256:")
    assert len({line["model"] for line in (floor, *lines)}) == 1
    assert floor["imatrix"] is None
    assert len(floor["text"]) == 64


def test_nothing_is_left_but_the_lines(tmp_path: Path) -> None:
    measured(tmp_path)
    assert not work_folder_of(tmp_path / "out.jsonl").exists()
    assert [path for path in tree(tmp_path) if ".part" in path or "scratch" in path] == []


def test_a_measurement_does_not_change_the_next_ones(tmp_path: Path) -> None:
    """The fake counts every block that differs from the reference: one not restored would add to all others."""
    measured(tmp_path)
    together = {line["group"]: line["kld"] for line in lines_of(tmp_path / "out.jsonl") if line["kind"] == "kld"}
    for name in ATTENTION:
        output = tmp_path / f"{name}.jsonl"
        measuring(make_setup(tmp_path), output, selection("q4_0", patterns=(name,))).run()
        assert lines_of(output)[1]["kld"] == together[name]


def test_more_types_are_added_and_lines_that_exist_are_kept(tmp_path: Path) -> None:
    before = measured(tmp_path)
    report = measuring(make_setup(tmp_path), tmp_path / "out.jsonl", selection("q4_0", "q8_0")).run()
    assert (report.written, report.skipped) == (4, 4)
    after = (tmp_path / "out.jsonl").read_bytes()
    assert after.startswith(before)
    again = measuring(make_setup(tmp_path), tmp_path / "out.jsonl", selection("q8_0")).run()
    assert (again.written, again.skipped) == (0, 4)
    assert (tmp_path / "out.jsonl").read_bytes() == after


def test_groups_are_measured_together(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    chosen = selection("q4_0", patterns=("attn_[kv]",), group=("role",))
    measuring(make_setup(tmp_path), output, chosen).run()
    lines = lines_of(output)[1:]
    assert [(line["group"], line["tensors"]) for line in lines] == [
        (f"attn_{name}", [f"blk.{layer}.attn_{name}.weight" for layer in (0, 1)]) for name in "kv"
    ]


@pytest.mark.parametrize("change", ["text", "engine", "options", "model", "imatrix"])
def test_lines_of_something_else_are_never_mixed_in(tmp_path: Path, change: str) -> None:
    before = measured(tmp_path)
    setup = make_setup(tmp_path)
    if change == "text":
        (tmp_path / "text.txt").write_bytes(b"another text " * 100)
    elif change == "engine":
        setup = replace(setup, engine=str(make_fake(tmp_path / "ok", "garbage")))
    elif change == "options":
        setup = replace(setup, chunks=3)
    elif change == "imatrix":
        setup = replace(setup, imatrix=str(demo_imatrix(tmp_path)))
    else:
        # One weight differs, as in a fine-tune: vocabulary, shapes and names are the same.
        data = bytearray(MODEL.read_bytes())
        tensor = open_model(MODEL).tensors["output.weight"]
        data[tensor.extent.offset : tensor.extent.end] = bytes(tensor.nbytes)
        (tmp_path / "other.gguf").write_bytes(data)
        setup = replace(setup, model=str(tmp_path / "other.gguf"))
    with pytest.raises(PlanError, match=f"line 1.*different inputs .*{change}.*give another file with -o"):
        measuring(setup, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == before


def demo_imatrix(folder: Path) -> Path:
    path = folder / "i.dat"
    name = b"blk.0.attn_k.weight"
    values = struct.pack("<256f", *range(1, 257))
    path.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 1, 256) + values)
    return path


def test_an_imatrix_changes_the_values_and_is_recorded(tmp_path: Path) -> None:
    plain, weighed = tmp_path / "plain.jsonl", tmp_path / "weighed.jsonl"
    chosen = selection("q4_K", patterns=("blk.0.attn_k.weight",))
    measuring(make_setup(tmp_path), plain, chosen).run()
    setup = replace(make_setup(tmp_path), imatrix=str(demo_imatrix(tmp_path)))
    measuring(setup, weighed, chosen).run()
    assert len(lines_of(weighed)[1]["imatrix"]) == 64
    assert lines_of(weighed)[1]["carrier"] != lines_of(plain)[1]["carrier"]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("crash", "GGML_ASSERT"),
        ("garbage", "perplexity on Mars"),
        ("silent", "nothing"),
        ("nan", "NaN"),
        ("other", "they belong to another model"),
    ],
)
def test_an_engine_that_fails_is_named_and_no_line_written(tmp_path: Path, mode: str, message: str) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(ExecuteError, match=f"3 measurements in a row failed.*blk.0.attn_q.weight at q4_0.*{message}"):
        measuring(make_setup(tmp_path, mode), output).run()
    assert [line["kind"] for line in lines_of(output)] == ["floor"]
    kept = tree(work_folder_of(output))
    assert set(kept) == {"logits", "logits.json"}


def test_what_fails_for_one_tensor_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench_module.compare_logits
    bad = iter([False, False, True, False, False])

    def sometimes(*args: object) -> object:
        if next(bad):
            raise ExecuteError("printed NaN", source="engine")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_module, "compare_logits", sometimes)
    output = tmp_path / "out.jsonl"
    report = measuring(make_setup(tmp_path), output).run()
    assert report.failed == ("blk.0.attn_output.weight at q4_0: engine: printed NaN",)
    assert [line.get("group") for line in lines_of(output)] == [None, ATTENTION[0], ATTENTION[2], ATTENTION[3]]
    monkeypatch.undo()
    assert measuring(make_setup(tmp_path), output).run().written == 1
    assert [line.get("group") for line in lines_of(output)] == [None, *ATTENTION]


def test_kept_logits_of_another_model_are_not_believed(tmp_path: Path) -> None:
    """The engine would take them: vocabulary, context and chunks are the same."""
    wanted = measured(tmp_path)
    output = tmp_path / "again.jsonl"
    with pytest.raises(ExecuteError):
        measuring(make_setup(tmp_path, "crash"), output).run()
    output.unlink()
    folder = work_folder_of(output)
    logits = bytearray((folder / "logits").read_bytes())
    logits[100:400] = bytes(300)
    (folder / "logits").write_bytes(logits)
    make_fake(tmp_path / "crash", "ok").replace(tmp_path / "ok" / "llama-perplexity")
    measuring(make_setup(tmp_path), output).run()
    assert output.read_bytes() == wanted


def test_kept_logits_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.jsonl"
    setup = make_setup(tmp_path, "crash")
    for _ in range(2):
        with pytest.raises(ExecuteError):
            measuring(setup, output).run()

        def never(*args: object) -> None:
            raise AssertionError("the logits were made again")

        monkeypatch.setattr("gguftool.cooking.measuring.logits.save_logits", never)
    assert measuring(setup, output).plan().floor_is_there


def test_several_jobs_write_the_same_file(tmp_path: Path) -> None:
    wanted = measured(tmp_path)
    if len(shares_of_cores(1)) and len(os.sched_getaffinity(0)) >= 2:
        output = tmp_path / "jobs.jsonl"
        measuring(make_setup(tmp_path), output, jobs=2).run()
        assert output.read_bytes() == wanted
    with pytest.raises(PlanError, match="--jobs 10000 on"):
        measuring(make_setup(tmp_path), tmp_path / "x.jsonl", jobs=10_000)


@pytest.mark.parametrize(("model", "kind", "carrier"), [("Q8_0", "q4_0", "q8_0"), ("Q4_K", "q5_0", None)])
def test_a_quantized_reference_carries_what_fits_and_else_the_tensor_is_swapped(
    tmp_path: Path, model: str, kind: str, carrier: str | None
) -> None:
    output = tmp_path / "out.jsonl"
    setup = replace(make_setup(tmp_path), model=str(FIXTURES / "engines" / f"tiny-llama-{model}.gguf"))
    measuring(setup, output, selection(kind, patterns=("blk.0.attn_k.weight",))).run()
    line = lines_of(output)[1]
    if carrier is None:
        assert line["carrier"] is None
    else:
        assert line["carrier"]["type"] == carrier
        assert line["carrier"]["error"] < 1e-3
    assert line["kld"] > 0
    assert tree(tmp_path).keys() == {"text.txt", "ok", "ok/llama-perplexity", "out.jsonl"}


def test_the_scratch_copy_has_the_dequantized_values_in_their_place(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    model, name, kind = open_model(MODEL), "blk.1.ffn_up.weight", GGMLQuantizationType.Q8_0
    scratch, maker = Scratch(model, tmp_path / "scratch"), TypeMaker(model=model)
    scratch.make()
    made = maker.make(name, int(kind))
    scratch.write(maker, made)
    data, extent = scratch.path.read_bytes(), model.tensors[name].extent
    exact = model.tensors[name].numpy()
    values = dequantize(np.frombuffer(made.typed.extent.read(), np.uint8), kind).reshape(exact.shape)
    carried = (np.frombuffer(data[extent.offset : extent.end], "<u2").astype("<u4") << 16).view("<f4")
    # BF16 has 8 bits of a number: half of the last is a relative error of 2^-9
    assert np.abs(carried.reshape(exact.shape) - values).max() <= np.abs(values).max() * 2**-9
    assert np.allclose(values, dequantize(quantize(exact, kind), kind), atol=np.abs(exact).max() / 100)
    assert not np.array_equal(carried.reshape(exact.shape), exact)
    whole = MODEL.read_bytes()
    assert (data[: extent.offset], data[extent.end :]) == (whole[: extent.offset], whole[extent.end :])
    scratch.restore()
    assert scratch.path.read_bytes() == whole


def test_the_scratch_copy_of_a_set_is_a_set(tmp_path: Path) -> None:
    execute(plan_split(open_model(MODEL), tmp_path / "set" / "m", SplitOptions(max_tensors=8)))
    model = open_model(tmp_path / "set")
    scratch, maker = Scratch(model, tmp_path / "scratch"), TypeMaker(model=model)
    scratch.make()
    assert scratch.path.name == "m-00001-of-00004.gguf"
    for name in ("output.weight", "blk.0.attn_v.weight", "blk.1.ffn_up.weight"):
        scratch.write(maker, maker.make(name, 2))
        changed = open_model(tmp_path / "scratch")
        differing = [one for one, tensor in model.tensors.items() if changed.tensors[one].raw() != tensor.raw()]
        assert differing == [name]
        with pytest.raises(ExecuteError, match="no longer equals the reference"):
            scratch.verify()
        scratch.restore()
    scratch.verify()


def test_values_that_the_carrier_cannot_hold_are_refused(tmp_path: Path) -> None:
    """65,504 is the largest F16; at Q8_0 it becomes 127 times a scale that is rounded up."""
    path = tmp_path / "m.gguf"
    tensor = b.Tensor("blk.0.ffn_up.weight", (32, 4), b.TYPES["F16"][0], struct.pack("<128e", *[65504.0] * 128))
    path.write_bytes(b.gguf(b.llama_kvs(vocabulary=272), [tensor]))
    model = open_model(path)
    scratch = Scratch(model, tmp_path / "scratch")
    scratch.make()
    maker = TypeMaker(model=model)
    traits = find_type("q8_0")
    assert traits is not None
    with pytest.raises(NoCarrierError, match="f16, in which the engine gets its values, would add inf"):
        scratch.write(maker, maker.make("blk.0.ffn_up.weight", traits.id))
    with pytest.raises(ExecuteError, match="no longer equals the reference"):
        scratch.verify()
    scratch.restore()
    scratch.verify()


def test_the_plan_counts_what_is_left_and_what_it_takes(tmp_path: Path) -> None:
    plan = measuring(make_setup(tmp_path), tmp_path / "out.jsonl").plan()
    assert [task.group for task in plan.tasks] == ATTENTION
    assert plan.scratch_bytes == MODEL.stat().st_size
    assert plan.logits_bytes == 20 + 2 * (4 * 128 + 2 * 63 * 276)
    assert plan.seconds > 0
    assert tree(tmp_path).keys() == {"text.txt", "ok", "ok/llama-perplexity"}
    measured(tmp_path)
    after = measuring(make_setup(tmp_path), tmp_path / "out.jsonl").plan()
    assert (after.tasks, after.done, after.seconds) == ((), 4, 0.0)


def test_a_full_disk_is_found_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "free_bytes", lambda folder: 1000)
    with pytest.raises(ExecuteError, match="bytes for logits and scratch copies, and 1,000 are free"):
        measuring(make_setup(tmp_path), tmp_path / "out.jsonl").run()
    assert tree(tmp_path).keys() == {"text.txt", "ok", "ok/llama-perplexity"}


def test_types_that_rows_do_not_fit_are_left_out_with_a_remark(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nothing can be measured") as caught:
        measuring(make_setup(tmp_path), tmp_path / "out.jsonl", selection("iq2_xxs"))
    assert "needs an imatrix" in str(caught.value)
    with pytest.raises(PlanError, match="'q99' is not a type of weights"):
        measuring(make_setup(tmp_path), tmp_path / "out.jsonl", selection("q99"))
    run = measuring(make_setup(tmp_path), tmp_path / "out.jsonl", selection("iq2_xxs", "bf16", "q4_0"))
    assert len(run.plan().tasks) == 4
    assert len(run.plan().remarks) == 1


def test_a_type_that_no_back_end_makes_is_left_out_with_a_way_out(tmp_path: Path) -> None:
    run = measuring(make_setup(tmp_path), tmp_path / "out.jsonl", selection("iq4_ks", "q4_0"))
    (remark,) = run.plan().remarks
    assert "--quants MODEL measures iq4_ks in a quant that has it" in remark
    assert "--reuse" not in remark
    setup = replace(make_setup(tmp_path), quants=(str(FIXTURES / "engines" / "tiny-llama-IQ4_KS.gguf"),))
    assert "iq4_ks" in {
        task.type for task in measuring(setup, tmp_path / "out.jsonl", selection("iq4_ks")).plan().tasks
    }


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = work_folder_of(tmp_path / "out.jsonl")
    folder.mkdir(mode=0o700)
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(ExecuteError, match="another run is measuring there"):
            measuring(make_setup(tmp_path), tmp_path / "out.jsonl").run()
    finally:
        os.close(fd)
    folder.chmod(0o777)
    with pytest.raises(ExecuteError, match="only you can write"):
        measuring(make_setup(tmp_path), tmp_path / "out.jsonl").run()


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    """The error table takes no work folder, and may be written while something is measured."""
    output = tmp_path / "out.jsonl"
    setup = ErrorSetup(model=str(MODEL), version="1")
    run, chosen = measuring(make_setup(tmp_path), output), selection("q8_0")
    with open(output, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ExecuteError, match="another run is writing to it"):
            measure_errors(setup, chosen, output)
    measure_errors(setup, chosen, output)
    wanted = output.read_bytes()
    with pytest.raises(ExecuteError, match="changed while this run began; run it again"):
        run.run()
    assert output.read_bytes() == wanted
    measuring(make_setup(tmp_path), output).run()
    # The floor is first, whatever was there before.
    assert [line["kind"] for line in lines_of(output)] == ["floor", *["error"] * 4, *["kld"] * 4]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "other file"])
def test_an_output_that_is_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out.jsonl"
    if kind == "folder":
        output.mkdir()
    elif kind == "fifo":
        os.mkfifo(output)
    elif kind == "link":
        output.symlink_to(tmp_path / "elsewhere")
    else:
        output.write_text("precious\n")
    with pytest.raises((ExecuteError, FormatError)):
        measuring(make_setup(tmp_path), output).run()
    assert not (tmp_path / "elsewhere").exists()
    if kind == "other file":
        assert output.read_text() == "precious\n"


@pytest.mark.parametrize(
    ("kld", "error", "floor", "wanted", "censored"),
    [
        (0.002, 0.0001, 0.0, 0.002, False),
        (0.000005, 0.000001, 0.0, 0.00001, True),
        (-0.000001, 0.0, 0.0, 0.00001, True),
        (0.0002, 0.0001, -1e-6, 0.0003, True),
        (0.0011, 0.0001, 0.001, 0.0013, True),
        (0.0011, 0.00001, 0.001, 0.0011, False),
    ],
)
def test_what_is_not_told_from_the_floor_is_censored(
    kld: float, error: float, floor: float, wanted: float, censored: bool
) -> None:
    ground = replace(LINES[0], scores=replace(SCORES, kld=floor))
    scores, found = censor(replace(SCORES, kld=kld, kld_se=error), ground)
    assert (scores.kld, found) == (pytest.approx(wanted), censored)


def test_remote_models_and_other_programs_are_refused(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    with pytest.raises(PlanError, match="score 63, but the engine gives statistics for 100"):
        Measuring(replace(setup, chunks=1), Selection(types=("q4_0",)), tmp_path / "out.jsonl")
    with pytest.raises(PlanError, match="cannot be read"):
        measuring(replace(setup, text=str(tmp_path / "absent")), tmp_path / "out.jsonl")
    with pytest.raises(PlanError, match="no such program"):
        measuring(replace(setup, engine=str(tmp_path / "absent")), tmp_path / "out.jsonl")
